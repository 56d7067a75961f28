"""Stitching: RemuxStitcher against `cat` of the same files and against ffmpeg's concat copy."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from comparing import measure, show

from prefect_renderfarm.blocks import FfmpegStitcher, RemuxStitcher
from prefect_renderfarm.blocks.processes.programs import find_ffmpeg
from prefect_renderfarm.blocks.stitchers.checked import ChunkCheck

FPS = 24
# Number of chunks; picture; frames a chunk; megabytes a chunk.
SIZES = ((64, "1920x1080", 120, 17.0), (1000, "1280x720", 24, 0.3))


@contextmanager
def memory_folder(needed: int) -> Iterator[Path]:
    """Give a folder in memory if there is room, so that no disk is measured; else a usual one."""
    memory = Path("/dev/shm")  # noqa: S108 -- a tmpfs
    room = memory.is_dir() and shutil.disk_usage(memory).free > needed
    with tempfile.TemporaryDirectory(dir=memory if room else None) as folder:
        print(f"({'in memory' if room else 'on disk'})")
        yield Path(folder)


def concat_copy(chunks: Sequence[Path], film: Path) -> None:
    """Do what most people do: FFmpeg's concat demuxer with `-c copy`."""
    playlist = film.with_suffix(".txt")
    playlist.write_text("".join(f"file '{chunk}'\n" for chunk in chunks))
    subprocess.run(
        [find_ffmpeg(), "-v", "error", "-nostdin", "-y", "-f", "concat", "-safe", "0",
         "-i", playlist, "-c", "copy", film],
        check=True,
    )  # fmt: skip


def make_chunk(path: Path, size: str, frames: int, megabytes: float) -> None:
    """Encode a noisy test picture at the bit rate that brings it to about a size.

    A bit rate, and not a quality: so the first frames are large, and they are what libav decodes
    when it opens a file to find out what it holds.
    """
    wanted = megabytes * 8_000_000 * FPS / frames
    lowest, highest = 0.2 * wanted, 1.2 * wanted
    for _ in range(5):
        bits = (lowest + highest) / 2
        encode_chunk(path, size, frames, round(bits))
        if path.stat().st_size > megabytes * 1_000_000:
            highest = bits
        else:
            lowest = bits


def encode_chunk(path: Path, size: str, frames: int, bits_per_second: int) -> None:
    """Encode a noisy test picture with x264."""
    source = f"testsrc2=s={size}:r={FPS},noise=alls=20:allf=t"
    subprocess.run(
        [find_ffmpeg(), "-v", "error", "-nostdin", "-y", "-f", "lavfi", "-i", source,
         "-frames:v", str(frames), "-c:v", "libx264", "-preset", "fast",
         "-b:v", str(bits_per_second), "-pix_fmt", "yuv420p", path],
        check=True,
    )  # fmt: skip


def make_chunks(folder: Path, count: int, size: str, frames: int, megabytes: float) -> list[Path]:
    """Encode one chunk and copy it under as many names."""
    folder.mkdir()
    first = folder / "00000.mp4"
    make_chunk(first, size, frames, megabytes)
    return [first] + [
        Path(shutil.copy(first, folder / f"{number:05d}.mp4")) for number in range(1, count)
    ]


def bench_stitch(_: Path) -> None:
    """Whole assemblies, checks included, and the checks before them alone."""
    for count, picture, frames, megabytes in SIZES:
        with memory_folder(round(6 * count * megabytes * 1_000_000)) as folder:
            chunks = make_chunks(folder / "chunks", count, picture, frames, megabytes)
            film = folder / "film.mp4"
            counts = [frames] * count

            def cat(chunks: Sequence[Path] = chunks, film: Path = film) -> None:
                with film.open("wb") as output:
                    subprocess.run(["cat", *chunks], stdout=output, check=True)

            def remux(
                chunks: Sequence[Path] = chunks, film: Path = film, counts: list[int] = counts
            ) -> None:
                RemuxStitcher().stitch(chunks, film, fps=FPS, frame_counts=counts)

            def check(
                chunks: Sequence[Path] = chunks, film: Path = film, counts: list[int] = counts
            ) -> None:
                checks = ChunkCheck(chunks, film, FPS, counts)
                for _ in chunks:
                    checks.take()

            def concat(chunks: Sequence[Path] = chunks, film: Path = film) -> None:
                concat_copy(chunks, film)

            ways = {
                "cat": cat,
                "RemuxStitcher": remux,
                "ffmpeg -f concat -c copy": concat,
                "the checks before, alone": check,
            }
            found = measure(ways, 5, before=lambda film=film: film.unlink(missing_ok=True))
            size = sum(chunk.stat().st_size for chunk in chunks) / count / 1e6
            show(f"stitch {count} chunks of {size:.1f} MB, {picture}", found, "cat")
            ratio = found["ffmpeg -f concat -c copy"] / found["RemuxStitcher"]
            each = found["the checks before, alone"] / count * 1000
            print(f"  concat copy / RemuxStitcher {ratio:.1f}; checks before {each:.2f} ms a chunk")


