"""Rendering a job's chunks: what is done already, and by task runs or flow runs the rest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import as_completed
from prefect.states import Cancelled
from prefect.task_runners import ThreadPoolTaskRunner

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.adapters.work_pool import WorkPoolAdapter
from prefect_renderfarm.blocks.errors import WorkStopped
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.spec import Chunk
from prefect_renderfarm.flows.rendering.attempts import Attempts, Failures
from prefect_renderfarm.flows.rendering.chunk_renderer import ChunkRenderer
from prefect_renderfarm.flows.rendering.pool import ChunkRuns
from prefect_renderfarm.flows.rendering.pool_chunks import DoneChunks
from prefect_renderfarm.flows.runs.report import Progress
from prefect_renderfarm.flows.state.finished import Eta, finished_chunks
from prefect_renderfarm.flows.state.job_lock import JobLock
from prefect_renderfarm.flows.state.job_state import JobState

# Prefect's server drops events, and with them task runs, somewhere beyond 1,000 a job.
MAX_TASK_RUNS = 1000
_SECONDS_BETWEEN_ENTRIES = 1.0


class Rendering:
    """Renders the chunks of a job that are not done. The job's inputs digest must be known.

    Attributes:
        reused: The ids of the chunks that earlier runs have rendered.
        render: Renders the others, and returns all in their order. When the last attempt at one
            fails, the rest is stopped and its error raised.
        eta: Returns how far the rendering is; from any thread.
    """

    reused: frozenset[int]
    render: Callable[[], list[ChunkResult]]
    eta: Callable[[], Eta]

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
        if isinstance(adapter, WorkPoolAdapter):
            most = min(adapter.max_runs, math.ceil(width / adapter.chunks_at_once))
            known = DoneChunks(state, chunks, rules, attempts.retries, done)
            runs = ChunkRuns(known, adapter, attempts, failures, most)
            self.render, self.eta = runs.render, runs.eta
        else:
            renderer = ChunkRenderer(state, adapter, rules, attempts, done, failures, lock)
            self.render, self.eta = partial(_render_here, renderer, chunks, width), renderer.eta


def _render_here(renderer: ChunkRenderer, chunks: Sequence[Chunk], width: int) -> list[ChunkResult]:
    """Render chunks as task runs of the current flow run."""
    left = [chunk for chunk in chunks if chunk.id not in renderer.done]
    size = math.ceil(len(left) / MAX_TASK_RUNS) or 1
    batches = [ChunkBatch(left[i : i + size], renderer) for i in range(0, len(left), size)]
    progress = Progress(len(renderer.done) + len(left), "chunks rendered")
    pool: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=width)
    # Leaving the pool waits for what runs in it: so stop that first, whatever the reason.
    with pool as runner, progress, renderer.working():
        futures: Any = runner.map(render_chunk, {"batch": batches})
        for future in as_completed(list(futures)):
            future.wait()  # only then is its state the final one, not the server's latest
            if not future.state.is_completed():
                raise renderer.failure or _error_of(future.state)
            progress.show(len(renderer.done))
    return [renderer.done[chunk.id] for chunk in chunks]


def _error_of(state: State[Any]) -> BaseException:
    error = state.result(raise_on_failure=False)
    if isinstance(error, BaseException):
        return error
    return WorkStopped(f"a chunk's task run ended as {state.name}: {state.message}")


class ChunkBatch:
    """Chunks that one task run renders one after the other, and who renders them.

    Not a list and not a model, so that Prefect passes it on as it is.
    """

    def __init__(self, chunks: Sequence[Chunk], renderer: ChunkRenderer) -> None:
        self.chunks = chunks
        self.renderer = renderer

    @property
    def label(self) -> str:
        """The name of the task run."""
        first, last = self.chunks[0], self.chunks[-1]
        name = f"chunk {first.id}" if first is last else f"chunks {first.id}-{last.id}"
        return f"{name}, frames {first.start_frame}-{last.end_frame - 1}"


@task(
    name="render-chunk", task_run_name="{batch.label}", cache_policy=NO_CACHE, persist_result=False
)
def render_chunk(batch: ChunkBatch) -> State[Any] | None:
    """Render the chunks of a batch. Ends as Cancelled if the job was stopped meanwhile."""
    log = DoneLog()
    try:
        for chunk in batch.chunks:
            log.add(chunk, batch.renderer.render(chunk))
    except WorkStopped as stopped:
        return Cancelled(message=str(stopped))
    finally:
        log.write()
    return None


class DoneLog:
    """Logs the chunks that a task run renders one after the other.

    Those that are done within a second share a log entry of several lines: of chunks that take a
    few milliseconds, an entry each would cost a fifth more.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._written_at = -math.inf

    def add(self, chunk: Chunk, result: ChunkResult) -> None:
        """Log a chunk that is done, now or with the next ones."""
        self._lines.append(
            f"chunk {chunk.id}: frames {chunk.start_frame}-{chunk.end_frame - 1} done in "
            f"{result.seconds:.1f} s, {result.size:,} bytes"
        )
        if time.monotonic() - self._written_at >= _SECONDS_BETWEEN_ENTRIES:
            self.write()

    def write(self) -> None:
        """Log the chunks that are not logged yet."""
        if self._lines:
            run_log().info("%s", "\n".join(self._lines))
            self._lines.clear()
            self._written_at = time.monotonic()
