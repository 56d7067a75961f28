"""How chunks are tried: pauses that grow, limits for chunk and job, and what is not tried again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from jobs import small_job, with_commands
from media_samples import frame_hashes
from pool_samples import rendered, two_runs
from prefect_aws.s3 import S3Bucket

from prefect_renderfarm.blocks import (
    CommandFailed,
    CommandTimeout,
    JobError,
    LocalAdapter,
    RemuxStitcher,
)
from prefect_renderfarm.blocks.errors import RepeatedFault, TooManyFailures
from prefect_renderfarm.flows import RenderJob, RenderReport, render_job
from prefect_renderfarm.flows.rendering.attempts import Attempts, Failures
from prefect_renderfarm.flows.results import FailedAttempt
from prefect_renderfarm.flows.runs.page import Snapshot, page_markdown


def job_with(folder: Path, extra: dict[int, str], chunks: int = 3) -> RenderJob:
    """Return a job of chunks of four frames that notes what it renders; some get more words."""
    job = small_job(f"--note '{folder / 'note'}'", total_frames=4 * chunks, chunks=chunks)
    return with_commands(
        job, {number: f"{job.chunks[number].command} {words}" for number, words in extra.items()}
    )


def render(job: RenderJob, folder: Path, **options: Any) -> RenderReport:
    """Render a job in a folder, without assembly unless that is asked for."""
    given = {"adapter": LocalAdapter(), "job_dir": folder, "retry_delay": 0} | options
    return render_job(job, **({"merge": "stitcher" in options} | given))


def test_pauses_grow_up_to_a_limit() -> None:
    """Each pause is twice the one before, less up to a half by chance; 300 s is the longest."""
    how = Attempts(retry_delay=1.0)
    for failed, longest in ((1, 1), (2, 2), (5, 16), (9, 256), (10, 300), (5000, 300)):
        pauses = [how.pause(failed) for _ in range(100)]
        assert longest / 2 <= min(pauses) <= max(pauses) <= longest
        assert len(set(pauses)) > 50
    assert Attempts(retry_delay=0).pause(3) == 0
    assert 450 <= Attempts(retry_delay=900).pause(7) <= 900


def test_failures_of_runs_count_together() -> None:
    """What runs tell is counted; it ends a job only where that is asked."""
    failures = Failures(1)
    failed = FailedAttempt(chunk=0, attempt=1, seconds=1, kind="WorkerLost", message="gone")
    failures.take([failed])
    failures.check()
    failures.take([failed])
    assert failures.all == (failed, failed)
    with pytest.raises(TooManyFailures, match=r"2 attempts.*is 1.*gone"):
        failures.check()


@pytest.mark.usefixtures("api")
def test_the_same_fault_twice_is_for_good(tmp_path: Path) -> None:
    """A chunk that has the wrong number of frames, and has it again, is not tried a third time."""
    job = job_with(tmp_path, {1: "--count 3"})
    with pytest.raises(RepeatedFault, match=r"chunk 1.*3 frames, not the planned 4.*second time"):
        render(job, tmp_path, retries=5, concurrency=1)
    assert rendered(tmp_path)[1] == 2


@pytest.mark.usefixtures("api")
def test_failed_attempts_are_reported(tmp_path: Path) -> None:
    """What failed on the way to a finished job is in its report, and in what people read of it."""
    job = job_with(tmp_path, {2: f"--fail-once '{tmp_path / 'flag'}'"})
    report = render(job, tmp_path, retries=1)
    failed = report.failed_attempts
    assert [(one.chunk, one.attempt, one.kind) for one in failed] == [(2, 1, "CommandFailed")]
    assert "asked to fail" in failed[0].message
    assert failed[0].seconds > 0
    assert "asked to fail" in failed[0].output
    page = page_markdown(job, "done", [], Snapshot(failed=failed), {})
    assert "| 2 | 1 |" in page.split("## Failed attempts")[1]


@pytest.mark.usefixtures("api")
def test_a_job_gives_up_after_too_many_failures(tmp_path: Path) -> None:
    """Failures of all chunks count together, whatever attempts a single one has left."""
    job = job_with(tmp_path, dict.fromkeys(range(4), "--fail"), chunks=4)
    with pytest.raises(TooManyFailures, match=r"4 attempts.*max_failures is 3.*asked to fail"):
        render(job, tmp_path, retries=50, max_failures=3, concurrency=1)
    assert sum(rendered(tmp_path).values()) == 4


@pytest.mark.long
@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("stored", [False, True])
def test_timeout_of_a_job(stored: bool, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """An attempt that takes longer than the job allows is ended, and may be repeated."""
    storage = request.getfixturevalue("bucket") if stored else None
    job = job_with(tmp_path, {0: f"--hang-once '{tmp_path / 'flag'}'"})
    report = render(job, tmp_path, storage=storage, timeout=3, retries=1)
    failed = report.failed_attempts
    assert [(one.chunk, one.kind) for one in failed] == [(0, "CommandTimeout")]
    assert rendered(tmp_path) == {0: 2, 1: 1, 2: 1}


@pytest.mark.long
@pytest.mark.usefixtures("api")
def test_slow_chunk_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A chunk that takes many times as long as the others is named while it runs."""
    job = job_with(tmp_path, {4: "--sleep 7"}, chunks=5)
    report = render(job, tmp_path, slow_factor=2)
    assert "chunk 4: it takes 2 times as long as the others" in caplog.text
    assert not report.failed_attempts


