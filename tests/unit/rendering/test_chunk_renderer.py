"""How attempts at chunks end: with their job, for being slow, or overtaken by a second one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jobs import small_job
from processes_here import wait_for
from pydantic import PrivateAttr
from shared_jobs import prepared

from prefect_renderfarm.blocks import WorkerAdapter, WorkerJob, WorkerResult
from prefect_renderfarm.blocks.errors import CommandFailed, CommandTimeout, WorkStopped
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.spec import Chunk
from prefect_renderfarm.flows.rendering import attempts as attempts_module
from prefect_renderfarm.flows.rendering import chunk_renderer
from prefect_renderfarm.flows.rendering.attempts import Attempts, RunningAttempt, SlowChunks
from prefect_renderfarm.flows.rendering.chunk_renderer import ChunkBatch, ChunkRenderer

CHUNK = small_job().chunks[0]
RESULT = ChunkResult(
    id=0, start_frame=0, frame_count=6, output_file="0.mp4", path=Path("0.mp4"), size=1, sha256="",
    seconds=0.01,
)  # fmt: skip
Run = Callable[[threading.Event], ChunkResult]


class Hanging(WorkerAdapter):
    """Runs commands until they are stopped; that of one chunk fails once all others run."""

    failing: int | None = None
    _begun: list[int | None] = PrivateAttr(default_factory=list)

    def execute(self, job: WorkerJob) -> WorkerResult:
        """Wait for the end of the job."""
        if job.chunk_id == self.failing:
            wait_for(lambda: len(self._begun) == 2, 10)
            raise CommandFailed(f"chunk {job.chunk_id}: exit code 1")
        self._begun.append(job.chunk_id)
        assert job.stop.wait(10)
        raise WorkStopped(f"chunk {job.chunk_id}: stopped")


def in_background(call: Callable[[], ChunkResult]) -> Future[ChunkResult]:
    """Call a function in a thread."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(call)
    finally:
        pool.shutdown(wait=False)


def attempt_with(
    first: Run, second: Run, job_stop: threading.Event | None = None
) -> RunningAttempt:
    """Return an attempt of which the first and the second run are functions."""

    def run(_: object, stop: threading.Event) -> ChunkResult:
        return first(stop) if stop is attempt._stop else second(stop)

    attempt = RunningAttempt(CHUNK, run, job_stop or threading.Event())
    return attempt


def hang(stop: threading.Event) -> ChunkResult:
    """Run until it is stopped."""
    assert stop.wait(10)
    raise WorkStopped("stopped")


def fail(_: threading.Event) -> ChunkResult:
    """Fail at once."""
    raise CommandFailed("exit code 1")


def test_a_chunk_that_fails_for_good_ends_the_others(tmp_path: Path) -> None:
    """Chunks under way are ended, and no other one begins."""
    job = small_job()
    renderer = ChunkRenderer(prepared(tmp_path, job), Hanging(failing=1))
    running = [in_background(lambda n=n: renderer.render(job.chunks[n])) for n in (0, 2)]  # type: ignore[misc]
    with pytest.raises(CommandFailed, match="chunk 1"):
        renderer.render(job.chunks[1])
    for future in running:
        with pytest.raises(WorkStopped, match="stopped"):
            future.result(10)
    with pytest.raises(WorkStopped, match="chunk 0: not started"):
        renderer.render(job.chunks[0])
    assert isinstance(renderer.failure, CommandFailed)
    assert [(failed.chunk, failed.kind) for failed in renderer.failures.all] == [
        (1, "CommandFailed")
    ]


def test_an_error_of_the_flow_ends_the_chunks(tmp_path: Path) -> None:
    """Whatever ends the rendering ends the chunks under way."""
    job = small_job()
    renderer = ChunkRenderer(prepared(tmp_path, job), Hanging())
    future = in_background(lambda: renderer.render(job.chunks[0]))
    wait_for(lambda: len(renderer.eta().running) == 1, 10)
    with pytest.raises(KeyboardInterrupt), renderer.working():
        raise KeyboardInterrupt
    with pytest.raises(WorkStopped):
        future.result(10)


