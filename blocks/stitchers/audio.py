"""The audio of a film: the plan for it, its checks, and what writes it, as long as the frames."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av import AudioLayout
from av.codec import Codec, CodecContext
from av.container import OutputContainer

from prefect_renderfarm.blocks.errors import MediaFault, StitchInputError
from prefect_renderfarm.blocks.media.codec_header import ONE_FILE_ONLY
from prefect_renderfarm.blocks.media.frame_grid import exact
from prefect_renderfarm.blocks.media.model import (
    HOLE_SECONDS,
    LONGEST_SILENCE,
    Audio,
    Media,
    layout_of,
    pcm_bytes,
)
from prefect_renderfarm.blocks.media.reader import beginning, open_media, read_audio
from prefect_renderfarm.blocks.media.reader_process import read_apart

# mp4 can hold PCM (ISO/IEC 23003-5), but browsers and many players cannot play it.
_KEEPS_PCM = frozenset({".mkv", ".mov"})
NO_TRACK = (
    "the stitcher's 'audio' is 'track', but there is none: set its 'audio_track', or the job's "
    "'audioTrack', to an audio file that is as long as the film"
)
# A packet of AAC has 1,024 samples (ISO/IEC 14496-3); encoders add up to two first and one last.
_PACKET = 1024.0
_EXTRA = 4 * _PACKET
# Matroska rounds the start of each packet to 1 ms, and so of audio that begins with its video.
CLOCK_SECONDS = Fraction(3, 2000)
# Blender writes PCM in packets of so many bytes, the last one whole: AV_INPUT_BUFFER_MIN_SIZE in
# blenkernel/intern/writeffmpeg.c.
_PCM_PACKET_BYTES = 16_384
# Larger packets are more than some encoders take at once.
_PACKET_SAMPLES = 4096


class AudioMode(StrEnum):
    """How a film gets its audio."""

    AUTO = "auto"
    NONE = "none"
    COPY = "copy"
    ENCODE = "encode"
    TRACK = "track"


@dataclass(frozen=True)
class AudioPlan:
    """Where the audio of one film comes from, and how it is written."""

    mode: AudioMode  # none, copy or encode
    source: Audio | None = None  # of the first chunk, or of the track; None means no audio
    track: Path | None = None  # a file with the whole film's audio; None: the chunks have it
    codec: str = "aac"  # to encode with
    bitrate: int = 192_000  # bits a second of encoded audio


def plan_audio(
    mode: AudioMode, audio: Audio | None, film: Path, track: Path | None = None
) -> AudioPlan:
    """Plan a film's audio by its first chunk's; refuse what would click at every seam."""
    for_pcm = AudioMode.COPY if film.suffix.lower() in _KEEPS_PCM else AudioMode.ENCODE
    if mode is AudioMode.TRACK and track is None:
        raise StitchInputError(NO_TRACK)
    if track is not None and mode in (AudioMode.AUTO, AudioMode.TRACK):
        whole = read_track(track)
        return AudioPlan(for_pcm if whole.is_pcm else AudioMode.ENCODE, whole, track)
    if audio is None or mode is AudioMode.NONE:
        return AudioPlan(AudioMode.NONE)
    if mode is AudioMode.AUTO and not audio.is_pcm:
        # A compressed chunk begins with samples that only prime its decoder: joined by copy, they
        # come out as a gap of some 1,600 samples and a click at every seam.
        raise StitchInputError(
            f"the chunks' audio is {audio.codec}, which cannot be joined by copy without a click "
            "at every seam: render the chunks with PCM audio (mov or mkv), or set the stitcher's "
            "'audio' to 'encode' or 'none', or to 'copy' if clicks do not matter"
        )
    if mode is AudioMode.COPY and audio.codec in ONE_FILE_ONLY:
        raise StitchInputError(
            f"the chunks' audio is {audio.codec}, whose header describes its own file: set the "
            "stitcher's 'audio' to 'encode', and nothing is lost with 'audio_codec' flac"
        )
    return AudioPlan(for_pcm if mode is AudioMode.AUTO else mode, audio)


def read_track(path: Path) -> Audio:
    """Read the header of a file with a whole film's audio; 0 samples mean an unknown length."""
    try:
        return read_apart(read_audio, path.absolute())
    except MediaFault as fault:
        raise StitchInputError(f"audio track {str(path)!r} {fault}") from None


