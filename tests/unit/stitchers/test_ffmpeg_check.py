"""Which ffmpeg assembles: the carried one, or one that has shown that it writes exact films."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import pytest
from media_samples import Recipe, frame_hashes, frame_times, write_chunks
from repository import ROOT

from prefect_renderfarm.blocks import FfmpegStitcher, LocalAdapter, SetupError, WorkerJob
from prefect_renderfarm.blocks.processes.programs import find_ffmpeg
from prefect_renderfarm.blocks.stitchers.ffmpeg import _write_sample

# The arguments of a command are "$@"; `swap` writes others into `new`.
_WRAPPER = """#!{python}
import subprocess, sys
from pathlib import Path
words = sys.argv[1:]
with Path(__file__).with_suffix(".log").open("a") as log:
    print(*words, file=log)
def swap(old, new):
    global words
    words = [word.replace(old, new) for word in words]
def drop(option):
    place = words.index(option) if option in words else len(words)
    del words[place : place + 2]
def before_film(*new):
    global words
    film = next(place for place, word in enumerate(words) if word.startswith("/"))
    words = [*words[:film], *new, *words[film:]]
{change}
sys.exit(subprocess.run([{ffmpeg!r}, *words]).returncode)
"""
# What an ffmpeg may do wrong, and what is said of it.
_FAULTS = {
    "display times": (
        'swap("setts=pts=round(", "setts=pts=1+N*N+round(")',
        "a hole at frame 1",
    ),
    "decoding times": (
        'drop("-time_base:v"); swap(":dts=round((N-", ":dts=-9000+N-0*round((N-")',
        "by its decoding times",
    ),
    "rate and length": ('swap(":dts=", ":duration=9009:dts=")', "s in its header, not 0.700700 s"),
    "a frame too few": ('before_film("-frames:v", "20")', "has 20 frames"),
    "pictures": (
        'swap("copy", "libx264"); before_film("-qp", "40", "-bf", "2", "-video_track_timescale",'
        ' "30000")',
        "other pictures than its chunks",
    ),
    "no option": ('before_film("-no_such_option", "1")', "Unrecognized option 'no_such_option'"),
    "no film": ("sys.exit(0)", "does not exist"),
}


def wrapper(folder: Path, change: str = "") -> Path:
    """Write an ffmpeg that is the carried one, with a fault; it logs its commands."""
    program = folder / "my-ffmpeg"
    program.write_text(
        _WRAPPER.format(python=sys.executable, ffmpeg=str(find_ffmpeg()), change=change)
    )
    program.chmod(0o755)
    return program


def calls_of(program: Path) -> int:
    """Return how often a wrapper was called."""
    log = program.with_suffix(".log")
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write three chunks with B-frames."""
    recipe = Recipe(fps=Fraction(30_000, 1001))
    return write_chunks(tmp_path_factory.mktemp("chunks"), [6, 6, 6], recipe)


@pytest.fixture(scope="module")
def old_ffmpeg() -> Path:
    """Return ffmpeg 4.2, the one that imageio-ffmpeg 0.4.9 carries, by its name in a folder."""
    folder = Path(sys.prefix) / "old-ffmpeg"
    if not folder.exists():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        lock = ROOT / "tests" / "support" / "old-ffmpeg.lock"
        subprocess.run([*install, "--require-hashes", "--target", folder, "-r", lock], check=True)
    [program] = (folder / "imageio_ffmpeg" / "binaries").glob("ffmpeg-*")
    link = folder / "bin" / "ffmpeg"
    if not link.exists():
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(program)
    return link


def test_old_ffmpeg_on_path(
    old_ffmpeg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old ffmpeg that is first on PATH renders chunks, and assembles nothing."""
    monkeypatch.setenv("PATH", f"{old_ffmpeg.parent}{os.pathsep}{os.environ['PATH']}")
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"{number}.mp4")
        source = f"testsrc2=size=160x96:rate=30000/1001,trim=start_frame={number * 6}"
        command = (
            f"ffmpeg -nostdin -f lavfi -i {source} -frames:v 6 -c:v libx264 -pix_fmt yuv420p "
            f"-video_track_timescale 30000 {paths[-1]}"
        )
        done = LocalAdapter().execute(WorkerJob(command=command, cwd=tmp_path))
        assert done.exit_code == 0, done.stderr
        assert "ffmpeg version 4.2" in done.stderr
    film = tmp_path / "film.mp4"
    report = FfmpegStitcher().stitch(paths, film, fps="30000/1001", frame_counts=[6] * 3)
    assert report.clock_error == 0
    assert frame_times(film) == [Fraction(number * 1001, 30_000) for number in range(18)]
    assert frame_hashes(film) == [each for path in paths for each in frame_hashes(path)]


def test_old_ffmpeg_is_refused_before_a_chunk_is_there(old_ffmpeg: Path, tmp_path: Path) -> None:
    """An old ffmpeg that the block names is refused by its path, with what is wrong with it."""
    stitcher = FfmpegStitcher(ffmpeg=old_ffmpeg)
    with pytest.raises(SetupError, match=rf"{old_ffmpeg}.*_timescale.*'ffmpeg' field empty"):
        stitcher.check_output(tmp_path / "film.mp4", [tmp_path / "0.mp4"])


def test_sample_has_b_frames(tmp_path: Path) -> None:
    """The chunks with which a program is tested are decoded in another order than displayed."""
    path = tmp_path / "sample.mp4"
    _write_sample(path)
    with av.open(str(path)) as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert [time // 1001 for time in times] == [0, 3, 1, 2, 6, 4, 5]
    assert len(set(frame_hashes(path))) == 7


@pytest.mark.parametrize("name", _FAULTS)
def test_fault_is_noticed(name: str, chunks: list[Path], tmp_path: Path) -> None:
    """An ffmpeg with a fault is refused, whatever the fault, and no film is left."""
    change, words = _FAULTS[name]
    stitcher = FfmpegStitcher(ffmpeg=wrapper(tmp_path, change))
    with pytest.raises(
        SetupError, match=rf"my-ffmpeg' does not .* exact films: .*{re.escape(words)}"
    ):
        stitcher.stitch(chunks, tmp_path / "film.mp4", fps="30000/1001")
    assert not (tmp_path / "film.mp4").exists()


def test_what_was_found_is_kept(chunks: list[Path], tmp_path: Path) -> None:
    """A named ffmpeg shows once that it is exact, and again when it has been replaced."""
    program = wrapper(tmp_path)
    stitch: Callable[[], object] = lambda: FfmpegStitcher(ffmpeg=program).stitch(  # noqa: E731
        chunks, tmp_path / "film.mkv", fps="30000/1001"
    )
    stitch()
    first = calls_of(program)
    assert first > 1
    stitch()
    assert calls_of(program) == first + 1
    wrapper(tmp_path, 'before_film("-frames:v", "20")')
    with pytest.raises(SetupError, match="has 20 frames"):
        stitch()


def test_variable_names_no_other_one(
    chunks: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that imageio-ffmpeg's variable names is held to the same."""
    program = wrapper(tmp_path, 'before_film("-frames:v", "20")')
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    with pytest.raises(SetupError, match="has 20 frames"):
        FfmpegStitcher().stitch(chunks, tmp_path / "film.mp4", fps="30000/1001")
