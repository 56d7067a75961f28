"""A chunk's round: run its command, check its file, publish it."""

from __future__ import annotations

import time
from collections import Counter

from prefect_renderfarm.blocks import WorkerAdapter, WorkStopped
from prefect_renderfarm.blocks.chunk_result import ChunkResult
from prefect_renderfarm.blocks.run_log import run_log
from prefect_renderfarm.blocks.video_stitcher import ChunkRules
from prefect_renderfarm.flows.chunk_rounds import rounds_in
from prefect_renderfarm.flows.job import Chunk
from prefect_renderfarm.flows.job_folder import JobFolder
from prefect_renderfarm.flows.likeness import Likeness
from prefect_renderfarm.flows.pace import Pace


class ChunkRenderer:
    """Renders the chunks of one job; safe to use from several threads.

    Args:
        folder: The job's folder.
        adapter: Where commands run.
        retry_delay: Seconds between two attempts of a chunk.
        rules: What the stitcher asks of chunks.
    """

    def __init__(
        self,
        folder: JobFolder,
        adapter: WorkerAdapter,
        retry_delay: float = 0.0,
        rules: ChunkRules = ChunkRules(),  # noqa: B008 -- frozen
    ) -> None:
        self._rounds = rounds_in(folder, adapter, rules)
        self.stop = self._rounds.stop
        self.done: dict[int, ChunkResult] = {}
        self.failure: Exception | None = None
        self._folder = folder
        self._retry_delay = retry_delay
        self._attempts: Counter[int] = Counter()
        self._likeness = Likeness(rules)
        self._running: dict[int, float] = {}

    def render(self, chunk: Chunk) -> ChunkResult:
        """Render a chunk, unless an earlier attempt of this run already did.

        When it fails, no file of the chunk is left under its name.

        Raises:
            WorkerError: The command failed, or its file is not what was planned.
        """
        if chunk.id in self.done:
            return self.done[chunk.id]
        if self.stop.is_set():
            raise WorkStopped(f"chunk {chunk.id}: not started, because its job was stopped")
        if self._attempts[chunk.id]:
            self._wait_before_retry(chunk)
        self._attempts[chunk.id] += 1
        self._rounds.begin(chunk)
        self._running[chunk.id] = time.monotonic()
        try:
            result = self._rounds.attempt(chunk)
            self._likeness.check(result)
        except BaseException:
            self._rounds.withdraw(chunk)
            raise
        finally:
            del self._running[chunk.id]
        result = result.model_copy(update={"attempts": self._attempts[chunk.id]})
        result = self._rounds.publish(chunk, result)
        self.done[chunk.id] = result
        return result

    def pace(self) -> Pace:
        """Return how far the rendering is."""
        now = time.monotonic()
        running = [now - started for started in list(self._running.values())]
        finished = [result.seconds for result in list(self.done.values())]
        return Pace(finished, running, len(self._folder.job.chunks) - len(finished) - len(running))

    def give_up(self, failure: Exception) -> None:
        """Stop the job because a chunk failed for good; the first failure is the job's."""
        self.failure = self.failure or failure
        self.stop.set()

    def _wait_before_retry(self, chunk: Chunk) -> None:
        """Wait here and not in Prefect's retry, which sleeps through the end of its job."""
        attempt = self._attempts[chunk.id] + 1
        run_log().info("chunk %s: attempt %d begins in %g s", chunk.id, attempt, self._retry_delay)
        if self.stop.wait(self._retry_delay):
            raise WorkStopped(f"chunk {chunk.id}: not tried again, because its job was stopped")