def check_track(plan: AudioPlan, frames: int, fps: Fraction) -> None:
    """Refuse a track that begins behind the film, or ends over a frame before, by its header.

    0 frames mean that the length of the film is not known yet.
    """
    track, source = plan.track, plan.source
    if track is None or source is None:
        return
    if frames and source.start >= frames / fps:
        raise StitchInputError(
            f"audio track {str(track)!r} begins at {float(source.start):.3f} s, behind the end of "
            "the film: begin it with silence"
        )
    if source.samples:
        _refuse_short_track(track, frames / fps - Fraction(source.samples, source.rate), fps)


def audio_fault(audio: Audio, mode: AudioMode, frames: int, fps: Fraction) -> str | None:
    """Return in what a chunk's audio does not fit its frames; None if it fits.

    PCM may lack one sample, and begin one off or, in containers with a clock of 1 ms, one tick; it
    may be longer by less than a packet, which is cut off.
    Compressed audio has up to a few packets of inaudible samples before and behind. Copied audio is
    cut by whole packets: it may begin early, or one packet late, and lack one packet at its end.
    """
    if mode is AudioMode.COPY and audio.hole is not None and not audio.is_pcm:
        return (
            f"has a hole in its audio at {float(audio.hole):.3f} s: set the stitcher's 'audio' to "
            "'encode', which fills it with silence"
        )
    if audio.overlap is not None:
        return f"has audio packets that overlap at {float(audio.overlap):.3f} s: write it anew"
    expected = frames / fps * audio.rate
    tick = float(CLOCK_SECONDS * audio.rate)
    samples = audio.samples if audio.is_pcm else audio.audible
    if (width := pcm_bytes(audio.codec)) is not None:
        packet = _PCM_PACKET_BYTES / (width * AudioLayout(audio.layout).nb_channels)
        early, late, lacking, extra = tick, tick, 1.0, max(_PACKET, packet)
    elif mode is AudioMode.COPY:
        early, late, lacking, extra = math.inf, _PACKET, _PACKET, _EXTRA
    else:
        early, late, lacking, extra = _EXTRA, tick, tick, _EXTRA
    if not -early <= audio.start * audio.rate <= late:
        return (
            f"has audio that begins {float(audio.start) * 1000:+.1f} ms from its first frame: "
            "render both from the same moment on"
        )
    if not -lacking <= samples - expected <= extra:
        return (
            f"has {samples} audio samples, but its {frames} frames last "
            f"{round(expected)}: render audio as long as the frames"
        )
    return None


def find_encoder(name: str) -> Any:
    """Return the audio encoder of PyAV's FFmpeg that has this name; StitchInputError if none."""
    with suppress(av.FFmpegError, ValueError):
        codec = Codec(name, "w")
        if codec.type == "audio":
            return codec
    raise StitchInputError(
        f"audio_codec {name!r} is not an audio encoder of PyAV's FFmpeg: name another, such as aac "
        "or flac"
    )


def check_codec(name: str, audio: Audio) -> None:
    """Refuse a codec that does not exist, or would need the audio resampled or remixed."""
    codec = find_encoder(name)
    trial: Any = CodecContext.create(codec)
    try:
        trial.sample_rate = audio.rate
        trial.layout = audio.layout
        trial.format = codec.audio_formats[0]
        trial.time_base = Fraction(1, audio.rate)
        trial.open()
    except (av.FFmpegError, ValueError):
        fault = f"the channels {audio.layout!r}, which {name} does not take"
        if (rates := codec.audio_rates) and audio.rate not in rates:
            known = ", ".join(map(str, sorted(rates)))
            fault = f"{audio.rate} samples a second, which {name} does not take ({known})"
        raise StitchInputError(
            f"the audio has {fault}: render it otherwise, or set the stitcher's 'audio_codec' to "
            "another; audio is never resampled or remixed"
        ) from None


def _refuse_short_track(path: Path, missing: Fraction, fps: Fraction) -> None:
    """Refuse a track that ends so many seconds before the film, if they are over one frame."""
    if missing * fps > 1:
        raise StitchInputError(
            f"audio track {str(path)!r} is at least {float(missing):.3f} s shorter than the film: "
            "make it as long as the film, with silence at its end"
        )


