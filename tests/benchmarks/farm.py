"""A hundred thousand chunks, a thousand at a time: what such a job takes of its coordinator.

    make bench farm                                       both ways, and the end of a job
    python tests/benchmarks/farm.py pool 500000 1000      one way, with other numbers

The machines are virtual (tests/support/virtual_farm.py, virtual_workers.py), the coordinator is
not.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "support")]

import httpx  # noqa: E402
import virtual_farm as virtual  # noqa: E402
from virtual_workers import serving_virtually  # noqa: E402

from prefect_renderfarm.blocks import HttpAdapter  # noqa: E402
from prefect_renderfarm.deployments.farm import Farm  # noqa: E402
from prefect_renderfarm.flows import render_job  # noqa: E402
from prefect_renderfarm.flows.rendering.attempts import SlowChunks  # noqa: E402

CHUNKS, WIDTH = 100_000, 1_000
# The spread of chunks and of attempts at one chunk, of which the sum of squares is the same.
SPREADS = {"chunks": (1.0, 0.0), "both": (0.7, 0.7), "machines": (0.0, 1.0)}


def bench_farm(folder: Path) -> None:
    """Render a large job on virtual machines in both ways; then see what becomes of its end."""
    from farm_client import (
        PORT,  # not in the process that coordinates: it sets up a server's address
    )

    farm = Farm(folder / "farm")
    try:
        farm.up(port=PORT)
        for way in ("http", "pool"):
            command = [sys.executable, __file__, way, str(CHUNKS), str(WIDTH)]
            subprocess.run(command, env=farm.environment(), check=True)
    finally:
        farm.down()
    for spread in SPREADS:
        subprocess.run([sys.executable, __file__, "end", "10000", "500", spread], check=True)


def by_http(folder: Path, chunks: int, width: int) -> None:
    """Have a job rendered by HTTP workers, with `render_job` itself, and print what it took."""
    file = folder / "job.json"
    file.write_text(virtual.virtual_spec(chunks).to_json())
    storage = virtual.VirtualStorage()
    with serving_virtually(chunks, width) as url, measured("http", chunks, width) as figures:
        # All connections are opened at once: the first ones wait for the last.
        adapter = HttpAdapter(url=url, max_in_flight=width, health_path="", connect_timeout=60)
        report = render_job(
            str(file), storage=storage.block, job_dir=folder / "job", retries=5, retry_delay=0.01,
            adapter=adapter, merge=False,
        )  # fmt: skip
        assert [result.id for result in report.chunks] == list(range(chunks))
        figures |= httpx.get(f"{url}/stats", timeout=60).json() | {"requests": storage.requests}


def by_pool(folder: Path, chunks: int, width: int) -> None:
    """Have a job rendered by runs on a work pool, and print what it took."""
    with measured("pool", chunks, width) as figures:
        machines, results = virtual.render_by_pool(
            folder, chunks, width, virtual.Times(), SlowChunks.REPORT
        )
        assert [result.id for result in results] == list(range(chunks))
        figures |= {"seconds": machines.clock.now, "attempts": machines.attempts}
        figures |= {"requests": machines.storage.requests, "storage": machines.storage.size()}
        figures |= {"busy": machines.refused, "lost": machines.lost}


@contextmanager
def measured(way: str, chunks: int, width: int) -> Iterator[dict[str, Any]]:
    """Print what the block took of this process, and how long the job took by its own clock."""
    figures: dict[str, Any] = {}
    before, started = time.process_time(), time.monotonic()
    yield figures
    cpu = time.process_time() - before - virtual.uncounted.seconds
    storage = figures.get("storage", 0) / 1e6
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000 - storage
    attempts, requests = figures["attempts"], figures["requests"]
    ideal = virtual.list_schedule(attempts, width)
    print(
        f"{chunks:,} chunks by {way}, {width:,} at once, {len(attempts):,} attempts, "
        f"{figures['lost']:,} lost, {figures['busy']:,} answers of 429\n"
        f"  {1000 * cpu / chunks:.2f} ms of CPU a chunk (aim: 5), at most {memory:,.0f} MB (500), "
        f"without {storage:,.0f} MB of the virtual storage\n"
        f"  makespan {figures['seconds']:,.0f} s, {figures['seconds'] / ideal:.3f} times that of a "
        f"list schedule of the same attempts (1.1): {ideal:,.0f} s; all attempts added up and "
        f"divided by {width:,}: {sum(attempts) / width:,.0f} s; the longest: {max(attempts):,.0f}\n"
        f"  {sum(requests.values()) / chunks:.3f} requests of the coordinator to the storage a "
        f"chunk: {dict(requests)}\n  {time.monotonic() - started:.0f} s of this machine's time",
        flush=True,
    )


def end(folder: Path, chunks: int, width: int, spread: str) -> None:
    """Print what second attempts at slow chunks gain and cost, by where slowness comes from."""
    chunk, machine = SPREADS[spread]
    times = virtual.Times(chunk=chunk, machine=machine)
    figures = {}
    for slow in (SlowChunks.REPORT, SlowChunks.AUTO):
        machines, _ = virtual.render_by_pool(folder / slow, chunks, width, times, slow)
        figures[slow] = machines.clock.now, machines.paid
    (alone, paid), (twice, more) = figures.values()
    print(
        f"{chunks:,} chunks, {width:,} at once, spread {spread:8}: makespan {alone:,.0f} s, with "
        f"second attempts {twice:,.0f} s ({100 * (twice / alone - 1):+.1f} %), paid "
        f"{100 * (more / paid - 1):+.2f} %",
        flush=True,
    )


BENCHES: dict[str, Callable[[Path], None]] = {"farm": bench_farm}

if __name__ == "__main__":
    way, count, at_once, *more = sys.argv[1:]
    run: dict[str, Callable[..., None]] = {"http": by_http, "pool": by_pool, "end": end}
    with tempfile.TemporaryDirectory(prefix="renderfarm-bench-") as scratch:
        run[way](Path(scratch), int(count), int(at_once), *more)
