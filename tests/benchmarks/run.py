"""Benchmarks: ratios against a peer that is measured in the same run, side by side.

    make bench                 all of them
    python tests/benchmarks/run.py stitch | job

Machines are shared and noisy: each pair is measured several times, turn by turn, and the ratio is
that of the medians.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "deployments")]

from conftest import PORT, FarmClient  # noqa: E402
from farm import Farm  # noqa: E402
from jobs import clip_command  # noqa: E402

from prefect_renderfarm.blocks import RemuxStitcher  # noqa: E402
from prefect_renderfarm.blocks.ffmpeg_binary import find_ffmpeg  # noqa: E402
from prefect_renderfarm.blocks.local_adapter import split_command  # noqa: E402
from prefect_renderfarm.flows import RenderJob, plan_job  # noqa: E402


def measure(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Run all ways in turn, `rounds` times; return the median seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(title: str, found: dict[str, float], peer: str) -> None:
    """Print each way's median and its ratio to the peer."""
    print(f"\n{title}")
    for name, seconds in found.items():
        print(f"  {name:<46} {seconds:8.2f} s   {seconds / found[peer]:6.2f} x {peer}")
    sys.stdout.flush()


def concat_copy(chunks: Sequence[Path], film: Path) -> None:
    """Do what most people do: FFmpeg's concat demuxer with `-c copy`."""
    playlist = film.with_suffix(".txt")
    playlist.write_text("".join(f"file '{chunk}'\n" for chunk in chunks))
    subprocess.run(
        [find_ffmpeg(), "-v", "error", "-nostdin", "-y", "-f", "concat", "-safe", "0",
         "-i", playlist, "-c", "copy", film],
        check=True,
    )  # fmt: skip


def noisy_chunk(path: Path, megabytes: float) -> Path:
    """Make a clip of 24 noisy frames of about the given size, with B-frames."""
    width = 320

    def encode() -> int:
        source = f"nullsrc=s={width}x{width * 9 // 16 // 2 * 2}:r=24,geq=random(1)*255:128:128"
        subprocess.run(
            [find_ffmpeg(), "-v", "error", "-nostdin", "-y", "-f", "lavfi", "-i", source,
             "-frames:v", "24", "-c:v", "libx264", "-preset", "ultrafast", "-bf", "2",
             "-qp", "24", "-pix_fmt", "yuv420p", path],
            check=True,
        )  # fmt: skip
        return path.stat().st_size

    width = round(width * (megabytes * 1_000_000 / encode()) ** 0.5) // 2 * 2
    encode()
    return path


def bench_stitch(folder: Path) -> None:
    """Stitching time against `cat` of the same files."""
    for count, megabytes in ((64, 17.0), (1000, 0.3)):
        chunks_folder = folder / f"{count}"
        chunks_folder.mkdir()
        first = noisy_chunk(chunks_folder / "0000.mp4", megabytes)
        chunks = [first] + [
            Path(shutil.copy(first, chunks_folder / f"{number:04d}.mp4"))
            for number in range(1, count)
        ]
        size = sum(chunk.stat().st_size for chunk in chunks)
        film = folder / "film.mp4"

        def cat(chunks: Sequence[Path] = chunks) -> None:
            with (folder / "cat.mp4").open("wb") as output:
                subprocess.run(["cat", *chunks], stdout=output, check=True)

        def remux(chunks: Sequence[Path] = chunks, film: Path = film) -> None:
            RemuxStitcher().stitch(chunks, film, fps=24, frame_counts=[24] * len(chunks))

        def concat(chunks: Sequence[Path] = chunks, film: Path = film) -> None:
            concat_copy(chunks, film)

        cat()
        found = measure({"cat": cat, "RemuxStitcher": remux, "ffmpeg -f concat -c copy": concat}, 3)
        show(f"stitch {count} chunks of {size / count / 1e6:.1f} MB", found, "cat")
        shutil.rmtree(chunks_folder)


def bench_job(folder: Path) -> None:
    """Run a job through the farm, and its commands on a thread pool with a concat copy."""
    width = 2
    frames = 32 * 48
    template = clip_command().replace("{output}", "{output} --sleep 1")
    job: RenderJob = plan_job(frames, 24, chunks=32, command_template=template, id="bench")
    farm = Farm(folder / "farm")
    try:
        farm.up(port=PORT)
        client = FarmClient(farm)

        def through_the_farm() -> None:
            path = folder / "farm-job" / "job.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(job.to_json())
            run = client.type_and_watch(
                "render-job/cloud", job=path, stitcher="remux-stitcher/default",
                output_file="film.mp4", concurrency=width,
            )  # fmt: skip
            assert run.state is not None
            assert run.state.is_completed(), run.state.message

        def by_hand() -> None:
            here = folder / "by-hand"
            (here / "chunks").mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(width) as pool:
                list(
                    pool.map(
                        lambda chunk: subprocess.run(
                            split_command(chunk.command), cwd=here, check=True, capture_output=True
                        ),
                        job.chunks,
                    )
                )
            concat_copy([here / chunk.output_file for chunk in job.chunks], here / "film.mp4")

        ways = {"thread pool + concat copy": by_hand, "render-job + merge-job": through_the_farm}
        found = measure(ways, 3)
        show(
            f"a job of 32 chunks, {width} at a time, two pools, from the command line to its end",
            found,
            "thread pool + concat copy",
        )
    finally:
        farm.down()


BENCHES = {"stitch": bench_stitch, "job": bench_job}

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCHES:
        with tempfile.TemporaryDirectory(prefix="renderfarm-bench-") as scratch:
            BENCHES[name](Path(scratch))
