"""Jobs through a real HTTP worker: what comes home, and how work ends that is not wanted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from fractions import Fraction
from pathlib import Path

import pytest
from faulty_proxy import Answer, Fault, FaultyProxy, faulty_proxy
from http_samples import HttpWorker, Running, working
from media_samples import Recipe, frame_hashes, write_clip
from prefect_aws.s3 import S3Bucket
from processes_here import assert_all_gone, family, gone, wait_for
from pydantic import SecretStr
from storage_jobs import render
from storage_samples import S3Server, keys

from prefect_renderfarm.blocks import (
    CommandTimeout,
    SetupError,
    WorkerJob,
    WorkerLost,
    WorkStopped,
)


@pytest.fixture(scope="module")
def to_lose(s3: S3Server) -> Iterator[list[HttpWorker]]:
    """Start two workers at once that do not live to the end."""
    with working(s3.environment()) as first, working() as second:
        yield [worker.wait_until_ready() for worker in (first, second)]


def logs(bucket: S3Bucket) -> int:
    """Return how many times chunks were rendered: each attempt leaves a log."""
    return len([key for key in keys(bucket) if key.endswith("log.txt")])


# What a job comes to.


@pytest.mark.usefixtures("api")
def test_job_through_a_worker(
    http_worker: HttpWorker, proxy: FaultyProxy, bucket: S3Bucket, tmp_path: Path
) -> None:
    """A film comes of a worker that takes one chunk at a time, though two are sent at once."""
    adapter = http_worker.adapter(url=proxy.url, max_in_flight=2)
    report = render(bucket, tmp_path, adapter=adapter)
    clips = [
        write_clip(tmp_path / "expected" / f"{start}.mp4", start, 6, Recipe(fps=Fraction(24)))
        for start in (0, 6, 12)
    ]
    expected = [picture for clip in clips for picture in frame_hashes(clip)]
    assert frame_hashes(tmp_path / "film.mp4") == expected
    assert [chunk.worker for chunk in report.chunks] == [http_worker.health()["worker"]] * 3
    assert logs(bucket) == 3
    answers = [status for request, status in proxy.requests if request.method == "POST"]
    assert answers.count(200) == 3
    assert answers.count(429) >= 1


@pytest.mark.long
@pytest.mark.usefixtures("api")
def test_faults_on_the_way(
    http_worker: HttpWorker, proxy: FaultyProxy, bucket: S3Bucket, tmp_path: Path
) -> None:
    """Throttled, overloaded, cut off before and after the work: a film, and no chunk paid twice."""
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    proxy.fail(
        None,  # the health check
        Answer(429, headers=(("Retry-After", "0"),)),
        Answer(429, headers=(("Retry-After", soon),)),
        Answer(503),  # fails chunk 0
        Fault.DROP_BEFORE,  # and its second attempt
        Fault.DROP_AFTER,  # its third is done, and nobody heard of it
    )
    report = render(
        bucket, tmp_path, adapter=http_worker.adapter(url=proxy.url), retries=2, retry_delay=0,
        concurrency=1,
    )  # fmt: skip
    assert len(frame_hashes(tmp_path / "film.mp4")) == 18
    assert [chunk.attempts for chunk in report.chunks] == [3, 1, 1]
    assert [status for _, status in proxy.requests] == [
        200, 429, 429, 503, Fault.DROP_BEFORE, Fault.DROP_AFTER, 200, 200,
    ]  # fmt: skip
    assert logs(bucket) == 3


@pytest.mark.long
@pytest.mark.usefixtures("api")
def test_killed_worker_is_replaced(
    to_lose: list[HttpWorker], http_worker: HttpWorker, bucket: S3Bucket, tmp_path: Path
) -> None:
    """A worker is killed in the middle of a chunk: the chunk is rendered again, nothing is left."""
    pids, go = tmp_path / "pids", tmp_path / "go"
    with faulty_proxy(to_lose[0].url) as proxy:

        def kill() -> None:
            wait_for(lambda: pids.exists() and bool(pids.read_text()), 30)
            started = [int(pid) for pid in pids.read_text().split()]
            proxy.target = http_worker.url
            to_lose[0].process.kill()
            for pid in started:
                wait_for(lambda pid=pid: gone(pid), 12)  # type: ignore[misc]
            go.touch()

        with ThreadPoolExecutor() as pool:
            killed = pool.submit(kill)
            report = render(
                bucket, tmp_path / "job", f"--child '{pids}' --wait-for '{go}'", retries=1,
                adapter=http_worker.adapter(url=proxy.url), retry_delay=0, concurrency=1,
            )  # fmt: skip
            killed.result()
    assert [chunk.attempts for chunk in report.chunks] == [2, 1, 1]
    assert len(frame_hashes(tmp_path / "job" / "film.mp4")) == 18


@pytest.mark.long
@pytest.mark.usefixtures("api")
def test_worker_that_is_started_again(s3: S3Server, bucket: S3Bucket, tmp_path: Path) -> None:
    """A worker is away for 10 s: its chunk has another attempt, the others wait and have none."""
    hung = tmp_path / "hung"
    with working(s3.environment()) as first, ThreadPoolExecutor() as pool:
        first.wait_until_ready()
        rendering = pool.submit(
            render, bucket, tmp_path / "job", f"--hang-once '{hung}'", retries=1, retry_delay=0,
            adapter=first.adapter(), concurrency=1,
        )  # fmt: skip
        wait_for(hung.exists, 30)
        first.process.kill()
        time.sleep(10)
        with working(s3.environment() | {"PORT": str(first.port)}):
            report = rendering.result(60)
    assert [chunk.attempts for chunk in report.chunks] == [2, 1, 1]
    assert len(frame_hashes(tmp_path / "job" / "film.mp4")) == 18


@pytest.mark.usefixtures("api")
def test_wrong_token_is_refused_before_any_chunk(
    http_worker: HttpWorker, proxy: FaultyProxy, bucket: S3Bucket, tmp_path: Path
) -> None:
    """A token that the worker does not know: one line that says so, and no chunk."""
    adapter = http_worker.adapter(url=proxy.url, token=SecretStr("wr0ng"))
    with pytest.raises(
        SetupError, match=r"127\.0\.0\.1.*401 Unauthorized: check the token"
    ) as caught:
        render(bucket, tmp_path, adapter=adapter)
    assert "\n" not in str(caught.value)
    assert "wr0ng" not in str(caught.value)
    assert [request.method for request, _ in proxy.requests] == ["GET"]
    assert keys(bucket) == []


# How work ends that nobody wants any more.


def test_stop_ends_the_command_on_the_worker(http_worker: HttpWorker, tmp_path: Path) -> None:
    """A stop is over in a second here, and in two there, with all that the command started."""
    running = Running(http_worker.adapter(), WorkerJob(command=family(tmp_path), name="chunk 4"))
    wait_for((tmp_path / "pids").exists)
    running.job.stop.set()
    outcome = running.end(1)
    assert isinstance(outcome, WorkStopped)
    assert "chunk 4" in str(outcome)
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        wait_for(lambda pid=pid: gone(pid), 2)  # type: ignore[misc]


def test_stop_ends_the_wait_for_a_busy_worker(http_worker: HttpWorker, proxy: FaultyProxy) -> None:
    """Who waits for a busy worker stops at once, too."""
    proxy.fail(Answer(429, headers=(("Retry-After", "60"),)))
    running = Running(http_worker.adapter(url=proxy.url), WorkerJob(command="true"))
    wait_for(lambda: len(proxy.requests) == 1)
    running.job.stop.set()
    assert isinstance(running.end(1), WorkStopped)


def test_timeout_of_the_adapter_ends_the_command(http_worker: HttpWorker, tmp_path: Path) -> None:
    """A chunk that takes longer than the adapter allows is ended on the worker."""
    adapter = http_worker.adapter(timeout=1.5)
    with pytest.raises(CommandTimeout, match=r"chunk 4.*1\.5 s"):
        adapter.execute(WorkerJob(command=family(tmp_path), name="chunk 4"))
    assert_all_gone(tmp_path)


@pytest.mark.long
def test_sigterm_ends_the_command_and_says_so(to_lose: list[HttpWorker], tmp_path: Path) -> None:
    """A worker that the platform ends gives its chunk back, and leaves nothing running."""
    worker = to_lose[1]
    running = Running(worker.adapter(), WorkerJob(command=family(tmp_path), name="chunk 4"))
    wait_for((tmp_path / "pids").exists)
    worker.process.terminate()
    outcome = running.end(8)
    assert type(outcome) is WorkerLost
    assert "was stopped" in str(outcome)
    assert_all_gone(tmp_path)
    worker.process.wait(8)
