"""Never a broken film: assemblies that find the disk full at random moments, or broken."""

from __future__ import annotations

import errno
import os
import random
import re
import resource
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from media_samples import Recipe, frame_hashes, write_clip

from prefect_renderfarm import blocks
from prefect_renderfarm.blocks import AssemblyError, RemuxStitcher
from prefect_renderfarm.blocks.media.reader import read_media
from prefect_renderfarm.blocks.processes.programs import find_ffmpeg
from prefect_renderfarm.blocks.stitchers import remux as remux_stitcher
from prefect_renderfarm.blocks.stitchers.ffmpeg import write_playlist
from prefect_renderfarm.blocks.storage.atomic_file import scratch_folder

ATTEMPTS = 20
CHUNKS, CHUNK_FRAMES = 14, 200
PAGE = 4096
DISK_BYTES = 4_000 * PAGE
REMUX = [("RemuxStitcher", "stitch", "film.mp4"), ("RemuxStitcher", "grow", "film.mkv")]
FFMPEG = ("FfmpegStitcher", "stitch", "film.mp4")
QUIET_FFMPEG = ("FfmpegStitcher", "stitch", "film.mkv")
# Their films have a long index: of B-frames in mp4, of key frames in Matroska.
RECIPES = {
    ".mp4": Recipe(width=64, height=48),
    ".mkv": Recipe(".mkv", "mjpeg", width=32, height=32, pixel_format="yuvj420p"),
}