@pytest.mark.usefixtures("api")
@pytest.mark.long
def test_slow_chunk_is_ended(tmp_path: Path) -> None:
    """An attempt that is ended for being slow has failed, and the next one may be faster."""
    job = job_with(tmp_path, {4: f"--hang-once '{tmp_path / 'flag'}'"}, chunks=5)
    report = render(job, tmp_path, slow_factor=2, slow_chunks="end", retries=1)
    assert [(one.chunk, one.kind) for one in report.failed_attempts] == [(4, "CommandTimeout")]
    assert report.chunks[4].attempts == 2
    job = job_with(tmp_path, {4: "--sleep 600"}, chunks=5)
    with pytest.raises(CommandTimeout, match=r"chunk 4: ended after.*2 times as long"):
        render(job, tmp_path, slow_factor=2, slow_chunks="end", force=True)


@pytest.mark.long
@pytest.mark.usefixtures("api")
def test_slow_chunk_is_overtaken(tmp_path: Path, bucket: S3Bucket) -> None:
    """A second attempt beside a slow one is done first: the chunk is, and the slow one is ended."""
    job = job_with(tmp_path, {4: f"--hang-once '{tmp_path / 'flag'}'"}, chunks=5)
    started = time.monotonic()
    report = render(
        job, tmp_path / "job", storage=bucket, slow_factor=2, slow_chunks="duplicate",
        stitcher=RemuxStitcher(), output_file=tmp_path / "film.mp4",
    )  # fmt: skip
    assert time.monotonic() - started < 120
    assert report.failed_attempts == ()
    assert len(frame_hashes(tmp_path / "film.mp4")) == 20
    with pytest.raises(JobError, match=r"slow_chunks.*choose a storage"):
        render(job, tmp_path / "job", slow_chunks="duplicate")


@pytest.mark.long
@pytest.mark.usefixtures("api")
def test_failed_attempts_of_batches_come_home(tmp_path: Path) -> None:
    """What failed in a flow run on a work pool is in the report of the job that started it."""
    job = job_with(tmp_path, {2: f"--fail-once '{tmp_path / 'flag'}'"})
    adapter = two_runs(chunks_per_run=3)
    report = render(job, tmp_path, adapter=adapter, retries=1)
    assert [(one.chunk, one.kind) for one in report.failed_attempts] == [(2, "CommandFailed")]
    with pytest.raises(CommandFailed, match="chunk 1"):
        render(job_with(tmp_path, {1: "--fail"}), tmp_path, adapter=adapter)
