"""Real media for the tests: chunks in which every frame and every sample tells its number."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE = 48_000
# Encoders' options: as fast as they go, and silent.
_OPTIONS = {
    "libx264": {"preset": "ultrafast", "qp": "30"},
    "libx265": {
        "preset": "ultrafast",
        "qp": "30",
        "x265-params": "log-level=none:rc-lookahead=5:frame-threads=1:pools=1",
    },
    "libsvtav1": {"preset": "13", "svtav1-params": "lp=1"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
}
_WITH_KEY_FRAMES = ("libx264", "libx265", "libsvtav1", "libvpx-vp9", "mpeg4")
os.environ["SVT_LOG"] = "0"


@dataclass(frozen=True)
class Recipe:
    """How to encode a sample: codec, container ending, frame rate, audio."""

    ending: str = ".mp4"
    codec: str = "libx264"
    fps: Fraction = Fraction(30)
    audio: str | None = None
    width: int = 160
    height: int = 96
    pixel_format: str = "yuv420p"
    b_frames: int = 3

    def __str__(self) -> str:
        audio = f"-{self.audio}" if self.audio else ""
        return f"{self.codec}{self.ending}@{self.fps}{audio}"


def frame_picture(number: int, width: int, height: int) -> np.ndarray:
    """Draw frame `number`: a texture that is different in every frame."""
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack(
        [(x * 3 + number * 7) % 256, (y * 5 + number * 11) % 256, (x + y + number * 13) % 256], -1
    )
    return picture.astype(np.uint8)


def sweep(first: int, last: int) -> np.ndarray:
    """Return samples `first` … `last` - 1 of an endless sweep: 16 bit, one row a channel."""
    t = np.arange(first, last) / RATE
    wave = 0.5 * np.sin(2 * np.pi * (220 * t + 40 * t * t))
    return np.round(np.stack([wave, -wave]) * 32767).astype(np.int16)


def write_clip(path: Path, start: int, count: int, recipe: Recipe) -> Path:
    """Write frames `start` … `start + count` - 1 and their audio."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fps = recipe.fps
    with av.open(str(path), "w") as output:
        video = output.add_stream(recipe.codec, rate=fps)
        video.width, video.height = recipe.width, recipe.height
        video.pix_fmt = recipe.pixel_format
        video.options = _OPTIONS.get(recipe.codec, {})
        if recipe.codec in _WITH_KEY_FRAMES:
            video.codec_context.gop_size = 12
        if recipe.codec.startswith("libx26"):
            video.options |= {"bf": str(recipe.b_frames)}
        decoded = itertools.count(-2)
        audio = (
            output.add_stream(recipe.audio, rate=RATE, layout="stereo") if recipe.audio else None
        )
        for number in range(start, start + count):
            picture = frame_picture(number, recipe.width, recipe.height)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number - start, 1 / fps
            output.mux(_in_order(video.encode(frame), recipe, decoded))
            if audio is not None:
                a, b = (round(n * RATE / fps) for n in (number, number + 1))
                samples = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(sweep(a, b).T.reshape(1, -1)),
                    format="s16",
                    layout="stereo",
                )
                samples.sample_rate = RATE
                samples.pts = a - round(start * RATE / fps)
                samples.time_base = Fraction(1, RATE)
                output.mux(audio.encode(samples))
        output.mux(_in_order(video.encode(None), recipe, decoded))
        if audio is not None:
            output.mux(audio.encode(None))
    return path


def _in_order(packets: list[av.Packet], recipe: Recipe, decoded: Iterator[int]) -> list[av.Packet]:
    """Give the packets of x265 decoding times: it leaves them unset in clips of one or two frames.

    It decodes no more than two frames ahead.
    """
    if recipe.codec == "libx265":
        for packet in packets:
            packet.dts = next(decoded)
    return packets


def write_chunks(folder: Path, counts: Sequence[int], recipe: Recipe) -> list[Path]:
    """Write one clip a count, each beginning where the one before ended."""
    paths, start = [], 0
    for number, count in enumerate(counts):
        paths.append(write_clip(folder / f"{number:04d}{recipe.ending}", start, count, recipe))
        start += count
    return paths


def frame_hashes(path: Path) -> list[str]:
    """Decode a file and return the MD5 of every frame's pixels."""
    with av.open(str(path)) as container:
        return [
            hashlib.md5(frame.to_ndarray().tobytes()).hexdigest()  # noqa: S324
            for frame in container.decode(video=0)
        ]


def frame_times(path: Path) -> list[Fraction]:
    """Return the display times of all frames, in seconds, sorted."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return sorted(
            packet.pts * stream.time_base for packet in container.demux(stream) if packet.size
        )


def samples_of(path: Path) -> np.ndarray:
    """Decode a file's audio to 16 bit, one row a channel."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="s16p")
        parts = [
            piece.to_ndarray()
            for frame in container.decode(audio=0)
            for piece in resampler.resample(frame)
        ]
    return np.concatenate(parts, axis=1)
