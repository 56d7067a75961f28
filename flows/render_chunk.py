"""The task that renders chunks, and the stage of a flow that maps it over all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import as_completed
from prefect.states import Cancelled
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import Task

from prefect_renderfarm.blocks import FatalWorkerError, RenderFarmError, WorkerError, WorkStopped
from prefect_renderfarm.blocks.run_log import run_log
from prefect_renderfarm.flows.chunk_renderer import ChunkRenderer
from prefect_renderfarm.flows.job import Chunk
from prefect_renderfarm.flows.progress import Progress
from prefect_renderfarm.flows.results import ChunkResult

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
    """Render the chunks of a batch. Ends as Cancelled if the job was stopped meanwhile."""
    log = run_log()
    results = []
    for chunk in batch.chunks:
        try:
            result = batch.renderer.render(chunk)
        except WorkStopped as stopped:
            return Cancelled(message=str(stopped))
        log.info(
            "chunk %s: frames %s-%s done in %.1f s, %s bytes",
            chunk.id, chunk.start_frame, chunk.end_frame - 1, result.seconds, f"{result.size:,}",
        )  # fmt: skip
        results.append(result)
    return results


def render_all(
    renderer: ChunkRenderer,
    chunks: Sequence[Chunk],
    *,
    concurrency: int,
    retries: int,
    retry_delay: float,
) -> list[ChunkResult]:
    """Render chunks as task runs of the current flow run, `concurrency` at a time.

    When one fails for good, those that have not begun never do, and those that run are ended.

    Args:
        renderer: Renders one chunk.
        chunks: The chunks.
        concurrency: Number of chunks to render at once.
        retries: Number of further attempts that a task run has.
        retry_delay: Seconds between two attempts.

    Returns:
        The results, in the order of `chunks`.

    Raises:
        WorkerError: That of the first chunk that failed for good.
    """
    batches = _batches(chunks)
    attempt = render_chunk.with_options(
        retries=retries,
        retry_delay_seconds=retry_delay,
        retry_condition_fn=_worth_another_attempt(renderer),
    )
    progress = Progress(len(chunks), "chunks rendered")
    pool: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=concurrency)
    # Leaving the pool waits for what runs in it: so stop that first, whatever the reason.
    with pool as runner, progress, _stopping(renderer):
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
                _raise(future.state)
            progress.show(len(renderer.done))
    return [renderer.done[chunk.id] for chunk in chunks]


@contextmanager
def _stopping(renderer: ChunkRenderer) -> Iterator[None]:
    try:
        yield
    except BaseException:
        renderer.stop.set()
        raise


def _batches(chunks: Sequence[Chunk]) -> list[Sequence[Chunk]]:
    size = math.ceil(len(chunks) / MAX_TASK_RUNS)
    return [chunks[first : first + size] for first in range(0, len(chunks), size)]


def _label(batch: Sequence[Chunk]) -> str:
    first, last = batch[0], batch[-1]
    name = f"chunk {first.id}" if first is last else f"chunks {first.id}-{last.id}"
    return f"{name}, frames {first.start_frame}-{last.end_frame - 1}"


def _worth_another_attempt(
    renderer: ChunkRenderer,
) -> Callable[[Task[..., Any], TaskRun, State[Any]], bool]:
    def decide(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
        error = state.result(raise_on_failure=False)
        fatal = isinstance(error, RenderFarmError) and (
            not isinstance(error, WorkerError) or isinstance(error, FatalWorkerError)
        )
        return not fatal and not renderer.stop.is_set()

    return decide


def _raise(state: State[Any]) -> None:
    error = state.result(raise_on_failure=False)
    if isinstance(error, BaseException):
        raise error
    raise WorkStopped(state.message or f"a chunk's task run ended as {state.name}")
