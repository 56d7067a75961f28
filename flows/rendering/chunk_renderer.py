"""A chunk's way from its command to its manifest, with further attempts where one fails."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.chunks.render import (
    ChunkReader,
    ChunkRequest,
    StorageAddress,
    measure,
)
from prefect_renderfarm.blocks.command import WorkerJob, WorkerResult
from prefect_renderfarm.blocks.errors import (
    ChunkFileError,
    CommandTimeout,
    FatalWorkerError,
    RenderFarmError,
    StorageError,
    WorkerError,
    WorkStopped,
)
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.runtime.repeat import periodic
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.spec import Chunk
from prefect_renderfarm.flows.rendering.attempts import (
    Attempts,
    Failures,
    SlowChunks,
    worth_another_attempt,
)
from prefect_renderfarm.flows.state.finished import Consistency, Eta
from prefect_renderfarm.flows.state.job_lock import JobLock
from prefect_renderfarm.flows.state.job_state import JobState

_POLL_SECONDS = 0.5


@dataclass(eq=False)
class ChunkRenderer:
    """Renders the chunks of one job; safe to use from several threads.

    `done` are the chunks that are done, by their ids: at first those of earlier runs. `lock` is the
    job lock; None: the run that started this one holds it. `failure` is why the job is given up.
    """

    state: JobState
    adapter: WorkerAdapter
    rules: ChunkRules = ChunkRules()  # noqa: RUF009 -- frozen
    attempts: Attempts = Attempts()  # noqa: RUF009 -- frozen
    done: dict[int, ChunkResult] = field(default_factory=dict)
    failures: Failures = field(default_factory=Failures)
    lock: JobLock | None = None
    failure: Exception | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._running: dict[int, _RunningAttempt] = {}
        self._reused = frozenset(self.done)
        self._reader = ChunkReader(self.rules.verify)
        self._indices = {chunk.id: index for index, chunk in enumerate(self.state.job.chunks)}
        self._consistency = Consistency(self.rules)
        for result in self.done.values():
            self._consistency.check(result)

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

    def eta(self) -> Eta:
        """Return how far the rendering is."""
        running = [attempt.age for attempt in list(self._running.values())]
        finished = [result.seconds for result in list(self.done.values())]
        return Eta(finished, running, len(self.state.job.chunks) - len(finished) - len(running))

    def _render_once(self, chunk: Chunk, number: int) -> ChunkResult:
        if self._stop.is_set():
            raise WorkStopped(f"chunk {chunk.id}: not started, because its job was stopped")
        if self.lock is not None:
            self.lock.ensure(self._stop)
        if (published := self._published(chunk)) is not None:
            return published
        attempt = _RunningAttempt(chunk, self._run, self._stop)
        self._running[chunk.id] = attempt
        try:
            self._clear(chunk)
            try:
                result = attempt.run()
            except BaseException:
                self._clear(chunk)
                raise
            try:
                self._consistency.check(result)
            except BaseException:
                self._withdraw(chunk)
                raise
        except Exception as error:
            self.failures.add(chunk.id, number, attempt.age, error)
            raise
        finally:
            del self._running[chunk.id]
        result = result.model_copy(update={"attempts": number})
        if self.state.block is None:
            result = self.state.objects.publish(result)
        self.done[chunk.id] = result
        return result

    def _published(self, chunk: Chunk) -> ChunkResult | None:
        """Return what another run did while this one was halted, if it is whole and fits."""
        if self.state.block is not None:
            return None  # the worker looks itself
        result = self.state.manifest(chunk)
        if result is None or self.state.faults([result]):
            return None
        try:
            self._consistency.check(result)
        except ChunkFileError as error:
            run_log().warning("%s; it is rendered again", error)
            return None
        self.done[chunk.id] = result
        return result

    def _run(self, chunk: Chunk, stop: threading.Event) -> ChunkResult:
        """Run a chunk's command and have its file checked, here or by a worker with the storage."""
        if self.state.block is None:
            done, cost = self._run_in_job_folder(chunk, stop)
        else:
            done, cost = self._run_through_storage(chunk, stop)
        return done.model_copy(
            update={"billed_seconds": cost.billed_seconds, "memory_mb": cost.memory_mb}
        )

    def _run_in_job_folder(
        self, chunk: Chunk, stop: threading.Event
    ) -> tuple[ChunkResult, WorkerResult]:
        started = time.monotonic()
        name = f"chunk {chunk.id}"
        result = self.adapter.execute(
            WorkerJob(
                command=chunk.command, cwd=self.state.path, name=name, chunk_id=chunk.id,
                output_file=chunk.output_file, timeout=self.attempts.timeout, stop=stop,
            )
        )  # fmt: skip
        result.require_success(name)
        done = measure(
            self.state.chunk_file(chunk), chunk_id=chunk.id, identity=self.state.identity(chunk),
            start_frame=chunk.start_frame, frame_count=chunk.frame_count,
            output_file=chunk.output_file, fps=self.state.job.metadata.rate,
            reader=self._reader, worker=result.worker, started=started,
        )  # fmt: skip
        return done, result

    def _run_through_storage(
        self, chunk: Chunk, stop: threading.Event
    ) -> tuple[ChunkResult, WorkerResult]:
        name, job, block = f"chunk {chunk.id}", self.state.job, self.state.block
        assert block is not None  # noqa: S101 -- see _run
        request = ChunkRequest(
            job=job.title, key=job.key, chunk_id=chunk.id, identity=self.state.identity(chunk),
            index=self._indices[chunk.id], start_frame=chunk.start_frame,
            frame_count=chunk.frame_count, output_file=chunk.output_file, command=chunk.command,
            fps=str(job.metadata.rate), verify=self.rules.verify, timeout=self.attempts.timeout,
            storage=StorageAddress.of(block), assets=self.state.assets,
        )  # fmt: skip
        cost = WorkerResult(exit_code=0)
        try:
            cost = self.adapter.render(request, block, stop)
            cost.require_success(name)
        except (WorkerError, StorageError) as error:
            done = None if isinstance(error, FatalWorkerError) else self.state.manifest(chunk)
            if done is None:
                raise
            run_log().warning("%s: done, though its answer was lost: %s", name, error)
        else:
            done = self.state.manifest(chunk)
        if done is None:
            raise ChunkFileError(
                f"{name}: its worker says that it is done, but its manifest is not in the "
                f"{self.state.name}: does the worker write to the same bucket?"
            )
        return done, cost

    def _clear(self, chunk: Chunk) -> None:
        """Leave nothing half-written in a shared folder; a storage holds whole chunks only."""
        if self.state.block is None:
            self.state.drop_chunk(chunk)

    def _withdraw(self, chunk: Chunk) -> None:
        """Let a chunk no longer count as done, because its file does not fit the others."""
        try:
            if self.state.block is None:
                self.state.drop_chunk(chunk)
            else:
                self.state.forget_chunks([chunk])
        except StorageError as error:
            run_log().warning("chunk %s: its manifest cannot be withdrawn: %s", chunk.id, error)

    def _stop_all(self) -> None:
        self._stop.set()
        for attempt in list(self._running.values()):
            attempt.stop()

    def _look_for_slow_chunks(self) -> None:
        times = [
            result.seconds / result.frame_count
            for result in list(self.done.values())
            if result.id not in self._reused
        ]
        for attempt in list(self._running.values()):
            chunk = attempt.chunk
            slow = self.attempts.slowness(chunk.frame_count, attempt.age, times)
            if slow is None or attempt.known_as_slow:
                continue
            attempt.known_as_slow = True
            message = f"chunk {chunk.id}: {slow}"
            if self.attempts.slow_chunks is SlowChunks.END:
                run_log().warning("%s: this attempt is ended", message)
                attempt.end(f"ended after {attempt.age:.0f} s: {slow}")
            elif self.attempts.slow_chunks is SlowChunks.DUPLICATE:
                run_log().warning("%s: a second attempt begins beside it", message)
                attempt.duplicate()
            else:
                run_log().warning("%s", message)


