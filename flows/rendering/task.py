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
from prefect_renderfarm.flows.rendering.attempts import worth_another_attempt
from prefect_renderfarm.flows.rendering.chunk_renderer import ChunkRenderer
from prefect_renderfarm.flows.rendering.slow_chunks import SlowWatch
from prefect_renderfarm.flows.runs.progress import Progress

_SECONDS_BETWEEN_ENTRIES = 1.0


class DoneLog:
    """Takes the chunks that a task run renders one after the other.

    Those that are done within a second are told in one entry of several lines: of a chunk that
    takes a few milliseconds, an entry of its own in Prefect's log would cost a fifth more. So they
    are told with the next one, or at the end.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._told_at = -math.inf

    def add(self, chunk: Chunk, result: ChunkResult) -> None:
        """Take note of a chunk that is done."""
        self._lines.append(
            f"chunk {chunk.id}: frames {chunk.start_frame}-{chunk.end_frame - 1} done in "
            f"{result.seconds:.1f} s, {result.size:,} bytes"
        )
        if time.monotonic() - self._told_at >= _SECONDS_BETWEEN_ENTRIES:
            self.tell()

    def tell(self) -> None:
        """Tell of the chunks that were not told of yet."""
        if self._lines:
            run_log().info("%s", "\n".join(self._lines))
            self._lines.clear()
            self._told_at = time.monotonic()


# Prefect's server drops events, and with them task runs, somewhere beyond 1,000 a job.
MAX_TASK_RUNS = 1000


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
    try:
        return [_render_and_log(batch.renderer, chunk, log) for chunk in batch.chunks]
    except WorkStopped as stopped:
        return Cancelled(message=str(stopped))
    finally:
        log.tell()


def _render_and_log(renderer: ChunkRenderer, chunk: Chunk, log: DoneLog) -> ChunkResult:
    told = chunk.id in renderer.done  # by an earlier attempt at the batch
    try:
        result = renderer.render(chunk)
    except WorkStopped:
        raise
    except Exception as error:
        # Here, and not where the flow waits: by then a freed thread would have begun another chunk.
        if not worth_another_attempt(error) or renderer.tried_enough(chunk):
            renderer.give_up(error)
        raise
    if not told:
        log.add(chunk, result)
    return result


def render_all(
    renderer: ChunkRenderer,
    chunks: Sequence[Chunk],
    *,
    concurrency: int,
) -> list[ChunkResult]:
    """Render chunks as task runs of the current flow run, `concurrency` at a time.

    When one fails for good, those that have not begun never do, and those that run are ended.

    Args:
        renderer: Renders one chunk.
        chunks: The chunks.
        concurrency: Number of chunks to render at once.

    Returns:
        The results, in the order of `chunks`.

    Raises:
        WorkerError: That of the first chunk that failed for good.
    """
    batches = _batches([chunk for chunk in chunks if chunk.id not in renderer.done])
    attempt = render_chunk.with_options(
        # Each chunk's own; the renderer gives up when one of them has had its last.
        retries=renderer.attempts.retries * max(map(len, batches), default=1),
        retry_condition_fn=lambda _task, _run, state: (
            not renderer.stop.is_set()
            and worth_another_attempt(state.result(raise_on_failure=False))
        ),
    )
    progress = Progress(len(renderer.done) + sum(map(len, batches)), "chunks rendered")
    pool: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=concurrency)
    # Leaving the pool waits for what runs in it: so stop that first, whatever the reason.
    with pool as runner, progress, SlowWatch(renderer), _stopping(renderer):
        futures: Any = runner.map(
            attempt,
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
