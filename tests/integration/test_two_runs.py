"""Two runs of one job at the same time: one works, the other waits; every chunk is paid once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from farm_client import FarmClient
from jobs import with_commands
from media_samples import frame_hashes
from pool_samples import job_of, rendered
from prefect_aws.s3 import S3Bucket
from processes_here import wait_for

from prefect_renderfarm.flows import RenderJob

CHUNKS = 8
PROGRAM = """
import json, logging, sys
from pathlib import Path
from prefect_aws.s3 import S3Bucket
from prefect_renderfarm.blocks import LocalAdapter, RemuxStitcher
from prefect_renderfarm.flows import render_job
logging.getLogger("prefect").setLevel("INFO")
given = json.loads(sys.argv[1])
render_job(
    given["job"], adapter=LocalAdapter(), stitcher=RemuxStitcher(), output_file=given["film"],
    storage=S3Bucket.load(given["storage"]) if given["storage"] else None,
    job_dir=given["folder"], concurrency=2,
)
"""


class Coordinator:
    """A run of a job in a process of its own."""

    def __init__(self, job: RenderJob, folder: Path, film: Path, storage: str | None) -> None:
        given = {
            "job": json.loads(job.to_json()),
            "folder": str(folder),
            "film": str(film),
            "storage": storage,
        }
        self.film = film
        self._log = film.with_suffix(".log")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, json.dumps(given)],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self) -> str:
        """Return what the run has logged."""
        return self._log.read_text()

    def kill(self) -> None:
        """Kill the run and all that it started, if it runs."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """Wait for the end of the run, which is to be a success."""
        assert self.process.wait(120) == 0, self.log()


def gated(job: RenderJob, folder: Path) -> RenderJob:
    """Let the last two chunks of a job wait for the file `go`."""
    return with_commands(
        job,
        {chunk.id: f"{chunk.command} --wait-for '{folder / 'go'}'" for chunk in job.chunks[-2:]},
    )


# tests/unit/state/test_job_lock.py has two processes with a folder, too.
@pytest.fixture(params=[pytest.param("folder", marks=pytest.mark.long), "S3"])
def storage(request: pytest.FixtureRequest, api: FarmClient) -> str | None:
    """Return the name of a storage block; None: the runs share a folder."""
    if request.param == "folder":
        return None
    bucket: S3Bucket = request.getfixturevalue("bucket")
    bucket.save("two-runs", overwrite=True)
    return "two-runs"


@contextmanager
def second_waits(
    job: RenderJob, storage: str | None, folder: Path, done: int
) -> Iterator[tuple[Coordinator, Coordinator]]:
    """Start a run of a job and, when it has begun more than some chunks, another that waits."""
    folders = [folder / "job"] * 2 if storage is None else [folder / "one", folder / "two"]
    first = Coordinator(job, folders[0], folder / "first.mp4", storage)
    try:
        wait_for(lambda: sum(rendered(folder).values()) > done, 90)
        second = Coordinator(job, folders[1], folder / "second.mp4", storage)
        wait_for(lambda: "waits for" in second.log(), 90)
        yield first, second
    finally:
        first.kill()


@pytest.mark.long
def test_second_run_waits_and_takes_what_is_done(storage: str | None, tmp_path: Path) -> None:
    """Each run has its film, every chunk is rendered once, and the second one says why it waits."""
    job = gated(job_of(CHUNKS, tmp_path, id="both"), tmp_path)
    with second_waits(job, storage, tmp_path, 0) as (first, second):
        (tmp_path / "go").touch()
        first.end()
        second.end()
    assert rendered(tmp_path) == Counter(range(CHUNKS))
    assert "waits for run 'render both' of job 'both' on" in second.log()
    assert f"{CHUNKS} of {CHUNKS} chunks are done already" in second.log()
    assert frame_hashes(first.film) == frame_hashes(second.film)
    assert len(frame_hashes(first.film)) == job.metadata.total_frames


@pytest.mark.long
def test_second_run_goes_on_where_a_killed_one_stopped(storage: str | None, tmp_path: Path) -> None:
    """A run that waits for a killed one goes on within a minute, with what that one has done."""
    job = gated(job_of(CHUNKS, tmp_path, id="handed over"), tmp_path)
    with second_waits(job, storage, tmp_path, 3) as (first, second):
        first.kill()
        (tmp_path / "go").touch()
        killed = time.monotonic()
        wait_for(lambda: "has died: its work is taken over" in second.log(), 60)
        print(f"taken over {time.monotonic() - killed:.1f} s after the kill")
        second.end()
    counts = rendered(tmp_path)
    assert set(counts) == set(range(CHUNKS))
    assert sum(counts.values()) <= CHUNKS + 2  # the two that were under way
    assert len(frame_hashes(second.film)) == job.metadata.total_frames
