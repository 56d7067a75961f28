"""Command lines and playlists, word by word."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from prefect_renderfarm.blocks import FfmpegStitcher, JobError
from prefect_renderfarm.blocks.media.model import Audio, Media
from prefect_renderfarm.blocks.processes.programs import split_command
from prefect_renderfarm.blocks.stitchers.audio import AudioMode, AudioPlan
from prefect_renderfarm.blocks.stitchers.ffmpeg import write_playlist

GLOBAL = [
    "-nostdin", "-hide_banner", "-loglevel", "warning",
    "-nostats", "-progress", "pipe:1", "-stats_period", "0.5", "-y",
]  # fmt: skip
NTSC = Fraction(30000, 1001)


def media(name: str, frames: int, reorder: int = 0, fps: Fraction = NTSC) -> Media:
    """Return what is known of a chunk that need not exist."""
    return Media(Path(name), frames, 0, fps, reorder, {}, None)


def test_copy_command() -> None:
    """A copy puts every frame on the grid, and begins decoding as early as B-frames need."""
    chunks = [media("/c/a.mp4", 5, reorder=1), media("/c/b.mp4", 7, reorder=2)]
    command = FfmpegStitcher(faststart=True).command(
        Path("/bin/ffmpeg"), [Path("/t/list"), Path("/t/audio")], Path("/o/f.mp4"),
        AudioPlan(AudioMode.ENCODE, Audio("pcm_s16le", 48_000, "stereo", 0)), chunks,
    )  # fmt: skip
    assert command == [
        "/bin/ffmpeg", "-f", "concat", "-safe", "0", "-i", "/t/list",
        "-channel_layout", "stereo", "-i", "/t/audio",
        "-map", "0:V:0", "-map", "1:a:0", "-b:a", "192000",
        "-bsf:v",
        "setts=pts=round(round((PTS-STARTPTS)*TB*30000/1001)/(30000/1001)/TB)"
        ":dts=round((N-2)/(30000/1001)/TB)",
        "-c:a", "aac", "-c:v", "copy", "-moov_size", "67824", "-movie_timescale", "30000",
        "-time_base:v", "1001/30000", "/o/f.mp4", *GLOBAL,
    ]  # fmt: skip


def test_encode_command() -> None:
    """Encoding sets a constant rate; further options come last and win."""
    stitcher = FfmpegStitcher(video_codec="libx264", output_options={"crf": "18", "r": "60"})
    command = stitcher.command(
        Path("ffmpeg"), [Path("list")], Path("f.mkv"), AudioPlan(AudioMode.NONE), [media("a", 1)]
    )
    assert command == [
        "ffmpeg", "-f", "concat", "-safe", "0", "-i", "list", "-map", "0:V:0",
        "-avoid_negative_ts", "disabled", "-c:v", "libx264", "-crf", "18",
        "-fps_mode", "cfr", "-r", "60", "-vf", "settb=1001/30000,setpts=N", "f.mkv",
        *GLOBAL,
    ]  # fmt: skip


def test_playlist(tmp_path: Path) -> None:
    """Names are plain, and the durations add up to the frames without drift."""
    chunks = [media(f"/c/it's\n{n}.mp4", 1) for n in range(1000)]
    lines = write_playlist(chunks, tmp_path).read_text().splitlines()
    assert lines[:3] == ["ffconcat version 1.0", "file 000000.mp4", "duration 0.033367"]
    assert (tmp_path / "000999.mp4").readlink() == Path("/c/it's\n999.mp4")
    total = sum(Fraction(line.split()[1]) for line in lines if line.startswith("duration"))
    assert total == Fraction(round(1000 / NTSC * 1_000_000), 1_000_000)


def test_split_command() -> None:
    """Words are split as a POSIX shell would, and nothing is expanded."""
    assert split_command(r"""a 'b c' "d \" e" f\ g $H *""") == [
        "a",
        "b c",
        'd " e',
        "f g",
        "$H",
        "*",
    ]
    for bad in ("", "   ", "a 'b", "a\0b"):
        with pytest.raises(JobError):
            split_command(bad)