def samples_at(frame: int, fps: Fraction, rate: int) -> int:
    """Return how many samples have passed when frame number `frame` begins, rounded."""
    return round(frame * rate / fps)


class FilmAudio(ABC):
    """Takes audio packets and writes them, up to the sample that is due.

    How much audio may be shorter or longer than its frames is checked before assembly.
    """

    def __init__(self, output: OutputContainer, stream: Any, rate: int) -> None:
        self._output = output
        self.stream = stream
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

    def end_chunk(self) -> None:
        """Bring the track to the length that is due, and drop the rest."""
        return

    def close(self) -> None:
        """Write what is still buffered. Call once, after the last chunk."""
        return

    def _write(self) -> None:
        """Write what is buffered, up to the sample that is due."""
        return


class CopiedPackets(FilmAudio):
    """Compressed audio as it is, up to one packet off its video, which clicks at the seams."""

    def __init__(self, output: OutputContainer, template: Any) -> None:
        context = template.codec_context
        super().__init__(output, output.add_stream_from_template(template), context.sample_rate)
        self._frame_size = context.frame_size

    def add(self, packet: Any, origin: Fraction = Fraction(0)) -> None:
        """Write a packet that is audible while the chunk's frames last."""
        if packet.size == 0 or packet.pts is None:
            return
        # The last packet of a chunk may be marked as shorter, but decoders do not cut it.
        samples = self._frame_size or round(packet.duration * packet.time_base * self.rate)
        primes = packet.pts * packet.time_base < origin - CLOCK_SECONDS
        if primes or self.written + samples // 2 > self.due:
            return
        # Not the packet itself: its side data may tell to drop samples, which Matroska keeps.
        copy: Any = av.Packet(bytes(packet))
        copy.stream, copy.is_keyframe, copy.duration = self.stream, packet.is_keyframe, samples
        copy.time_base = Fraction(1, self.rate)
        copy.pts = copy.dts = self.written
        self.written += samples
        self._output.mux(copy)


class EncodedAudio(FilmAudio):
    """Decoded, joined, and encoded once, without seams: PCM comes out bit for bit.

    Audio that is too short is extended with its last sample, which does not click.
    """

    def __init__(self, output: OutputContainer, template: Any, codec: str, bitrate: int) -> None:
        context = template.codec_context
        rate, layout = context.sample_rate, layout_of(context)
        stream: Any = output.add_stream(codec, rate, layout=layout, bit_rate=bitrate)
        stream.codec_context.format = nearest_format(stream.codec_context.codec, context.format)
        super().__init__(output, stream, rate)
        self._decoded = av.AudioFifo()
        self._format = (context.format.name, context.layout.name)
        form, channels = context.format, context.layout.nb_channels
        planes, width = (channels, form.bytes) if form.is_planar else (1, channels * form.bytes)
        # The bytes of a silent sample in each plane, and of the last one.
        self._silence = [(b"\x80" if form.packed.name == "u8" else b"\0") * width] * planes
        self._last = self._silence
        self._position: int | None = None  # of the next sample behind the chunk's first frame
        self._skip = 0

    def add(self, packet: Any, origin: Fraction = Fraction(0)) -> None:
        """Decode the packet and encode its samples, as far as the chunk's frames last.

        Samples before the chunk's first frame only prime a decoder: they are dropped. A hole, where
        packets are missing, is filled with silence: else all that follows would be early.
        """
        for frame in packet.decode():
            if frame.pts is not None:
                self._align(frame.pts * exact(frame.time_base) - origin, frame.samples)
            self._position = (self._position or 0) + frame.samples
            frame.pts = None
            self._decoded.write(frame)
            if dropped := min(self._skip, self._decoded.samples):
                self._decoded.read(dropped)
                self._skip -= dropped
        self._write()

    def _align(self, time: Fraction, samples: int) -> None:
        """Take note that so many samples come, so many seconds after the chunk's first frame."""
        begins, done = self._position is None, self._position or 0
        gap = round(time * self.rate) - done
        if abs(gap) <= (CLOCK_SECONDS if begins else HOLE_SECONDS) * self.rate:
            return
        if begins:
            self._skip = max(0, -gap)
        elif not 0 < gap <= LONGEST_SILENCE * self.rate:
            raise StitchInputError(
                f"audio goes on at {float(time):.3f} s, behind {done / self.rate:.3f} s: write it "
                "anew, without packets that overlap, or a hole of a minute"
            )
        else:
            lost = round(gap / samples) * samples  # packets are lost as a whole
            gap = lost if abs(lost - gap) <= CLOCK_SECONDS * self.rate else gap
        if gap > 0:
            self._decoded.write(self._constant(gap, self._silence))
        self._position = done + gap

    def end_chunk(self) -> None:
        """Extend what is too short, and drop what is longer than the frames."""
        self._decoded = av.AudioFifo()
        self._position, self._skip = None, 0
        if missing := self.due - self.written:
            self._decoded.write(self._constant(missing, self._last))
            self._write()

    def _planes(self, frame: Any) -> Sequence[Any]:
        """Return a frame's planes; of eight planar channels PyAV gives one more."""
        planes: Sequence[Any] = frame.planes[: len(self._silence)]
        return planes

    def _constant(self, samples: int, sample: Sequence[bytes]) -> Any:
        """Return audio of one sample, given by its bytes in each plane."""
        frame: Any = av.AudioFrame(*self._format, samples)
        for plane, each in zip(self._planes(frame), sample, strict=True):
            plane.update((each * samples).ljust(plane.buffer_size, b"\0"))
        frame.sample_rate = self.rate
        return frame

    def close(self) -> None:
        """Flush the encoder."""
        self._output.mux(self.stream.encode(None))

    def _write(self) -> None:
        while (ready := min(self._decoded.samples, self.due - self.written, _PACKET_SAMPLES)) > 0:
            frame: Any = self._decoded.read(ready)
            width, planes = len(self._silence[0]), self._planes(frame)
            end = ready * width
            self._last = [bytes(memoryview(plane)[end - width : end]) for plane in planes]
            frame.pts, frame.time_base = self.written, Fraction(1, self.rate)
            self.written += ready
            self._output.mux(self.stream.encode(frame))