def test_a_slow_chunk_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that takes too long is ended while it runs, and the error says why."""
    monkeypatch.setattr(attempts_module, "_LEAST_SLOW_SECONDS", 0.0)
    job = small_job(total_frames=24, chunks=4)
    how = Attempts(slow_factor=2.0, slow_chunks=SlowChunks.END)
    renderer = ChunkRenderer(prepared(tmp_path, job), Hanging(), attempts=how)
    for _ in range(3):
        renderer.own_times.add(RESULT)
    with (
        renderer.working(),
        pytest.raises(CommandTimeout, match=r"^chunk 0: ended after .*2 times as long"),
    ):
        renderer.render(job.chunks[0])


def test_an_attempt_of_a_stopped_job_is_stopped() -> None:
    """One that was not yet among those under way when they were stopped is stopped, too."""
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(WorkStopped):
        attempt_with(hang, fail, stopped).run()


def test_the_first_of_two_attempts_counts() -> None:
    """A second attempt that is done ends the first one, and its result is the chunk's."""
    attempt = attempt_with(hang, lambda _: RESULT)
    future = in_background(attempt.run)
    attempt.duplicate()
    assert future.result(10) is RESULT


def test_a_second_attempt_may_replace_one_that_fails() -> None:
    """When the first attempt fails, the second one decides; when both do, the first one's error."""
    go, done = threading.Event(), threading.Event()

    def fail_later(_: threading.Event) -> ChunkResult:
        assert go.wait(10)
        raise CommandFailed("the first one")

    def succeed_later(_: threading.Event) -> ChunkResult:
        go.set()
        assert done.wait(10)
        return RESULT

    attempt = attempt_with(fail_later, succeed_later)
    future = in_background(attempt.run)
    attempt.duplicate()
    done.set()
    assert future.result(10) is RESULT
    attempt = attempt_with(fail_later, fail)
    future = in_background(attempt.run)
    attempt.duplicate()
    with pytest.raises(CommandFailed, match="the first one"):
        future.result(10)


def test_a_second_attempt_that_cannot_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started, the first attempt goes on, and nobody waits for the other."""
    go = threading.Event()

    def fail_later(_: threading.Event) -> ChunkResult:
        assert go.wait(10)
        raise CommandFailed("the first one")

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    attempt = attempt_with(fail_later, fail)
    future = in_background(attempt.run)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="new thread"):
            attempt.duplicate()
    go.set()
    with pytest.raises(CommandFailed, match="the first one"):
        future.result(10)


def test_a_second_attempt_ends_with_the_first() -> None:
    """Nothing goes on when the chunk is done, or when the job is stopped."""
    ended = threading.Event()

    def hang_and_tell(stop: threading.Event) -> ChunkResult:
        try:
            return hang(stop)
        finally:
            ended.set()

    release = threading.Event()

    def succeed(_: threading.Event) -> ChunkResult:
        assert release.wait(10)
        return RESULT

    attempt = attempt_with(succeed, hang_and_tell)
    future = in_background(attempt.run)
    attempt.duplicate()
    release.set()
    assert future.result(10) is RESULT
    assert ended.wait(10)


def test_done_chunks_share_a_log_entry(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Chunks that are done within a second share an entry of the log; none is left out."""
    times = [0.0, 0.1, 0.2, 1.5, 1.6]
    now = 0.0

    def render(chunk: Chunk) -> ChunkResult:
        nonlocal now
        now = times[chunk.id]
        return RESULT.model_copy(update={"id": chunk.id, "size": 1000, "seconds": 0.1})

    monkeypatch.setattr(chunk_renderer, "time", SimpleNamespace(monotonic=lambda: now))
    renderer: Any = SimpleNamespace(render=render)
    chunks = small_job(total_frames=5, chunks=5).chunks
    with caplog.at_level("INFO"):
        ChunkBatch("chunks", chunks, renderer).render()
    lines = [message.splitlines() for message in caplog.messages]
    assert [[line.split(":")[0] for line in entry] for entry in lines] == [
        ["chunk 0"],
        ["chunk 1", "chunk 2", "chunk 3"],
        ["chunk 4"],
    ]
    assert lines[0] == ["chunk 0: frames 0-0 done in 0.1 s, 1,000 bytes"]
