"""Chunks through a storage: peak memory of the process that sends and fetches them, and speed.

    python tests/benchmarks/storage.py [CHUNKS [MEGABYTES]]      32 chunks of 128 MB are 4.3 GB

The S3 server runs in a process of its own on the same machine, so it shares disk and processors.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from stitching import own_memory
from storage_samples import serving

from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.blocks.storage.job_store import JobStore
from prefect_renderfarm.blocks.storage.manifest import ChunkResult, content

Item = TypeVar("Item")
Result = TypeVar("Result")

# As many chunks at once as an adapter renders, and as a merge run fetches, by default.
WIDTH = 4
COUNT, MEGABYTES = 32, 128


def bench_storage(folder: Path, count: int = COUNT, megabytes: int = MEGABYTES) -> None:
    """Send and fetch chunks through an S3 server, and copy the same files for comparison."""
    script = [sys.executable, __file__, str(count), str(megabytes), str(folder)]
    subprocess.run(script, check=True)


def travel(count: int, megabytes: int, folder: Path) -> None:
    """Do it in this process, and print what it took."""
    logging.disable(logging.WARNING)
    size = count * megabytes
    print(f"\n{count} chunks of {megabytes} MB through the storage, {WIDTH} at once", flush=True)
    chunks = [make_chunk(folder, number, megabytes) for number in range(count)]
    with serving(folder / "server") as server:
        store = JobStore(BucketStore(server.new_bucket()), "bench-0123456789ab")
        results = [described(number, path) for number, path in enumerate(chunks)]
        store.write("job.json", b"{}")  # the client is there, as in a run that renders
        # Importing took more memory than is in use now: only what comes from here on counts.
        Path("/proc/self/clear_refs").write_text("5")
        before = own_memory("VmRSS")
        sent: list[ChunkResult] = []
        ways: dict[str, Callable[[], object]] = {
            "publish": lambda: sent.extend(
                at_once(lambda result: store.publish(result, b""), results)
            ),
            "fetch": lambda: at_once(
                lambda result: store.fetch(result, folder / "fetched" / result.path.name), sent
            ),
        }
        seconds = {name: timed(way) for name, way in ways.items()}
        grown, peak = own_memory("VmHWM") - before, own_memory("VmHWM")
    seconds["cp"] = timed(
        lambda: at_once(lambda path: copy(path, folder / "copies" / path.name), chunks)
    )
    for name, took in seconds.items():
        ratio = took / seconds["cp"]
        print(f"  {name:<10} {took:8.1f} s   {size / took:6.0f} MB/s   {ratio:6.2f} x cp")
    print(f"  peak memory {peak / 1000:.0f} MB, {grown / 1000:.0f} MB over the process before it")


def make_chunk(folder: Path, number: int, megabytes: int) -> Path:
    """Write a file that no other is like."""
    path = folder / "chunks" / f"{number:05d}.mp4"
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1_000_000))
    return path


def described(number: int, path: Path) -> ChunkResult:
    """Return a chunk's manifest, as a worker makes it before it publishes."""
    size, sha256 = content(path) or (0, "")
    return ChunkResult(
        id=number, start_frame=number, frame_count=1, output_file=path.name, path=path,
        size=size, sha256=sha256, seconds=0.0,
    )  # fmt: skip


def copy(source: Path, target: Path) -> None:
    """Copy a file and flush it to the disk, as a fetched chunk is."""
    target.parent.mkdir(exist_ok=True)
    subprocess.run(["cp", source, target], check=True)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def at_once(call: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Call a function for all items, a few at once."""
    with ThreadPoolExecutor(WIDTH) as pool:
        return list(pool.map(call, items))


def timed(call: Callable[[], object]) -> float:
    """Return how many seconds a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


BENCHES: dict[str, Callable[[Path], None]] = {"storage": bench_storage}

if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:3]]
    if len(sys.argv) > 3:
        travel(*numbers, Path(sys.argv[3]))
    else:
        with tempfile.TemporaryDirectory(prefix="renderfarm-bench-") as scratch:
            bench_storage(Path(scratch), *numbers)
