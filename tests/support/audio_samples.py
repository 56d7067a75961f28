"""Audio for the tests: one long sweep, in tiny chunks and in tracks, and how it is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from pathlib import Path

import av
import numpy as np

RATE = 48_000
BIT_RATE = 192_000
NTSC = Fraction(30000, 1001)
COUNTS = (47,) * 20
FRAMES = sum(COUNTS)
# The first and the last packets of any codec differ from those between them.
EDGE = 4096


@dataclass(frozen=True)
class Take:
    """How chunks of the sweep are rendered.

    Attributes:
        alone: A chunk's audio is as long as if no other came before it.
        missing: Number of samples that it lacks at its end.
    """

    audio: str | None = "pcm_s16le"
    ending: str = ".mkv"
    fps: Fraction = NTSC
    codec: str = "libx264"
    rate: int = RATE
    layout: str = "stereo"
    alone: bool = False
    missing: int = 0

    def __str__(self) -> str:
        return f"{self.audio}{self.ending}@{self.fps}"


@lru_cache(100)
def sweep(first: int, last: int, rate: int = RATE, layout: str = "stereo") -> np.ndarray:
    """Return samples `first` … `last` - 1 of an endless sweep; each channel has its own level."""
    t = np.arange(first, last) / rate
    wave = 0.5 * np.sin(2 * np.pi * (220 * t + 40 * t * t))
    return np.stack([wave * (1 - n / 10) for n in range(len(av.AudioLayout(layout).channels))])


def due(fps: Fraction, frames: int = FRAMES, rate: int = RATE) -> int:
    """Return how many samples last as long as so many frames."""
    return round(frames * rate / fps)


def _encode(output: av.container.OutputContainer, take: Take, first: int, last: int) -> None:
    stream = output.add_stream(take.audio, rate=take.rate, layout=take.layout, bit_rate=BIT_RATE)
    wave = sweep(first, last, take.rate, take.layout).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout=take.layout)
    frame.sample_rate, frame.pts, frame.time_base = take.rate, 0, Fraction(1, take.rate)
    output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def write_take(path: Path, start: int, count: int, take: Take) -> Path:
    """Write frames `start` … `start + count` - 1 and their part of the sweep."""
    with av.open(str(path), "w") as output:
        video = output.add_stream(take.codec, rate=take.fps)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        if take.codec == "libx264":
            video.options = {"preset": "ultrafast"}
        packets = []
        for number in range(start, start + count):
            picture = np.full((32, 32, 3), number * 7 % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number - start, 1 / take.fps
            packets += video.encode(frame)
        packets += video.encode(None)
        if take.audio:
            first, last = (due(take.fps, n, take.rate) for n in (start, start + count))
            last = first + due(take.fps, count, take.rate) if take.alone else last
            _encode(output, take, first, last - take.missing)
        output.mux(packets)
    return path


def write_takes(folder: Path, take: Take, counts: Sequence[int] = COUNTS) -> list[Path]:
    """Write one chunk a count, each beginning where the one before ended."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = [sum(counts[:number]) for number in range(len(counts))]
    return [
        write_take(folder / f"{start:04d}{take.ending}", start, count, take)
        for start, count in zip(starts, counts, strict=True)
    ]


def with_audio_at(source: Path, target: Path, start: Fraction) -> Path:
    """Copy a file so that its audio begins so many seconds later than its video, or earlier."""
    with av.open(str(source)) as file, av.open(str(target), "w") as output:
        streams = {stream.index: output.add_stream_from_template(stream) for stream in file.streams}
        for packet in file.demux():
            if packet.size:
                delay = start if packet.stream.type == "audio" else -start
                delay = round(max(Fraction(0), delay) / packet.time_base)
                packet.pts += delay
                packet.dts = None if packet.dts is None else packet.dts + delay
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    return target


def write_track(path: Path, samples: int, take: Take) -> Path:
    """Write so many samples of the sweep as one file."""
    with av.open(str(path), "w") as output:
        _encode(output, take, 0, samples)
    return path


@dataclass(frozen=True)
class Heard:
    """What a player makes of a film's audio.

    Attributes:
        samples: From the time of the first frame on, one row a channel.
        jump: Largest distance, in samples, of a piece's time from where its samples are.
    """

    samples: np.ndarray
    jump: float
    codec: str
    rate: int
    layout: str


def hear(film: Path) -> Heard:
    """Decode a film's audio, and put it where its times say, with the first frame at 0."""
    with av.open(str(film)) as container:
        video = container.streams.video[0]
        times = [packet.pts for packet in container.demux(video) if packet.pts is not None]
        origin = min(times) * video.time_base
    with av.open(str(film)) as container:
        stream = container.streams.audio[0]
        frames = list(container.decode(stream))
        context = stream.codec_context
        codec, rate, layout = context.name, context.sample_rate, context.layout.name
        tick = float(stream.time_base)
    parts = [_floats(frame) for frame in frames]
    at = (np.array([frame.pts for frame in frames]) * tick - float(origin)) * rate
    begins = np.cumsum([0, *(part.shape[1] for part in parts)])[:-1]
    samples, early = np.concatenate(parts, axis=1), round(-at[0])
    samples = samples[:, early:] if early >= 0 else np.pad(samples, ((0, 0), (-early, 0)))
    jump = float(np.abs(at - at[0] - begins).max())
    return Heard(samples, round(jump, 3), codec, rate, layout)


def _floats(frame: av.AudioFrame) -> np.ndarray:
    """Return a frame's samples from -1 to 1, one row a channel."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(frame.layout.channels)).T
    if samples.dtype.kind == "i":
        return samples / 2.0 ** (8 * samples.dtype.itemsize - 1)
    return samples.astype(float)


def best_shift(found: np.ndarray, wanted: np.ndarray, first: int = 48_000) -> int:
    """Return by how many samples `found` is late, from -3000 to 3000: where the error is least."""
    piece = slice(first, first + 12_000, 8)
    errors = {
        shift: np.abs(found[0, first + shift : first + shift + 12_000 : 8] - wanted[0, piece]).sum()
        for shift in range(-3000, 3001)
    }
    return min(errors, key=errors.__getitem__)


def errors_at_seams(found: np.ndarray, fps: Fraction) -> tuple[float, float]:
    """Return the largest error within 1,024 samples of a seam, and the largest elsewhere."""
    wanted = sweep(0, due(fps))
    error = np.abs(found[:, : wanted.shape[1]] - wanted).max(axis=0)
    near = np.zeros(len(error), dtype=bool)
    for number in range(1, len(COUNTS)):
        seam = due(fps, sum(COUNTS[:number]))
        near[seam - 1024 : seam + 1024] = True
    error, near = error[EDGE:-EDGE], near[EDGE:-EDGE]
    return float(error[near].max()), float(error[~near].max())


@cache
def whole_error(codec: str, fps: Fraction, folder: Path) -> float:
    """Return the largest error of the sweep encoded in one go by a codec, without any chunk."""
    film = write_take(folder / f"{codec}{fps.numerator}.mkv", 0, FRAMES, Take(codec, fps=fps))
    return max(errors_at_seams(hear(film).samples, fps))