@dataclass(eq=False)
class _RunningAttempt:
    """An attempt at a chunk, which may be ended, or overtaken by a second one beside it."""

    chunk: Chunk
    _run: Callable[[Chunk, threading.Event], ChunkResult]
    _job_stop: threading.Event
    known_as_slow: bool = False

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._started = time.monotonic()
        self._why = ""
        self._second: threading.Thread | None = None
        self._second_stop = threading.Event()
        self._second_result: ChunkResult | None = None
        self._context = contextvars.copy_context()  # made here, where the run's logger is known

    @property
    def age(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._started

    def run(self) -> ChunkResult:
        """Go through with it. Raises CommandTimeout if it was ended because it took too long."""
        if self._job_stop.is_set():  # perhaps before this attempt was among those that are stopped
            self.stop()
        try:
            return self._run(self.chunk, self._stop)
        except RenderFarmError as error:
            stopped = isinstance(error, WorkStopped)
            if stopped and self._job_stop.is_set():
                raise
            if self._second is not None:
                self._second.join()
                if self._second_result is not None:
                    return self._second_result
            if stopped:
                raise CommandTimeout(f"chunk {self.chunk.id}: {self._why}") from None
            raise
        finally:
            self._second_stop.set()

    def stop(self) -> None:
        """End it with its job."""
        self._stop.set()
        self._second_stop.set()

    def end(self, why: str) -> None:
        """End it because it takes too long."""
        self._why = why
        self._stop.set()

    def duplicate(self) -> None:
        """Begin a second attempt at the chunk; the first to be done counts."""
        run, name = self._context.run, f"second attempt at chunk {self.chunk.id}"
        self._second = threading.Thread(
            target=run, args=(self._run_second,), name=name, daemon=True
        )
        self._second.start()

    def _run_second(self) -> None:
        try:
            self._second_result = self._run(self.chunk, self._second_stop)
        except Exception:  # the first one goes on, and says how it ends
            return
        self._stop.set()
