"""A chunk's way from its command to its manifest, with further attempts where one fails."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.errors import ChunkFileError, WorkStopped
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.fields import Chunk
from prefect_renderfarm.flows.rendering.attempt import RunningAttempt, StopSwitch
from prefect_renderfarm.flows.rendering.attempts import (
    Attempts,
    Failures,
    worth_another_attempt,
)
from prefect_renderfarm.flows.rendering.executors import executor_for
from prefect_renderfarm.flows.state.consistency import Consistency
from prefect_renderfarm.flows.state.eta import Eta
from prefect_renderfarm.flows.state.job_lock import JobLock
from prefect_renderfarm.flows.state.job_state import JobState


class ChunkRenderer:
    """Renders the chunks of one job; safe to use from several threads.

    Args:
        state: The job.
        adapter: Where commands run.
        rules: What the stitcher asks of chunks.
        attempts: How chunks are tried.
        done: Chunks that are done already, by their ids.
        failures: Takes the attempts that fail; None: an own one.
        lock: The job lock that this run holds; None: the run that started this one holds it.

    Attributes:
        stop: Ends all work when set.
        done: The chunks that are done, by their ids.
        failures: The attempts that failed.
        failure: Why the job is given up, if it is.
        running: The attempts under way, by their chunks' ids.
    """

    def __init__(
        self,
        state: JobState,
        adapter: WorkerAdapter,
        rules: ChunkRules = ChunkRules(),  # noqa: B008 -- frozen
        attempts: Attempts = Attempts(),  # noqa: B008 -- frozen
        done: Mapping[int, ChunkResult] = MappingProxyType({}),
        failures: Failures | None = None,
        lock: JobLock | None = None,
    ) -> None:
        self.stop = StopSwitch()
        self.done = dict(done)
        self.attempts = attempts
        self.failures = failures or Failures(attempts.max_failures)
        self.failure: Exception | None = None
        self.running: dict[int, RunningAttempt] = {}
        self._reused = frozenset(done)
        self._executor = executor_for(state, adapter, rules, attempts.timeout)
        self._state = state
        self._lock = lock
        self._consistency = Consistency(rules)
        for result in self.done.values():
            self._consistency.check(result)

    def render(self, chunk: Chunk) -> ChunkResult:
        """Render a chunk, with further attempts while they are worth it.

        When it fails, no file of the chunk is left under its name, and the job is given up.

        Raises:
            WorkerError: The command failed, or its file is not what was planned.
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
                    self.stop.set()
                    raise
                pause = self.attempts.pause(number)
                number += 1
                run_log().warning("%s; attempt %d begins in %.1f s", error, number, pause)
            if self.stop.wait(pause):
                raise WorkStopped(f"chunk {chunk.id}: not tried again, because its job was stopped")

    def _render_once(self, chunk: Chunk, number: int) -> ChunkResult:
        if self.stop.is_set():
            raise WorkStopped(f"chunk {chunk.id}: not started, because its job was stopped")
        if self._lock is not None:
            self._lock.ensure(self.stop)
        if (published := self._published(chunk)) is not None:
            return published
        attempt = RunningAttempt(chunk, self._executor, self.stop)
        self._executor.begin(chunk)
        self.running[chunk.id] = attempt
        try:
            result = self._attempt(attempt)
        except Exception as error:
            self.failures.add(chunk.id, number, attempt.age, error)
            raise
        finally:
            del self.running[chunk.id]
        result = self._executor.publish(result.model_copy(update={"attempts": number}))
        self.done[chunk.id] = result
        return result

    def _published(self, chunk: Chunk) -> ChunkResult | None:
        """Return what another run did while this one was halted, if it fits the others."""
        result = self._executor.published(chunk)
        if result is None:
            return None
        try:
            self._consistency.check(result)
        except ChunkFileError as error:
            run_log().warning("%s; it is rendered again", error)
            return None
        self.done[chunk.id] = result
        return result

    def _attempt(self, attempt: RunningAttempt) -> ChunkResult:
        try:
            result = attempt.run()
        except BaseException:
            self._executor.clear(attempt.chunk)
            raise
        try:
            self._consistency.check(result)
        except BaseException:
            self._executor.withdraw(attempt.chunk)
            raise
        return result

    def eta(self) -> Eta:
        """Return how far the rendering is."""
        running = [attempt.age for attempt in list(self.running.values())]
        finished = [result.seconds for result in list(self.done.values())]
        return Eta(finished, running, len(self._state.job.chunks) - len(finished) - len(running))

    def frame_times(self) -> list[float]:
        """Return how many seconds a frame took, of each chunk that was rendered by this run."""
        done = [result for result in list(self.done.values()) if result.id not in self._reused]
        return [result.seconds / result.frame_count for result in done]
