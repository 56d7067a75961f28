"""The task that renders chunks, and the stage of a flow that maps it over all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import as_completed
from prefect.states import Cancelled
from prefect.task_runners import ThreadPoolTaskRunner

from prefect_renderfarm.blocks.errors import WorkStopped
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.fields import Chunk
from prefect_renderfarm.flows.rendering.chunk_renderer import ChunkRenderer
from prefect_renderfarm.flows.rendering.slow_chunks import watching_slow_chunks
from prefect_renderfarm.flows.runs.progress import Progress

# Prefect's server drops events, and with them task runs, somewhere beyond 1,000 a job.
MAX_TASK_RUNS = 1000
_SECONDS_BETWEEN_ENTRIES = 1.0


class DoneLog:
    """Takes the chunks that a task run renders one after the other.

    Those that are done within a second share a log entry of several lines: of chunks that take a
    few milliseconds, an entry each would cost a fifth more.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._written_at = -math.inf

    def add(self, chunk: Chunk, result: ChunkResult) -> None:
        """Take note of a chunk that is done."""
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


class ChunkBatch:
    """Chunks that one task run renders one after the other, and who renders them.

    Not a list and not a model, so that Prefect passes it on as it is.
    """

    def __init__(self, chunks: Sequence[Chunk], renderer: ChunkRenderer) -> None:
        self.chunks = chunks
        self.renderer = renderer


@task(name="render-chunk", task_run_name="{label}", cache_policy=NO_CACHE, persist_result=False)
def render_chunk(label: str, batch: ChunkBatch) -> list[ChunkResult] | State[Any]:
    """Render the chunks of a batch. Ends as Cancelled if the job was stopped meanwhile.

    Args:
        label: The task run's name.
        batch: The chunks, and who renders them.
    """
    log = DoneLog()
    results = []
    try:
        for chunk in batch.chunks:
            results.append(batch.renderer.render(chunk))
            log.add(chunk, results[-1])
    except WorkStopped as stopped:
        return Cancelled(message=str(stopped))
    finally:
        log.write()
    return results


def render_all(
    renderer: ChunkRenderer, chunks: Sequence[Chunk], *, concurrency: int
) -> list[ChunkResult]:
    """Render chunks as task runs of the current flow run, `concurrency` at a time.

    When the last attempt of one fails, those that wait never begin, and those that run are ended.

    Args:
        renderer: Renders one chunk.
        chunks: The chunks.
        concurrency: Number of chunks to render at once.

    Returns:
        The results, in the order of `chunks`.

    Raises:
        WorkerError: That of the first chunk whose last attempt failed.
    """
    batches = _batches([chunk for chunk in chunks if chunk.id not in renderer.done])
    progress = Progress(len(renderer.done) + sum(map(len, batches)), "chunks rendered")
    pool: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=concurrency)
    # Leaving the pool waits for what runs in it: so stop that first, whatever the reason.
    with pool as runner, progress, watching_slow_chunks(renderer), _stopping(renderer):
        futures: Any = runner.map(
            render_chunk,
            {
                "label": [_label(batch) for batch in batches],
                "batch": [ChunkBatch(batch, renderer) for batch in batches],
            },
        )
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


@contextmanager
def _stopping(renderer: ChunkRenderer) -> Iterator[None]:
    try:
        yield
    except BaseException:
        renderer.stop.set()
        raise


def _batches(chunks: Sequence[Chunk]) -> list[Sequence[Chunk]]:
    size = math.ceil(len(chunks) / MAX_TASK_RUNS) or 1
    return [chunks[first : first + size] for first in range(0, len(chunks), size)]


def _label(batch: Sequence[Chunk]) -> str:
    first, last = batch[0], batch[-1]
    name = f"chunk {first.id}" if first is last else f"chunks {first.id}-{last.id}"
    return f"{name}, frames {first.start_frame}-{last.end_frame - 1}"
