"""Ways to spoil a chunk of a film, for the tests: each makes a real file with one fault."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from media_samples import Recipe, write_chunks, write_clip

from prefect_renderfarm.blocks.processes.programs import find_ffmpeg

COUNT = 6
# From a good chunk and an empty folder to a bad chunk.
Spoil = Callable[[Path, Path], Path]

_RECIPES = {
    "mp4": Recipe(),
    "mov": Recipe(ending=".mov", audio="pcm_s16le"),
    "mkv": Recipe(ending=".mkv"),
    "mkv with audio": Recipe(ending=".mkv", audio="pcm_s16le"),
    "ts": Recipe(ending=".ts"),
    "mpeg4 in mkv": Recipe(ending=".mkv", codec="mpeg4"),
    "mjpeg in mov": Recipe(ending=".mov", codec="mjpeg", pixel_format="yuvj420p"),
    "mjpeg in mkv": Recipe(ending=".mkv", codec="mjpeg", pixel_format="yuvj420p"),
}


class Shop:
    """Makes good chunks and bad ones, each once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._good: dict[str, list[Path]] = {}
        self._bad: dict[str, Path] = {}

    def good(self, kind: str) -> list[Path]:
        """Return three chunks that fit."""
        if kind not in self._good:
            self._good[kind] = good_chunks(kind, self._folder / kind)
        return self._good[kind]

    def bad(self, name: str, kind: str, spoil: Spoil) -> Path:
        """Return a chunk for the middle of the film that is wrong in a way with a name."""
        if name not in self._bad:
            folder = self._folder / name
            folder.mkdir()
            self._bad[name] = spoil(self.good(kind)[1], folder)
        return self._bad[name]


def good_chunks(kind: str, folder: Path) -> list[Path]:
    """Write three chunks that fit, with BT.709 colours."""
    plain = write_chunks(folder / "plain", [COUNT] * 3, _RECIPES[kind])
    return [with_colours(path, folder / path.name) for path in plain]


def with_colours(plain: Path, target: Path) -> Path:
    """Copy a file and tell its colours as good chunks do."""
    with av.open(str(plain)) as container:
        codec = container.streams.video[0].codec_context.name
    tell = in_header() if codec == "h264" else in_track()
    return tell(plain, target.parent).rename(target)


def ffmpeg(source: Path, target: Path, *options: str, before: tuple[str, ...] = ()) -> Path:
    """Make a file of another one with the ffmpeg program."""
    program = [str(find_ffmpeg()), "-nostdin", "-loglevel", "error", "-y", *before]
    subprocess.run([*program, "-i", str(source), *options, str(target)], check=True)
    return target


def absent(good: Path, folder: Path) -> Path:
    """Make nothing."""
    return folder / f"bad{good.suffix}"


def bytes_of(change: Callable[[bytes], bytes], faststart: bool = False) -> Spoil:
    """Change a good chunk's bytes; with `faststart` those of one whose index comes first."""

    def spoil(good: Path, folder: Path) -> Path:
        bad = absent(good, folder)
        if faststart:
            good = ffmpeg(good, folder / "first.mp4", "-c", "copy", "-movflags", "+faststart")
        bad.write_bytes(change(good.read_bytes()))
        return bad

    return spoil


def cut(part: float) -> Callable[[bytes], bytes]:
    """Keep so much of a file."""
    return lambda data: data[: round(len(data) * part)]


def flip_in_frames(data: bytes) -> bytes:
    """Turn 24 bytes over in the middle of an mp4 file's frames."""
    start = data.index(b"mdat") + 4
    middle = start + (int.from_bytes(data[start - 8 : start - 4]) - 8) // 2
    return data[:middle] + bytes(byte ^ 0xFF for byte in data[middle : middle + 24]) + (
        data[middle + 24 :]
    )  # fmt: skip


