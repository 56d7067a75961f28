"""What a job of 10,000 chunks takes of the process that coordinates it."""

from __future__ import annotations

import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "deployments")]

from farm import Farm  # noqa: E402
from media_samples import Recipe, write_clip  # noqa: E402

from prefect_renderfarm.blocks import LocalAdapter, WorkPoolAdapter  # noqa: E402
from prefect_renderfarm.flows import plan_job, render_job  # noqa: E402

CHUNKS, WIDTH = 10_000, 2


def bench_scale(folder: Path) -> None:
    """Render many chunks whose command is a copy: here, and by runs on a work pool."""
    from conftest import PORT  # not in the process that coordinates: it sets up a server's address

    farm = Farm(folder / "farm")
    try:
        farm.up(port=PORT)
        for way in ("tasks", "runs"):
            command = [sys.executable, __file__, str(folder / way), way, str(CHUNKS)]
            done = subprocess.run(
                command, env=farm.environment(), stdout=subprocess.PIPE, text=True, check=True
            )
            print(done.stdout.splitlines()[-1])
    finally:
        farm.down()


def coordinate(folder: Path, way: str, chunks: int) -> None:
    """Render in this process, and say what that took of it."""
    folder.mkdir(parents=True)
    clip = write_clip(folder / "clip.mp4", 0, 1, Recipe())
    job = plan_job(
        chunks, 24, chunks=chunks, id=f"scale-{way}",
        command_template=f"cp {shlex.quote(str(clip))} {{output}}",
    )  # fmt: skip
    adapter = (
        LocalAdapter()
        if way == "tasks"
        else WorkPoolAdapter(max_runs=WIDTH, target_minutes=2, poll_seconds=1)
    )
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    report = render_job(job, adapter=adapter, job_dir=folder, concurrency=WIDTH, merge=False)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert len(report.chunks) == chunks
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"{chunks:,} chunks by {way:5}: {time.monotonic() - started:6.0f} s of wall time, "
        f"{1000 * cpu / chunks:5.1f} ms of CPU a chunk (aim: 10), "
        f"at most {after.ru_maxrss / 1000:,.0f} MB (aim: 500)"
    )


BENCHES: dict[str, Callable[[Path], None]] = {"scale": bench_scale}

if __name__ == "__main__":
    coordinate(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
