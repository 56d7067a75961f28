"""Rendering a job's chunks: each from its command to its manifest, in one or more attempts."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from prefect import task
from prefect.blocks.abstract import ObjectStorageBlock
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import as_completed
from prefect.states import Cancelled, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.adapters.work_pool import WorkPoolAdapter
from prefect_renderfarm.blocks.chunks.render import (
    ChunkReader,
    ChunkRequest,
    PlannedChunk,
    StorageAddress,
    measure,
)
from prefect_renderfarm.blocks.command import WorkerJob, WorkerResult
from prefect_renderfarm.blocks.errors import (
    ChunkFileError,
    FatalWorkerError,
    RenderFarmError,
    StorageError,
    WorkerError,
    WorkStopped,
)
from prefect_renderfarm.blocks.media.thumbnail import thumbnail
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.runtime.repeat import periodic
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult, parse_manifest
from prefect_renderfarm.flows.jobs.spec import Chunk
from prefect_renderfarm.flows.rendering.attempts import (
    Attempts,
    Failures,
    RunningAttempt,
    SlowChunks,
    worth_another_attempt,
)
from prefect_renderfarm.flows.rendering.base import Rendering, done_line
from prefect_renderfarm.flows.rendering.pool import ChunkRuns
from prefect_renderfarm.flows.state.finished import finished_chunks
from prefect_renderfarm.flows.state.job_lock import JobLock
from prefect_renderfarm.flows.state.job_state import JobState

# Prefect's server drops events, and with them task runs, somewhere beyond 1,000 a job.
MAX_TASK_RUNS = 1000
_POLL_SECONDS = 0.5
_SECONDS_BETWEEN_ENTRIES = 1.0
_Rendered = tuple[ChunkResult, WorkerResult]


def plan_rendering(
    state: JobState,
    chunks: Sequence[Chunk],
    adapter: WorkerAdapter,
    rules: ChunkRules,
    attempts: Attempts,
    *,
    width: int,
    failures: Failures,
    lock: JobLock | None,
    force: bool,
    fresh: bool,
) -> Rendering:
    """Return what renders the chunks that are not done: by task runs here, or by flow runs.

    The job's inputs digest must be known. `fresh`: no other run can have rendered a chunk.
    """
    done = {}
    if lock is not None or not fresh:  # who has started this run has looked
        done = finished_chunks(state, chunks, rules, force=force, others=lock is not None)
    kind: type[Rendering] = ChunkRuns if isinstance(adapter, WorkPoolAdapter) else ChunkRenderer
    return kind(state, adapter, rules, attempts, done, failures, chunks, width, lock, fresh)


class ChunkRenderer(Rendering):
    """Renders chunks by task runs in threads here; safe to use from several threads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.failure: Exception | None = None  # why the job is given up
        self._stop = threading.Event()
        self._running: dict[int, RunningAttempt] = {}
        self._key = self.state.job.key  # it takes the whole spec
        self._reader = ChunkReader(self.rules.verify)
        self._indices = {chunk.id: index for index, chunk in enumerate(self.state.job.chunks)}

    def render_all(self) -> list[ChunkResult]:
        """See `Rendering`."""
        left = self.left
        # The run that started this one has others, whose task runs count, too.
        whole = left if self.lock else self.state.job.chunks
        if len(whole) <= MAX_TASK_RUNS:
            batches = [ChunkBatch(_label(chunk), [chunk], self) for chunk in left]
        else:  # as many as run at once; each takes the next chunk that is left when it is free
            rest, count = iter(left), min(self.width, MAX_TASK_RUNS, len(left))
            batches = [ChunkBatch(f"chunks, {n + 1} of {count}", rest, self) for n in range(count)]
        pool: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=self.width)
        # Leaving the pool waits for what runs in it: so stop that first, whatever the reason.
        with pool as runner, self._showing_progress() as show, self.working():
            futures: Any = runner.map(render_chunk, {"batch": batches})
            for future in as_completed(list(futures)):
                future.wait()  # only then is its state the final one, not the server's latest
                if not future.state.is_completed():
                    raise self.failure or _error_of(future.state)
                show(len(self.done))
        return [self.done[chunk.id] for chunk in self.chunks]

    @contextmanager
    def working(self) -> Iterator[None]:
        """Inside the block, watch for slow chunks; if it ends with an error, stop all work."""
        try:
            with periodic(self._look_for_slow_chunks, _POLL_SECONDS, "slow chunks"):
                yield
        except BaseException:
            self._stop_all()
            raise

    def render(self, chunk: Chunk) -> ChunkResult:
        """Render a chunk, with further attempts while they are worth it.

        When the last one fails, no file of the chunk is left under its name, its error is raised,
        and the job is given up.
        """
        number = 1
        while True:
            try:
                return self._render_once(chunk, number)
            except WorkStopped:
                raise
            except Exception as error:
                # Here, and not where the flow waits: a freed thread would begin another chunk.
                if not worth_another_attempt(error) or number > self.attempts.retries:
                    self.failure = self.failure or error
                    self._stop_all()
                    raise
                pause = self.attempts.pause(number)
                number += 1
                run_log().warning("%s; attempt %d begins in %.1f s", error, number, pause)
            if self._stop.wait(pause):
                raise WorkStopped(f"chunk {chunk.id}: not tried again, because its job was stopped")

    def _ages(self) -> dict[int, float]:
        return {number: attempt.age for number, attempt in list(self._running.items())}

    def _render_once(self, chunk: Chunk, number: int) -> ChunkResult:
        if self._stop.is_set():
            raise WorkStopped(f"chunk {chunk.id}: not started, because its job was stopped")
        if self.lock is not None:
            self.lock.ensure(self._stop)
        result = self._published(chunk) or self._attempt(chunk, number)
        self._count(result)
        self._consistency.check_film()  # here, so that no chunk is rendered in vain
        return result

    def _attempt(self, chunk: Chunk, number: int) -> ChunkResult:
        attempt = RunningAttempt(chunk, self._run, self._stop)
        self._running[chunk.id] = attempt
        try:
            self.state.drop_chunk(chunk)
            try:
                result = attempt.run()
                self._require_fit(chunk, result)
            except BaseException:
                self.state.drop_chunk(chunk)
                raise
        except Exception as error:
            self.failures.add(chunk.id, number, attempt.age, error)
            raise
        finally:
            del self._running[chunk.id]
        result = result.model_copy(update={"attempts": number})
        if self.state.block is not None:
            return result
        image = thumbnail(result.path) if self.state.shows(chunk) else b""
        return self.state.objects.publish(result, thumbnail=image)

    def _published(self, chunk: Chunk) -> ChunkResult | None:
        """Return what another run did while this one was halted, if it is whole and fits."""
        # Through a storage the worker looks itself.
        result = self.state.manifest(chunk) if self.state.block is None else None
        if result is None or self.state.faults([result]):
            return None
        try:
            self._consistency.check(result)
        except ChunkFileError as error:
            run_log().warning("%s; it is rendered again", error)
            return None
        return result

    def _run(self, chunk: Chunk, stop: threading.Event) -> ChunkResult:
        """Run a chunk's command and have its file checked, here or by a worker with the storage."""
        plan = PlannedChunk(
            chunk_id=chunk.id, identity=self.state.identity(chunk), start_frame=chunk.start_frame,
            frame_count=chunk.frame_count, output_file=chunk.output_file,
            fps=str(self.state.job.metadata.rate), thumbnail=self.state.shows(chunk),
        )  # fmt: skip
        if (block := self.state.block) is None:
            done, cost = self._run_in_job_folder(chunk, plan, stop)
        else:
            done, cost = self._run_through_storage(chunk, plan, block, stop)
        return done.model_copy(
            update={"billed_seconds": cost.billed_seconds, "memory_mb": cost.memory_mb}
        )

    def _run_in_job_folder(
        self, chunk: Chunk, plan: PlannedChunk, stop: threading.Event
    ) -> _Rendered:
        started = time.monotonic()
        name = f"chunk {chunk.id}"
        result = self.adapter.execute(
            WorkerJob(
                command=chunk.command, cwd=self.state.path, name=name, chunk_id=chunk.id,
                output_file=chunk.output_file, timeout=self.attempts.timeout, stop=stop,
            )
        )  # fmt: skip
        result.require_success(name)
        path = self.state.chunk_file(chunk)
        return measure(plan, path, self._reader, result.worker, started), result

    def _run_through_storage(
        self, chunk: Chunk, plan: PlannedChunk, block: ObjectStorageBlock, stop: threading.Event
    ) -> _Rendered:
        name, job = f"chunk {chunk.id}", self.state.job
        request = ChunkRequest(
            **plan.model_dump(), job=job.title, key=self._key, index=self._indices[chunk.id],
            command=chunk.command, verify=self.rules.verify, timeout=self.attempts.timeout,
            storage=StorageAddress.of(block), assets=self.state.assets,
            fresh=self._begin([chunk.id]),
        )  # fmt: skip
        cost = WorkerResult(exit_code=0)
        try:
            cost = self.adapter.render(request, block, stop)
            cost.require_success(name)
            done = parse_manifest(cost.manifest)
        except (WorkerError, StorageError) as error:
            done = None if isinstance(error, FatalWorkerError) else self.state.manifest(chunk)
            if done is None:
                raise
            run_log().warning("%s: done, though its answer was lost: %s", name, error)
        if done is None or (done.id, done.identity) != (chunk.id, request.identity):
            done = self.state.manifest(chunk)
        if done is None:
            raise ChunkFileError(
                f"{name}: its worker says that it is done, but its manifest is not in the "
                f"{self.state.name}: does the worker write to the same bucket?"
            )
        return done, cost

    def _stop_all(self) -> None:
        self._stop.set()
        for attempt in list(self._running.values()):
            attempt.stop()

    def _look_for_slow_chunks(self) -> None:
        for attempt in list(self._running.values()):
            chunk = attempt.chunk
            slow = self.attempts.slowness(chunk.frame_count, attempt.age, self.own_times)
            if slow is None or attempt.known_as_slow:
                continue
            attempt.known_as_slow = True
            self._slow[chunk.id] = slow
            message = f"chunk {chunk.id}: {slow}"
            if self.attempts.slow_chunks is SlowChunks.END:
                run_log().warning("%s: this attempt is ended", message)
                attempt.end(f"ended after {attempt.age:.0f} s: {slow}")
            elif self.attempts.slow_chunks is SlowChunks.DUPLICATE:
                run_log().warning("%s: a second attempt begins beside it", message)
                attempt.duplicate()
            else:
                run_log().warning("%s", message)


