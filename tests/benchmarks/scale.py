"""What a job of 10,000 chunks takes of the process that coordinates it."""

from __future__ import annotations

import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "support")]

from media_samples import Recipe, write_clip  # noqa: E402
from prefect import flow, task  # noqa: E402
from prefect.client.orchestration import SyncPrefectClient  # noqa: E402
from prefect.futures import wait  # noqa: E402
from prefect.task_runners import ThreadPoolTaskRunner  # noqa: E402
from repeating import repeating  # noqa: E402

from prefect_renderfarm.blocks import LocalAdapter, WorkPoolAdapter  # noqa: E402
from prefect_renderfarm.deployments.farm import Farm  # noqa: E402
from prefect_renderfarm.flows import plan_job, render_job  # noqa: E402

CHUNKS, WIDTH = 10_000, 2
PEERS = 1_000  # Prefect is meant for about as many task runs


def bench_scale(folder: Path, chunks: int = CHUNKS) -> None:
    """Render many chunks whose command is a copy: here, and by runs on a work pool."""
    from farm_client import (
        PORT,  # not in the process that coordinates: it sets up a server's address
    )

    farm = Farm(folder / "farm")
    try:
        farm.up(port=PORT)
        for way in ("peer", "tasks", "runs"):
            command = [sys.executable, __file__, str(folder / way), way, str(chunks)]
            with (folder / "log").open("ab") as log, _looked_at(farm):
                done = subprocess.run(
                    command, env=farm.environment(), stdout=subprocess.PIPE,
                    stderr=log, text=True, check=True,
                )  # fmt: skip
            print(done.stdout.splitlines()[-1])
    finally:
        farm.down()


@contextmanager
def _looked_at(farm: Farm) -> Iterator[None]:
    """Ask the server once a second what the page of a run asks it; print what it took to answer."""
    taken, failed = list[float](), 0
    runs = {"sort": "START_TIME_DESC", "limit": 20}
    tasks = {"task_runs": {"name": {"like_": "chunk"}}, "sort": "EXPECTED_START_TIME_DESC"}

    def look() -> None:
        nonlocal failed
        started = time.monotonic()
        answers = [
            client._client.post("/flow_runs/filter", json=runs),
            client._client.post("/task_runs/filter", json=tasks | {"limit": 20}),
        ]
        taken.append(time.monotonic() - started)
        failed += any(answer.is_error for answer in answers)

    with SyncPrefectClient(farm.api_url) as client, repeating(look, 1):
        yield
    taken.sort()
    print(
        f"the server, asked {len(taken)} times meanwhile: {statistics.median(taken):.2f} s to "
        f"answer, 95 % in {taken[len(taken) * 95 // 100]:.2f} s, all in {taken[-1]:.2f} s, "
        f"{failed} errors"
    )


def coordinate(folder: Path, way: str, chunks: int) -> None:
    """Render in this process, and say what that took of it."""
    folder.mkdir(parents=True)
    clip = write_clip(folder / "clip.mp4", 0, 1, Recipe())
    command = f"cp {shlex.quote(str(clip))} {{output}}"
    work = _plain_tasks(folder, command) if way == "peer" else _job(folder, command, way, chunks)
    count = PEERS if way == "peer" else chunks
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"{count:6,} chunks by {way:5}: {time.monotonic() - started:6.0f} s of wall time, "
        f"{1000 * cpu / count:5.1f} ms of CPU a chunk, at most {after.ru_maxrss / 1000:,.0f} MB"
        + ("" if way == "peer" else " (aims: 10 ms, 500 MB)")
    )


def _job(folder: Path, command: str, way: str, chunks: int) -> Callable[[], None]:
    job = plan_job(chunks, 24, chunks=chunks, id=f"scale-{way}", command_template=command)
    # Prefect takes 512 kB of parameters, which are some 3,000 chunks: so the job is a file.
    file = folder / "job.json"
    file.write_text(job.to_json())
    adapter = (
        LocalAdapter()
        if way == "tasks"
        else WorkPoolAdapter(max_runs=WIDTH, target_minutes=2, poll_seconds=1)
    )

    def work() -> None:
        report = render_job(
            str(file), adapter=adapter, job_dir=folder, concurrency=WIDTH, merge=False
        )
        assert len(report.chunks) == chunks

    return work


def _plain_tasks(folder: Path, command: str) -> Callable[[], None]:
    """Return a flow that runs each command as a task of Prefect's, and looks at nothing."""

    @task(name="copy")
    def copy(number: int) -> None:
        words = shlex.split(command.format(output=folder / f"{number}.mp4"))
        subprocess.run(words, check=True, capture_output=True)

    @flow(name="plain-tasks", task_runner=ThreadPoolTaskRunner(max_workers=WIDTH))
    def plain_tasks() -> None:
        wait(copy.map(range(PEERS)))

    return plain_tasks


BENCHES: dict[str, Callable[[Path], None]] = {"scale": bench_scale}

if __name__ == "__main__":
    coordinate(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
