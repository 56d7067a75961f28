"""The audio track of a film that is being written: as long as its frames, chunk by chunk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container

from prefect_renderfarm.blocks.errors import StitchInputError
from prefect_renderfarm.blocks.media.model import Media, layout_of, open_media, pcm_bytes
from prefect_renderfarm.blocks.stitchers.audio_plan import (
    AudioMode,
    AudioPlan,
    nearest_format,
    samples_at,
    track_too_short,
)

# Matroska's clock of 1 ms moves the start of audio that begins with its video.
_CLOCK_SECONDS = Fraction(3, 2000)
# Larger packets are more than some encoders take at once.
_PACKET_SAMPLES = 4096


class FilmAudio(ABC):
    """Takes audio packets and writes them, up to the sample that is due.

    Audio that is too short for its frames is extended with its last sample, which does not click;
    audio that is too long is cut. How much it may be off is checked before assembly.
    """

    def __init__(self, output: av.container.OutputContainer, stream: Any, rate: int) -> None:
        self._output = output
        self._stream = stream
        self.rate = rate
        self.written = 0
        self.due = 0

    def begin_chunk(self, end_frame: int, fps: Fraction) -> None:
        """Begin a chunk whose audio lasts until frame number `end_frame` of the film begins."""
        self.due = samples_at(end_frame, fps, self.rate)
        self._write()

    @abstractmethod
    def add(self, packet: Any, origin: Fraction = Fraction(0)) -> None:
        """Take the next packet; `origin` is the time of its chunk's first frame, in seconds."""

    @abstractmethod
    def end_chunk(self) -> None:
        """Bring the track to the length that is due, and drop the rest."""

    def close(self) -> None:
        """Write what is still buffered. Call once, after the last chunk."""
        return

    def _write(self) -> None:
        """Write what is buffered, up to the sample that is due."""
        return

    def _stamp(self, piece: Any, samples: int) -> None:
        piece.time_base = Fraction(1, self.rate)
        piece.pts = self.written
        self.written += samples