def _error_of(state: State[Any]) -> BaseException:
    error = state.result(raise_on_failure=False)
    if isinstance(error, BaseException):
        return error
    return WorkStopped(f"a chunk's task run ended as {state.name}: {state.message}")


def _label(chunk: Chunk) -> str:
    return f"chunk {chunk.id}, frames {chunk.start_frame}-{chunk.end_frame - 1}"


class ChunkBatch:
    """Chunks that one task run renders one after the other, and who renders them.

    They may be an iterator that task runs share. Not a list and not a model, so that Prefect passes
    it on as it is.
    """

    def __init__(self, label: str, chunks: Iterable[Chunk], renderer: ChunkRenderer) -> None:
        self.label = label
        self.chunks = chunks
        self.renderer = renderer

    def render(self) -> None:
        """Render the chunks, and log them.

        Those that are done within a second share a log entry of several lines: of chunks that take
        a few milliseconds, an entry each would cost a fifth more.
        """
        lines: list[str] = []
        logged_at = -math.inf
        try:
            for chunk in self.chunks:
                lines.append(done_line(chunk, self.renderer.render(chunk)))
                if time.monotonic() - logged_at >= _SECONDS_BETWEEN_ENTRIES:
                    run_log().info("%s", "\n".join(lines))
                    lines.clear()
                    logged_at = time.monotonic()
        finally:
            if lines:
                run_log().info("%s", "\n".join(lines))


@task(
    name="render-chunk", task_run_name="{batch.label}", cache_policy=NO_CACHE, persist_result=False
)
def render_chunk(batch: ChunkBatch) -> State[Any] | None:
    """Render the chunks of a batch. Ends as Cancelled if the job was stopped meanwhile."""
    try:
        batch.render()
    except WorkStopped as stopped:
        return Cancelled(message=str(stopped))
    except RenderFarmError as error:  # raised, it would have a traceback in the log
        return Failed(message=str(error), data=error)
    return None