def empty_last_sample(data: bytes) -> bytes:
    """Let the index of an mp4 file say that its last sample has no bytes."""
    end = data.index(b"stsz") + 16 + 4 * COUNT
    return data[: end - 4] + bytes(4) + data[end:]


def wider(data: bytes) -> bytes:
    """Let an mp4 file say that its picture is to be shown twice as wide."""
    at = data.index(b"tkhd") + 80
    width = 2 * int.from_bytes(data[at : at + 4])
    return data[:at] + width.to_bytes(4) + data[at + 4 :]


def clip(count: int = COUNT, **recipe: Any) -> Spoil:
    """Render the chunk by another recipe, or with another number of frames."""

    def spoil(good: Path, folder: Path) -> Path:
        made = Recipe(**{"ending": good.suffix, **recipe})
        plain = write_clip(folder / f"plain{made.ending}", COUNT, count, made)
        return with_colours(plain, folder / f"bad{made.ending}")

    return spoil


def copied(*options: str, before: tuple[str, ...] = ()) -> Spoil:
    """Copy a good chunk with options of ffmpeg; `before` are those for reading it."""

    def spoil(good: Path, folder: Path) -> Path:
        return ffmpeg(good, absent(good, folder), "-c", "copy", *options, before=before)

    return spoil


def in_track(primaries: int = 1, transfer: int = 1, matrix: int = 1, full: int = 0) -> Spoil:
    """Let the container tell these colours, by their numbers in ITU-T H.273."""
    return copied(*_track(primaries, transfer, matrix, full))


def in_header(
    primaries: int = 1, transfer: int = 1, matrix: int = 1, full: int = 0, **more: str
) -> Spoil:
    """Let H.264's own header tell these colours, and more of what it can tell."""
    told = {"colour_primaries": primaries, "transfer_characteristics": transfer,
            "matrix_coefficients": matrix, "video_full_range_flag": full, **more}  # fmt: skip
    words = ":".join(f"{name}={value}" for name, value in told.items())
    return copied("-bsf:v", f"h264_metadata={words}", *_track(primaries, transfer, matrix, full))


def _track(primaries: int, transfer: int, matrix: int, full: int) -> list[str]:
    told = {"color_primaries": primaries, "color_trc": transfer, "colorspace": matrix,
            "color_range": full + 1}  # fmt: skip
    return [word for name, value in told.items() for word in (f"-{name}", str(value))]


def retimed(change: Callable[[int], Fraction | int]) -> Spoil:
    """Write the chunk's packets with other times: a function of the frame's number, in frames."""
    return lambda good, folder: _with_packets(good, absent(good, folder), change)


def without_key_frame(good: Path, folder: Path) -> Path:
    """Leave out the first frame of a longer chunk, as a cut between two key frames does."""
    plain = write_clip(folder / "plain.mkv", COUNT - 1, COUNT + 1, Recipe(ending=".mkv"))
    longer = with_colours(plain, folder / "longer.mkv")
    return _with_packets(longer, absent(good, folder), lambda frame: frame - 1, skip=1)


def _with_packets(
    good: Path, bad: Path, change: Callable[[int], Fraction | int], skip: int = 0
) -> Path:
    clock = Fraction(1, 15360)
    with av.open(str(good)) as source, av.open(str(bad), "w") as target:
        video: Any = source.streams.video[0]
        packets = [packet for packet in source.demux(video) if packet.size]
        first = min(packet.pts for packet in packets)
        stream: Any = target.add_stream_from_template(video)
        for number, packet in enumerate(packets[skip:]):
            frame = round((packet.pts - first) * video.time_base * 30)
            packet.stream, packet.time_base = stream, clock
            packet.pts = round(change(frame) / 30 / clock)
            packet.dts = round(Fraction(number - 4, 30) / clock)
            target.mux(packet)
    return bad


def tracks_swapped(good: Path, folder: Path) -> Path:
    """Put the audio before the video."""
    return ffmpeg(good, absent(good, folder), "-c", "copy", "-map", "0:a", "-map", "0:v")