def bench_last_chunk(_: Path) -> None:
    """Time from the last chunk to the film, for films of 16 and of 128 times 17 MB."""
    print("\nfrom the last chunk to the finished film, in a stitcher that has the others already")
    _, picture, frames, megabytes = SIZES[0]
    found: dict[str, float] = {}
    with memory_folder(round(300 * megabytes * 1_000_000)) as folder:
        chunks = make_chunks(folder / "chunks", 128, picture, frames, megabytes)
        for ending in (".mp4", ".mkv", ".ts"):
            for count in (16, 128):
                found[f"{count} chunks, {ending}"] = last_chunk_seconds(
                    chunks[:count], folder / f"film{ending}", frames
                )
        found["cat of one chunk"] = measure(
            {"": lambda: copy_one(chunks[0], folder / "copy.mp4")}, 5
        )[""]
    show("", found, "cat of one chunk")


def copy_one(chunk: Path, target: Path) -> None:
    """Copy one chunk with `cat`."""
    with target.open("wb") as output:
        subprocess.run(["cat", chunk], stdout=output, check=True)


def last_chunk_seconds(chunks: Sequence[Path], film: Path, frames: int) -> float:
    """Append all chunks but the last, wait, and measure what is left."""
    stitcher = RemuxStitcher(faststart=film.suffix == ".mp4")
    with stitcher.grow(chunks, film, fps=FPS, frame_counts=[frames] * len(chunks)) as growing:
        for _ in chunks[:-1]:
            growing.append()
        time.sleep(1.0)
        started = time.perf_counter()
        growing.append()
    seconds = time.perf_counter() - started
    film.unlink()
    return seconds


def bench_memory(_: Path) -> None:
    """Peak memory of an assembly over that of the process before it, for two lengths of film."""
    print("\npeak memory of an assembly, over the process before it")
    _, picture, frames, megabytes = SIZES[0]
    with memory_folder(round(300 * megabytes * 1_000_000)) as folder:
        chunks = make_chunks(folder / "chunks", 128, picture, frames, megabytes)
        for stitcher in (RemuxStitcher, FfmpegStitcher):
            for count in (16, 128):
                script = [sys.executable, __file__, stitcher.__name__, str(frames)]
                done = subprocess.run(
                    [*script, folder / "film.mp4", *chunks[:count]],
                    check=True, capture_output=True, text=True,
                )  # fmt: skip
                size = count * megabytes
                print(f"  {stitcher.__name__:<16} {size:6.0f} MB of film {done.stdout.rstrip()}")


def peak_of_one() -> None:
    """Stitch in this process, and print by how much its peak memory grew; used by the above."""
    name, frames, film, *chunks = sys.argv[1:]
    stitcher = {"RemuxStitcher": RemuxStitcher, "FfmpegStitcher": FfmpegStitcher}[name]()
    # Importing took more memory than is in use now: only what comes from here on counts.
    Path("/proc/self/clear_refs").write_text("5")
    before = own_memory("VmRSS")
    counts = [int(frames)] * len(chunks)
    stitcher.stitch([Path(chunk) for chunk in chunks], Path(film), fps=FPS, frame_counts=counts)
    own = own_memory("VmHWM") - before
    program = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"{own / 1000:6.0f} MB, and {program / 1000:.0f} MB of ffmpeg")


def own_memory(name: str) -> int:
    """Return a figure of this process from proc(5), in kilobytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


BENCHES: dict[str, Callable[[Path], None]] = {
    "stitch": bench_stitch,
    "last-chunk": bench_last_chunk,
    "memory": bench_memory,
}

if __name__ == "__main__":
    peak_of_one()
