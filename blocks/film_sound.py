"""The audio track of a film under assembly: chunk after chunk, exactly as long as the frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container

from prefect_renderfarm.blocks.media import Media, open_media, pcm_bytes
from prefect_renderfarm.blocks.sound_plan import SoundMode, samples_at

_USUAL_LAYOUTS = {
    "1 channels": "mono",
    "2 channels": "stereo",
    "6 channels": "5.1",
    "8 channels": "7.1",
}


class FilmSound(ABC):
    """Takes the chunks' audio packets; at each chunk's end it is as long as the frames so far.

    Sound that is too long for its frames is cut, sound that is too short is filled with silence;
    by how much it may be off is checked before assembly.
    """

    def __init__(self, output: av.container.OutputContainer, stream: Any, rate: int) -> None:
        self._output = output
        self._stream = stream
        self._rate = rate
        self._written = 0
        self._due = 0

    def begin_chunk(self, end_frame: int, fps: Fraction) -> None:
        """Begin a chunk whose sound lasts until frame number `end_frame` of the film begins."""
        self._due = samples_at(end_frame, fps, self._rate)

    @abstractmethod
    def add(self, packet: Any) -> None:
        """Take the next audio packet of the current chunk."""

    @abstractmethod
    def end_chunk(self) -> None:
        """Bring the track to the length that is due at the end of the current chunk."""

    @abstractmethod
    def close(self) -> None:
        """Write what is held back. Call once, after the last chunk."""

    def _stamp(self, piece: Any, samples: int) -> None:
        piece.time_base = Fraction(1, self._rate)
        piece.pts = self._written
        self._written += samples


class CopiedSound(FilmSound):
    """PCM, sample for sample."""

    def __init__(self, output: av.container.OutputContainer, template: Any) -> None:
        context = template.codec_context
        size = pcm_bytes(context.name)
        if size is None:
            raise ValueError(f"{context.name} is not PCM")
        super().__init__(output, output.add_stream_from_template(template), context.sample_rate)
        self._stream.time_base = Fraction(1, self._rate)
        self._block = size * len(context.layout.channels)
        self._silent_byte = b"\x80" if context.name.startswith("pcm_u8") else b"\0"

    def add(self, packet: Any) -> None:
        """Write the packet's samples, as far as the chunk's frames last."""
        self._write(bytes(packet)[: (self._due - self._written) * self._block])

    def end_chunk(self) -> None:
        """Fill up with silence."""
        self._write(self._silent_byte * (self._due - self._written) * self._block)

    def close(self) -> None:
        """Nothing is held back."""

    def _write(self, data: bytes) -> None:
        if not data:
            return
        packet = av.Packet(data)
        packet.stream = self._stream
        packet.duration = len(data) // self._block
        self._stamp(packet, packet.duration)
        packet.dts = packet.pts
        self._output.mux(packet)


class EncodedSound(FilmSound):
    """Decoded, joined, and encoded once, so that no seam is left."""

    def __init__(
        self, output: av.container.OutputContainer, template: Any, codec: str, bitrate: int
    ) -> None:
        context = template.codec_context
        # Matroska's PCM tells the number of channels, not where they stand.
        layout = _USUAL_LAYOUTS.get(context.layout.name, context.layout.name)
        stream: Any = output.add_stream(
            codec, rate=context.sample_rate, layout=layout, bit_rate=bitrate
        )
        super().__init__(output, stream, context.sample_rate)
        self._decoded = av.AudioFifo()
        self._format = (context.format.name, context.layout.name)

    def add(self, packet: Any) -> None:
        """Decode the packet and encode its samples, as far as the chunk's frames last."""
        for frame in packet.decode():
            frame.pts = None
            self._decoded.write(frame)
        ready = min(self._decoded.samples, self._due - self._written)
        if ready > 0:
            self._encode(self._decoded.read(ready))

    def end_chunk(self) -> None:
        """Fill up with silence, and drop what is beyond the frames."""
        self._decoded = av.AudioFifo()
        if missing := self._due - self._written:
            silence = av.AudioFrame(*self._format, missing)
            level = 128 if self._format[0].startswith("u8") else 0
            for plane in silence.planes:
                plane.update(bytes([level]) * plane.buffer_size)
            silence.sample_rate = self._rate
            self._encode(silence)

    def close(self) -> None:
        """Write what the encoder holds back."""
        self._output.mux(self._stream.encode(None))

    def _encode(self, frame: Any) -> None:
        self._stamp(frame, frame.samples)
        self._output.mux(self._stream.encode(frame))


def open_film_sound(
    output: av.container.OutputContainer, template: Any, mode: SoundMode, codec: str, bitrate: int
) -> FilmSound | None:
    """Add an audio track to a film, like the first chunk's; None if it is to have no sound."""
    if mode is SoundMode.NONE:
        return None
    if mode is SoundMode.COPY:
        return CopiedSound(output, template)
    return EncodedSound(output, template, codec, bitrate)


def join_sound(chunks: Sequence[Media], output: Path) -> None:
    """Write the sound of all chunks into one file, as PCM, exactly as long as the frames."""
    with av.open(str(output), "w") as file:
        with open_media(chunks[0].path) as first:
            template = first.streams.audio[0]
            mode = SoundMode.COPY if pcm_bytes(template.codec_context.name) else SoundMode.ENCODE
            track = open_film_sound(file, template, mode, "pcm_f32le", 0)
            assert track is not None  # noqa: S101
        end = 0
        for chunk in chunks:
            end += chunk.frames
            track.begin_chunk(end, chunk.fps)
            with open_media(chunk.path) as container:
                for packet in container.demux(container.streams.audio[0]):
                    track.add(packet)
            track.end_chunk()
        track.close()