class Chunks(NamedTuple):
    """Chunks, an older film, and the frames of the new one."""

    paths: list[Path]
    old: bytes
    frames: list[str]


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chunks]:
    """Make chunks for each kind of film."""
    folder, made = tmp_path_factory.mktemp("c"), {}
    for ending, recipe in RECIPES.items():
        paths = [folder / f"{number}{ending}" for number in range(CHUNKS)]
        data = write_clip(paths[0], 0, CHUNK_FRAMES, recipe).read_bytes()
        for path in paths[1:]:
            path.write_bytes(data)
        made[ending] = Chunks(paths, data, frame_hashes(paths[0]) * CHUNKS)
    return made


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Mount a small disk."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk can only be mounted by root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def room(disk: Path, pages: int) -> Iterator[None]:
    """Leave so much of a disk, and no more."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - pages * PAGE)
    assert shutil.disk_usage(disk).free == pages * PAGE
    try:
        yield
    finally:
        ballast.unlink()


def assembly(
    stitcher: str, mode: str, film: Path, chunks: Chunks, ffmpeg: Path | None = None
) -> Callable[[], None]:
    """Return what assembles a film in this process."""
    block = getattr(blocks, stitcher)(**({"ffmpeg": ffmpeg} if ffmpeg else {}))
    counts = [CHUNK_FRAMES] * len(chunks.paths)

    def assemble() -> None:
        if mode == "stitch":
            block.stitch(chunks.paths, film, fps=30, frame_counts=counts)
            return
        with block.grow(chunks.paths, film, fps=30, frame_counts=counts) as growing:
            for _ in chunks.paths:
                growing.append()

    return assemble


def trailer_of(film: Path) -> int:
    """Return where the index of a film begins, which is written last."""
    data = film.read_bytes()
    return data.rindex(b"moov") - 4 if film.suffix == ".mp4" else data.rindex(b"\x1c\x53\xbb\x6b")


def scratch_pages(chunks: Chunks, disk: Path) -> int:
    """Return how much of a disk the files take from which ffmpeg learns of the chunks."""
    free = shutil.disk_usage(disk).free
    with scratch_folder(disk / "film.mp4") as folder:
        write_playlist([read_media(path) for path in chunks.paths], folder)
        return (free - shutil.disk_usage(disk).free) // PAGE


def quiet_ffmpeg(folder: Path) -> Path:
    """Return an ffmpeg that tells of no failure, as ffmpeg 5.1 tells of none at the trailer."""
    program = folder / "ffmpeg"
    program.write_text(f'#!/bin/sh\n"{find_ffmpeg()}" "$@" 2>/dev/null\nexit 0\n')
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("stitcher", "mode", "name", "moment"),
    [(*which, "trailer") for which in (*REMUX, FFMPEG, QUIET_FFMPEG)]
    + [pytest.param(*which, "mid-write", marks=pytest.mark.long) for which in (*REMUX, FFMPEG)],
)
def test_full_disk(
    stitcher: str,
    mode: str,
    name: str,
    moment: str,
    chunks: dict[str, Chunks],
    disk: Path,
    tmp_path: Path,
) -> None:
    """Without room for all of it the old film stays, and the error names the film and the disk."""
    film, given = disk / name, chunks[Path(name).suffix]
    quiet = quiet_ffmpeg(tmp_path) if (stitcher, mode, name) == QUIET_FFMPEG else None
    assemble = assembly(stitcher, mode, film, given, quiet)
    assemble()
    size, trailer = film.stat().st_size, trailer_of(film)
    film.write_bytes(given.old)
    beside = scratch_pages(given, disk) if stitcher == "FfmpegStitcher" else 0
    pages = (
        range(trailer // PAGE)
        if moment == "mid-write"
        else range(trailer // PAGE + 1, size // PAGE)
    )
    chance = random.Random(f"{stitcher} {mode} {moment}")  # noqa: S311
    for place in chance.choices(pages, k=ATTEMPTS):
        with room(disk, beside + place), pytest.raises(AssemblyError) as caught:
            assemble()
        assert str(film) in str(caught.value)
        told = f"the disk at '{disk}' has ([0-9,]+) of {DISK_BYTES:,} bytes free"
        [free] = re.findall(told, str(caught.value))
        assert int(free.replace(",", "")) < 16 * PAGE  # so it was when the film did not fit
        assert film.read_bytes() == given.old
        assert [path.name for path in disk.iterdir()] == [name]
    with room(disk, beside + size // PAGE + 1):
        assemble()
    assert frame_hashes(film) == given.frames
    film.unlink()


@pytest.mark.parametrize(
    ("stitcher", "mode", "name"), [REMUX[0], pytest.param(*REMUX[1], marks=pytest.mark.long)]
)
def test_not_one_byte_is_lost(
    stitcher: str, mode: str, name: str, chunks: dict[str, Chunks], tmp_path: Path
) -> None:
    """If the end of a film is cut at any byte, down to the last one, the old film stays."""
    film, given = tmp_path / name, chunks[Path(name).suffix]
    assemble = assembly(stitcher, mode, film, given)
    assemble()
    size, trailer = film.stat().st_size, trailer_of(film)
    film.write_bytes(given.old)
    chance = random.Random(f"{stitcher} {mode}")  # noqa: S311
    usual, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in [*chance.sample(range(trailer, size), ATTEMPTS - 1), size - 1]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
        try:
            with pytest.raises(AssemblyError, match="cannot be written: File too large; the disk"):
                assemble()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (usual, most))
        assert film.read_bytes() == given.old
        assert [path.name for path in tmp_path.iterdir()] == [name]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        assemble()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (usual, most))
    assert frame_hashes(film) == given.frames


@pytest.mark.parametrize("moment", ["first", "last of the film", "complete"])
@pytest.mark.parametrize(("stitcher", "mode", "name"), [*REMUX, FFMPEG])
def test_error_of_a_flush_fails_the_film(
    stitcher: str,
    mode: str,
    name: str,
    moment: str,
    chunks: dict[str, Chunks],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A disk reports lost data once: an error of any flush fails the film, and of no later film."""
    film, given = tmp_path / name, chunks[Path(name).suffix]
    assemble = assembly(stitcher, mode, film, given)
    monkeypatch.setattr(remux_stitcher, "_FLUSH_BYTES", 1)
    whole: list[int] = []  # the sizes of a film at its flushes

    def note(descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            whole.append(status.st_size)

    monkeypatch.setattr(os, "fsync", note)
    assemble()
    in_background = [size for size in whole if size < whole[-1]]
    assert bool(in_background) is (stitcher == "RemuxStitcher")
    # A flush that nothing follows but the end of the film is waited for there.
    least = {"first": 0, "last of the film": max(in_background, default=0), "complete": whole[-1]}
    film.write_bytes(given.old)
    failed: list[int] = []

    def fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        regular = stat.S_ISREG(status.st_mode) and status.st_size >= least[moment]
        if regular and not failed:
            failed.append(descriptor)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(AssemblyError, match="Input/output error"):
        assemble()
    assert len(failed) == 1
    assert film.read_bytes() == given.old
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assemble()
    assert frame_hashes(film) == given.frames


def test_first_error_is_told(
    chunks: dict[str, Chunks], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong with a grown film is told, not what comes of closing it twice."""

    def refuse(*_: object) -> None:
        raise AssemblyError("too short")

    monkeypatch.setattr(remux_stitcher, "check_figures", refuse)
    given = chunks[".mkv"]
    with pytest.raises(AssemblyError, match=r"^too short$"):
        assembly(RemuxStitcher.__name__, "grow", tmp_path / "film.mkv", given)()
    assert list(tmp_path.iterdir()) == []
