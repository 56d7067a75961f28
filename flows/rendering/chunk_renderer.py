"""A chunk's way from its command to its manifest, with further attempts where one fails."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.errors import ChunkFileError, WorkerLost, WorkStopped
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.fields import Chunk
from prefect_renderfarm.flows.rendering.attempt import RunningAttempt, StopSwitch
from prefect_renderfarm.flows.rendering.attempts import Attempts, Failures
from prefect_renderfarm.flows.rendering.executors import executor_for
from prefect_renderfarm.flows.state.consistency import Likeness
from prefect_renderfarm.flows.state.eta import Pace
from prefect_renderfarm.flows.state.job_folder import JobFolder
from prefect_renderfarm.flows.state.lease import SILENT_SECONDS, Lease

_DOUBT_POLL_SECONDS = 0.5


class ChunkRenderer:
    """Renders the chunks of one job; safe to use from several threads.

    Args:
        folder: The job's folder.
        adapter: Where commands run.
        rules: What the stitcher asks of chunks.
        attempts: How chunks are tried.
        done: Chunks that are done already, by their ids.
        failures: Takes the attempts that fail; None: an own one.
        lease: Says which chunks this run has to itself; None: all.

    Attributes:
        stop: Ends all work when set.
        done: The chunks that are done, by their ids.
        failures: The attempts that failed.
        failure: Why the job is given up, if it is.
        running: The attempts under way, by their chunks' ids.
    """

    def __init__(
        self,
        folder: JobFolder,
        adapter: WorkerAdapter,
        rules: ChunkRules = ChunkRules(),  # noqa: B008 -- frozen
        attempts: Attempts = Attempts(),  # noqa: B008 -- frozen
        done: Mapping[int, ChunkResult] = MappingProxyType({}),
        failures: Failures | None = None,
        lease: Lease | None = None,
    ) -> None:
        self.stop = StopSwitch()
        self.done = dict(done)
        self.attempts = attempts
        self.failures = failures or Failures(attempts.max_failures)
        self.failure: Exception | None = None
        self.running: dict[int, RunningAttempt] = {}
        self._reused = frozenset(done)
        self._rounds = executor_for(folder, adapter, rules, attempts.timeout)
        self._folder = folder
        self._lease = lease
        self._tried: Counter[int] = Counter()
        self._likeness = Likeness(rules)
        for result in self.done.values():
            self._likeness.check(result)

    def render(self, chunk: Chunk) -> ChunkResult:
        """Render a chunk, unless an earlier attempt of this run or another run already did.

        When it fails, no file of the chunk is left under its name, unless another run may be
        writing one.

        Raises:
            WorkerError: The command failed, or its file is not what was planned.
        """
        if chunk.id in self.done:
            return self.done[chunk.id]
        if self.stop.is_set():
            raise WorkStopped(f"chunk {chunk.id}: not started, because its job was stopped")
        if self._tried[chunk.id]:
            self._wait_before_retry(chunk)
        self._tried[chunk.id] += 1
        if not self._may_begin(chunk):
            raise WorkerLost(
                f"chunk {chunk.id}: not begun, because nothing was heard of this run for so long "
                "that another one may have taken it"
            )
        if (published := self._published(chunk)) is not None:
            return published
        attempt = RunningAttempt(chunk, self._rounds, self.stop)
        self._rounds.begin(chunk)
        self.running[chunk.id] = attempt
        try:
            result = self._attempt(attempt)
        except BaseException as error:
            if isinstance(error, Exception):
                self.failures.add(chunk.id, self._tried[chunk.id], attempt.age, error)
            raise
        finally:
            del self.running[chunk.id]
        result = result.model_copy(update={"attempts": self._tried[chunk.id]})
        result = self._rounds.publish(chunk, result)
        self.done[chunk.id] = result
        return result

    def tried_enough(self, chunk: Chunk) -> bool:
        """Return whether a chunk has had its last attempt."""
        return self._tried[chunk.id] > self.attempts.retries

    def _may_begin(self, chunk: Chunk) -> bool:
        """Return whether the chunk is this run's; one in doubt may be so again in a moment."""
        deadline = time.monotonic() + SILENT_SECONDS
        while self._lease is not None and chunk.id not in self._lease.mine:
            if chunk.id not in self._lease.hoped_for or time.monotonic() > deadline:
                return False
            if self.stop.wait(_DOUBT_POLL_SECONDS):
                raise WorkStopped(f"chunk {chunk.id}: not started, because its job was stopped")
        return True

    def _published(self, chunk: Chunk) -> ChunkResult | None:
        """Return what another run has done while this one was halted, if it fits the others."""
        result = self._rounds.published(chunk)
        if result is None:
            return None
        try:
            self._likeness.check(result)
        except ChunkFileError as error:
            run_log().warning("%s; it is rendered again", error)
            return None
        self.done[chunk.id] = result
        return result

    def _attempt(self, attempt: RunningAttempt) -> ChunkResult:
        try:
            result = attempt.run()
        except BaseException:
            if self._lease is None or attempt.chunk.id in self._lease.mine:
                self._rounds.clear(attempt.chunk)
            raise
        try:
            self._likeness.check(result)
        except BaseException:
            self._rounds.withdraw(attempt.chunk)
            raise
        return result

    def pace(self) -> Pace:
        """Return how far the rendering is."""
        running = [attempt.age for attempt in list(self.running.values())]
        finished = [result.seconds for result in list(self.done.values())]
        return Pace(finished, running, len(self._folder.job.chunks) - len(finished) - len(running))

    def frame_times(self) -> list[float]:
        """Return how many seconds a frame took, of each chunk that was rendered by this run."""
        done = [result for result in list(self.done.values()) if result.id not in self._reused]
        return [result.seconds / result.frame_count for result in done]

    def give_up(self, failure: Exception) -> None:
        """Stop the job because a chunk failed for good; the first failure is the job's."""
        self.failure = self.failure or failure
        self.stop.set()

    def _wait_before_retry(self, chunk: Chunk) -> None:
        """Wait here and not in Prefect's retry, which sleeps through the end of its job."""
        pause = self.attempts.pause(self._tried[chunk.id])
        number = self._tried[chunk.id] + 1
        run_log().info("chunk %s: attempt %d begins in %.1f s", chunk.id, number, pause)
        if self.stop.wait(pause):
            raise WorkStopped(f"chunk {chunk.id}: not tried again, because its job was stopped")