class CopiedPcm(FilmAudio):
    """PCM, sample for sample."""

    def __init__(self, output: av.container.OutputContainer, template: Any) -> None:
        context = template.codec_context
        size = pcm_bytes(context.name)
        assert size is not None  # noqa: S101 -- chosen for PCM only
        super().__init__(output, output.add_stream_from_template(template), context.sample_rate)
        self._stream.time_base = Fraction(1, self.rate)
        self._block = size * len(context.layout.channels)
        self._stream.codec_context.layout = layout_of(context)
        self._last = bytes(self._block)
        self._buffer = b""

    def add(self, packet: Any, origin: Fraction = Fraction(0)) -> None:
        """Write the packet's samples as far as the chunk's frames last; buffer the rest."""
        self._buffer += bytes(packet)
        self._write()

    def end_chunk(self) -> None:
        """Extend with the last sample, and drop what is longer than the frames."""
        self._buffer += self._last * (self.due - self.written)
        self._write()
        self._buffer = b""

    def _write(self) -> None:
        ready = min(len(self._buffer) // self._block, self.due - self.written)
        for first in range(0, ready, _PACKET_SAMPLES):
            last = min(ready, first + _PACKET_SAMPLES)
            data = self._buffer[first * self._block : last * self._block]
            packet = av.Packet(data)
            packet.stream = self._stream
            packet.duration = last - first
            self._stamp(packet, packet.duration)
            packet.dts = packet.pts
            self._output.mux(packet)
            self._last = data[-self._block :]
        self._buffer = self._buffer[ready * self._block :]


class CopiedPackets(FilmAudio):
    """Compressed audio as it is, which clicks at the seams.

    Whole packets are dropped, so that audio and video never drift by more than one packet.
    """

    def __init__(self, output: av.container.OutputContainer, template: Any) -> None:
        context = template.codec_context
        super().__init__(output, output.add_stream_from_template(template), context.sample_rate)
        self._frame_size = context.frame_size

    def add(self, packet: Any, origin: Fraction = Fraction(0)) -> None:
        """Write a packet that is audible while the chunk's frames last."""
        if packet.size == 0 or packet.pts is None:
            return
        # The last packet of a chunk may be marked as shorter, but decoders do not cut it.
        samples = self._frame_size or round(packet.duration * packet.time_base * self.rate)
        primes = packet.pts * packet.time_base < origin - _CLOCK_SECONDS
        if primes or self.written + samples // 2 > self.due:
            return
        # Not the packet itself: its side data may tell to drop samples, which Matroska keeps.
        copy = av.Packet(bytes(packet))
        copy.stream, copy.is_keyframe, copy.duration = self._stream, packet.is_keyframe, samples
        self._stamp(copy, samples)
        copy.dts = copy.pts
        self._output.mux(copy)

    def end_chunk(self) -> None:
        """Leave the audio as it is."""


class EncodedAudio(FilmAudio):
    """Decoded, joined, and encoded once, without seams."""

    def __init__(
        self, output: av.container.OutputContainer, template: Any, codec: str, bitrate: int
    ) -> None:
        context = template.codec_context
        stream: Any = output.add_stream(
            codec, rate=context.sample_rate, layout=layout_of(context), bit_rate=bitrate
        )
        stream.codec_context.format = nearest_format(stream.codec_context.codec, context.format)
        super().__init__(output, stream, context.sample_rate)
        self._decoded = av.AudioFifo()
        self._format = (context.format.name, context.layout.name)
        self._last: list[bytes] = []
        self._at_start = True
        self._skip = 0

    def add(self, packet: Any, origin: Fraction = Fraction(0)) -> None:
        """Decode the packet and encode its samples, as far as the chunk's frames last."""
        for frame in packet.decode():
            if self._at_start:
                self._align(frame, origin)
            frame.pts = None
            self._decoded.write(frame)
            if self._skip and self._decoded.samples:
                dropped = min(self._skip, self._decoded.samples)
                self._decoded.read(dropped)
                self._skip -= dropped
        self._write()

    def end_chunk(self) -> None:
        """Extend with the last sample, and drop what is longer than the frames."""
        self._decoded = av.AudioFifo()
        self._at_start = True
        if missing := self.due - self.written:
            self._encode(self._repeat_last(missing))

    def close(self) -> None:
        """Flush the encoder."""
        self._output.mux(self._stream.encode(None))

    def _align(self, frame: Any, origin: Fraction) -> None:
        """Align a chunk's audio with its first frame: drop samples that only prime a decoder."""
        self._at_start = False
        late = Fraction(0) if frame.pts is None else frame.pts * frame.time_base - origin
        self._skip = round(-late * self.rate) if late < -_CLOCK_SECONDS else 0

    def _write(self) -> None:
        ready = min(self._decoded.samples, self.due - self.written)
        if ready > 0:
            frame: Any = self._decoded.read(ready)
            width = _sample_bytes(frame)
            end = frame.samples * width
            self._last = [bytes(memoryview(plane)[end - width : end]) for plane in frame.planes]
            self._encode(frame)

    def _repeat_last(self, samples: int) -> Any:
        frame: Any = av.AudioFrame(*self._format, samples)
        lasts = self._last or [bytes(_sample_bytes(frame))] * len(frame.planes)
        for plane, last in zip(frame.planes, lasts, strict=True):
            plane.update((last * samples).ljust(plane.buffer_size, b"\0"))
        frame.sample_rate = self.rate
        return frame

    def _encode(self, frame: Any) -> None:
        self._stamp(frame, frame.samples)
        self._output.mux(self._stream.encode(frame))


def _sample_bytes(frame: Any) -> int:
    """Return the bytes of one sample in each plane of a frame."""
    return int(frame.format.bytes * (1 if frame.format.is_planar else len(frame.layout.channels)))


class TrackAudio:
    """The audio of the whole film, from one file: each chunk takes what its frames last.

    Args:
        path: The file.
        stack: Keeps the file open.
    """

    def __init__(self, path: Path, stack: ExitStack) -> None:
        container = stack.enter_context(open_media(path))
        self.template: Any = container.streams.audio[0]
        self._path = path
        self._packets: Iterator[Any] = container.demux(self.template)

    def feed(self, audio: FilmAudio, fps: Fraction) -> None:
        """Bring a film's audio to the sample that is due.

        Raises:
            StitchInputError: The file ends over one frame before the film does.
        """
        while audio.written < audio.due:
            packet = next(self._packets, None)
            if packet is None:
                break
            audio.add(packet)
        if audio.written < audio.due:
            missing = Fraction(audio.due - audio.written, audio.rate)
            if missing * fps > 1:
                raise StitchInputError(track_too_short(self._path, missing))
            audio.end_chunk()


def open_film_audio(
    output: av.container.OutputContainer, template: Any, mode: AudioMode, codec: str, bitrate: int
) -> FilmAudio:
    """Add an audio track like `template` to a film.

    Raises:
        StitchInputError: The film's container cannot hold the audio.
    """
    codec = codec if mode is AudioMode.ENCODE else template.codec_context.name
    try:
        if mode is AudioMode.ENCODE:
            return EncodedAudio(output, template, codec, bitrate)
        if pcm_bytes(codec) is None:
            return CopiedPackets(output, template)
        return CopiedPcm(output, template)
    except ValueError:
        raise StitchInputError(
            f"a {output.format.name} film cannot hold {codec} audio: set the stitcher's 'audio' to "
            "'encode', with an 'audio_codec' that it can hold"
        ) from None


def join_audio(chunks: Sequence[Media], plan: AudioPlan, output: Path) -> None:
    """Write the audio of a film into a file of its own, exactly as long as the frames.

    PCM stays as it is, compressed audio becomes PCM unless it is to be copied.
    """
    with ExitStack() as stack:
        file = stack.enter_context(av.open(str(output), "w"))
        track = TrackAudio(plan.track, stack) if plan.track else None
        if track is not None:
            template = track.template
        else:
            template = stack.enter_context(open_media(chunks[0].path)).streams.audio[0]
        pcm = pcm_bytes(template.codec_context.name) is not None
        mode = AudioMode.COPY if pcm else plan.mode
        audio = open_film_audio(file, template, mode, "pcm_f32le", 0)
        end = 0
        for chunk in chunks:
            end += chunk.frames
            audio.begin_chunk(end, chunk.fps)
            if track is not None:
                track.feed(audio, chunk.fps)
                continue
            with open_media(chunk.path) as container:
                video: Any = container.streams.video[0]
                origin = chunk.first_time * video.time_base
                for packet in container.demux(container.streams.audio[0]):
                    audio.add(packet, origin)
            audio.end_chunk()
        audio.close()