def nearest_format(codec: Any, source: Any) -> Any:
    """Return the sample format of an encoder that loses least of a source's format."""
    return min(
        codec.audio_formats,
        key=lambda known: (
            known.packed.name != source.packed.name,
            known.bytes < source.bytes,
            abs(known.bytes - source.bytes),
        ),
    )


class TrackAudio:
    """The audio of the whole film, from one file, which the stack keeps open."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        container = stack.enter_context(open_media(path))
        self.template: Any = container.streams.audio[0]
        self._origin = beginning(container)
        self._path = path
        self._packets: Iterator[Any] = container.demux(self.template)

    def feed(self, audio: FilmAudio, fps: Fraction) -> None:
        """Bring a film's audio to the sample that is due; the file may lack up to one frame."""
        while audio.written < audio.due and (packet := next(self._packets, None)) is not None:
            audio.add(packet, self._origin)
        if (missing := audio.due - audio.written) > 0:
            _refuse_short_track(self._path, Fraction(missing, audio.rate), fps)
            audio.end_chunk()


def open_film_audio(output: OutputContainer, template: Any, plan: AudioPlan) -> FilmAudio:
    """Add an audio track like `template` to a film."""
    encode = plan.mode is AudioMode.ENCODE
    codec = plan.codec if encode else template.codec_context.name
    try:
        if encode or pcm_bytes(codec) is not None:
            return EncodedAudio(output, template, codec, plan.bitrate)
        return CopiedPackets(output, template)
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
        # Of the first chunk only the template is taken, if there is no track.
        source = TrackAudio(plan.track or chunks[0].path, stack)
        name = source.template.codec_context.name
        codec = "pcm_f32le" if pcm_bytes(name) is None else name
        audio = open_film_audio(file, source.template, replace(plan, codec=codec))
        end = 0
        for chunk in chunks:
            end += chunk.frames
            audio.begin_chunk(end, chunk.fps)
            if plan.track is not None:
                source.feed(audio, chunk.fps)
                continue
            with open_media(chunk.path) as container:
                video: Any = container.streams.video[0]
                origin = chunk.origin * video.time_base
                for packet in container.demux(container.streams.audio[0]):
                    audio.add(packet, origin)
            audio.end_chunk()
        audio.close()
