"""The stage of a job that renders: what is done already, and by task runs or flow runs the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.adapters.work_pool import WorkPoolAdapter
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.fields import Chunk
from prefect_renderfarm.flows.rendering.attempts import Attempts, Failures
from prefect_renderfarm.flows.rendering.chunk_renderer import ChunkRenderer
from prefect_renderfarm.flows.rendering.pool import ChunkRuns
from prefect_renderfarm.flows.rendering.task import render_all
from prefect_renderfarm.flows.state.eta import Eta
from prefect_renderfarm.flows.state.finished import finished_chunks
from prefect_renderfarm.flows.state.job_lock import JobLock
from prefect_renderfarm.flows.state.job_state import JobState


class Rendering:
    """Renders the chunks of a job that are not done; `eta` may be called from another thread.

    Args:
        state: The job, whose inputs digest is known.
        chunks: The chunks.
        adapter: Where commands run.
        rules: What the stitcher asks of chunks.
        attempts: How chunks are tried.
        width: Number of chunks to render at once.
        failures: Takes the attempts that fail.
        lock: The job lock that this run holds; None: the run that started this one holds it.
        force: Whether to render chunks anew that are done.

    Attributes:
        reused: The ids of the chunks that earlier runs have rendered.

    Raises:
        SetupError: The storage is not saved, so that other machines could not load it.
        StorageError: The storage did not answer.
    """

    def __init__(
        self,
        state: JobState,
        chunks: Sequence[Chunk],
        adapter: WorkerAdapter,
        rules: ChunkRules,
        attempts: Attempts,
        *,
        width: int,
        failures: Failures,
        lock: JobLock | None,
        force: bool = False,
    ) -> None:
        done = finished_chunks(state, chunks, rules, force=force)
        self.reused = frozenset(done)
        self._chunks = chunks
        self._width = width
        self._runs: ChunkRuns | ChunkRenderer
        if isinstance(adapter, WorkPoolAdapter):
            most = min(adapter.max_runs, math.ceil(width / adapter.chunks_at_once))
            self._runs = ChunkRuns(
                state, chunks, adapter, rules, attempts, done, width=most, failures=failures
            )
        else:
            self._runs = ChunkRenderer(state, adapter, rules, attempts, done, failures, lock)

    def eta(self) -> Eta:
        """Return how far the rendering is."""
        return self._runs.eta()

    def render(self) -> list[ChunkResult]:
        """Render the chunks; when the last attempt of one fails, stop the rest, raise its error."""
        if isinstance(self._runs, ChunkRuns):
            return self._runs.render()
        return render_all(self._runs, self._chunks, concurrency=self._width)
