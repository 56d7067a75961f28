"""Two jobs in one folder whose chunks have the same files: one after the other."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from jobs import small_job, with_commands
from media_samples import frame_hashes
from pool_samples import in_background
from processes_here import wait_for

from prefect_renderfarm.blocks import LocalAdapter, RemuxStitcher
from prefect_renderfarm.blocks.errors import RenderStopped
from prefect_renderfarm.flows import RenderJob, merge_job
from prefect_renderfarm.flows.state.file_locks import taking_turns
from prefect_renderfarm.flows.state.job_folder import JobFolder


def changed(job: RenderJob) -> RenderJob:
    """Return the job with another picture in one chunk: another job, with the same files."""
    return with_commands(job, {1: job.chunks[1].command.replace("--start 6", "--start 60")})


@contextmanager
def at_work(folder: JobFolder) -> Iterator[subprocess.Popen[str]]:
    """Have another process at a job's files."""
    code = (
        "import sys, pathlib, prefect_renderfarm.flows.state.file_locks as turns;"
        "from prefect_renderfarm.flows.state.job_folder import JobFolder;"
        "from prefect_renderfarm.flows import RenderJob;"
        "job = RenderJob.model_validate_json(sys.stdin.readline());"
        "turn = turns.taking_turns(JobFolder(pathlib.Path(sys.argv[1]), job));"
        "turn.__enter__(); print('mine', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, folder.path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(folder.job.model_dump_json(by_alias=True) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "mine\n"
        yield process
        process.kill()


def test_another_job_waits_and_the_dead_hold_nothing(tmp_path: Path) -> None:
    """Runs of one job, and jobs with other files, do not wait; who is killed holds up nobody."""
    first = JobFolder(tmp_path, small_job())
    second = JobFolder(tmp_path, changed(small_job()))
    entered = threading.Event()

    def enter() -> None:
        with taking_turns(second):
            entered.set()

    with at_work(first) as other, ThreadPoolExecutor(1) as pool:
        with taking_turns(first):
            pass
        with taking_turns(JobFolder(tmp_path, small_job(output_template="others/{id}.mp4"))):
            pass
        waiting = pool.submit(enter)
        assert not entered.wait(2)
        other.send_signal(signal.SIGKILL)
        waiting.result(30)


def test_waiting_ends(tmp_path: Path) -> None:
    """Who waits hears why not to, and can have enough of it."""
    first = JobFolder(tmp_path, small_job())
    second = JobFolder(tmp_path, changed(small_job()))
    with at_work(first):
        why = f"the same files as those of {first.job.key}: its render-job is gone"
        with (
            pytest.raises(RenderStopped, match=why),
            taking_turns(second, why_not=lambda: "its render-job is gone"),
        ):
            pass
        with (
            pytest.raises(RenderStopped, match="for more than 1 s"),
            taking_turns(second, patience=1),
        ):
            pass


@pytest.mark.usefixtures("api")
def test_jobs_with_the_same_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A job that was changed while it is rendered is rendered when that is over."""
    folder = tmp_path / "job"
    job = small_job()
    new = changed(job)
    gate = tmp_path / "go"
    old = with_commands(job, {2: f"{job.chunks[2].command} --wait-for '{gate}'"})
    options = {"adapter": LocalAdapter(), "job_dir": folder, "concurrency": 3}
    with caplog.at_level(logging.INFO):
        first = in_background(old, **options)
        wait_for(lambda: (folder / old.chunks[1].output_file).exists(), 60)
        second = in_background(new, **options)
        wait_for(lambda: f"those of {old.key}: waiting for its run" in caplog.text, 60)
        gate.touch()
        assert first.result(60).reused == ()
        assert second.result(60).reused == (0,)
    merge_job(new, stitcher=RemuxStitcher(), output_file=Path("film.mp4"), job_dir=folder)
    assert len(frame_hashes(folder / "film.mp4")) == 18
