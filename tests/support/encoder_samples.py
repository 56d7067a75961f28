"""Chunks of any encoder of FFmpeg, and what a player sees of a file, read with PyAV alone."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.codec import CodecContext

from prefect_renderfarm.blocks.processes.programs import find_ffmpeg

FPS = 25
FRAMES = 5


def run_ffmpeg(*words: object) -> None:
    """Run the ffmpeg program that this package carries."""
    program = [str(find_ffmpeg()), "-nostdin", "-loglevel", "error", "-y"]
    done = subprocess.run([*program, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def pictures(start: int, filters: str = "", size: str = "320x180") -> list[str]:
    """Return ffmpeg's input of `FRAMES` moving pictures, which begins at frame `start`."""
    source = f"testsrc2=s={size}:r={FPS},trim=start_frame={start}:end_frame={start + FRAMES}"
    chain = ",".join(filter(None, [source, "setpts=PTS-STARTPTS", filters]))
    return ["-f", "lavfi", "-i", chain]


def write_chunks(
    folder: Path, ending: str, options: str, filters: str = "", *, count: int = 3
) -> list[Path]:
    """Write chunks of `FRAMES` frames each, with options of ffmpeg for the output."""
    paths = []
    for number in range(count):
        path = folder / f"{number}{ending}"
        run_ffmpeg(*pictures(number * FRAMES, filters), *options.split(), path)
        paths.append(path)
    return paths


def picture_hashes(path: Path) -> list[str]:
    """Decode a file, and return a hash of each frame's pixels, whatever their format."""
    hashes = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            raw = CodecContext.create("rawvideo", "w")
            raw.width, raw.height, raw.pix_fmt = frame.width, frame.height, frame.format.name
            raw.time_base = Fraction(1, FPS)
            data = b"".join(bytes(packet) for packet in raw.encode(frame))
            hashes.append(hashlib.sha256(data).hexdigest())
    return hashes


@dataclass(frozen=True)
class Seen:
    """What a player sees of a file, beside its frames."""

    codec: str
    tag: str
    pixel_format: str | None
    aspect: Fraction
    fields: int  # libav's number: AVFieldOrder
    colours: tuple[int, int, int]
    alpha: bool
    language: str | None
    title: str | None
    timecode: str | None


def seen(path: Path) -> Seen:
    """Return what a player sees of a file."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        codec = video.codec_context
        tags = {key.lower(): value for key, value in video.metadata.items()}
        ratio = video.sample_aspect_ratio or codec.sample_aspect_ratio
        language = tags.get("language")
        return Seen(
            codec=codec.name,
            tag=codec.codec_tag.strip("\0"),
            pixel_format=codec.pix_fmt,
            aspect=Fraction(ratio.numerator, ratio.denominator) if ratio else Fraction(1),
            fields=codec.field_order,
            colours=(codec.color_primaries, codec.color_trc, codec.colorspace),
            alpha=tags.get("alpha_mode") == "1",
            language=None if language == "und" else language,
            title={key.lower(): value for key, value in container.metadata.items()}.get("title"),
            timecode=tags.get("timecode"),
        )
