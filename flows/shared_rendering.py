"""The rendering of a job that other runs may render at the same time: each chunk by one of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from prefect_renderfarm.blocks import StorageError, StorageRefused, WorkerAdapter
from prefect_renderfarm.blocks.chunk_result import ChunkResult
from prefect_renderfarm.blocks.run_log import run_log
from prefect_renderfarm.blocks.video_stitcher import ChunkRules
from prefect_renderfarm.flows.attempts import Attempts, Failures
from prefect_renderfarm.flows.done_chunks import DoneChunks
from prefect_renderfarm.flows.job import Chunk
from prefect_renderfarm.flows.job_folder import JobFolder
from prefect_renderfarm.flows.lease import Lease
from prefect_renderfarm.flows.pace import Pace
from prefect_renderfarm.flows.rendering import Rendering, rendering

_POLL_SECONDS = 1.0


class SharedRendering:
    """Renders chunks that no other run has, then waits for those that another is at.

    What another run does not do, because it fails, is ended or dies, this one does.

    Args:
        folder: The job's folder.
        chunks: The chunks.
        adapter: Where commands run.
        rules: What the stitcher asks of chunks.
        attempts: How chunks are tried.
        done: Those of the chunks that need not be rendered, by their ids.
        width: Number of chunks to render at once.
        family: See `Lease`.

    Attributes:
        failures: The attempts that failed.

    Raises:
        SetupError: The storage is not saved, so that other machines could not load it.
    """

    def __init__(
        self,
        folder: JobFolder,
        chunks: Sequence[Chunk],
        adapter: WorkerAdapter,
        rules: ChunkRules,
        attempts: Attempts,
        done: Mapping[int, ChunkResult],
        *,
        width: int,
        family: str | None = None,
    ) -> None:
        self.failures = Failures(attempts.max_failures)
        self._folder = folder
        self._chunks = chunks
        self._adapter = adapter
        self._rules = rules
        self._attempts = attempts
        self._width = width
        self._done = DoneChunks(folder, chunks, rules, attempts.retries, done)
        self._lease = Lease(folder, family=family)
        self._rendering = self._rendering_of(chunks)

    def pace(self) -> Pace:
        """Return how far the rendering is; may be called from another thread."""
        return self._rendering.pace()

    def render(self) -> list[ChunkResult]:
        """Render the chunks; when one fails for good, stop the others.

        Returns:
            The results, in the order of the chunks.

        Raises:
            WorkerError: That of the first chunk that failed for good.
            StorageError: The storage did not answer.
        """
        told = False
        with self._lease:
            while left := [chunk for chunk in self._chunks if chunk.id not in self._done.results]:
                ids = [chunk.id for chunk in left]
                mine = self._lease.take(ids)
                if mine:
                    self._render([chunk for chunk in left if chunk.id in mine])
                    self._lease.let_go(mine)
                    continue
                if not told:
                    told = True
                    who = self._lease.waiting_for(ids)
                    run_log().info("%d chunks are rendered by other runs: %s", len(ids), who)
                time.sleep(_POLL_SECONDS)
                self._look(left)
        return [self._done.results[chunk.id] for chunk in self._chunks]

    def _render(self, chunks: Sequence[Chunk]) -> None:
        self._look(chunks)  # another run may have done them since this one looked
        chunks = [chunk for chunk in chunks if chunk.id not in self._done.results]
        self._rendering = self._rendering_of(chunks)
        results = self._rendering.render()
        self._done.results.update((result.id, result) for result in results)

    def _rendering_of(self, chunks: Sequence[Chunk]) -> Rendering:
        return rendering(
            self._folder, chunks, self._adapter, self._rules, self._attempts, self._done.results,
            width=self._width, failures=self.failures, lease=self._lease,
        )  # fmt: skip

    def _look(self, chunks: Sequence[Chunk]) -> None:
        try:
            self._done.look(chunks)
        except StorageRefused:
            raise
        except StorageError as error:
            run_log().warning("the storage does not say what is done: %s", error)
