"""Notice chunks that take far longer than the others, and do about it what the job says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median

from prefect_renderfarm.blocks.runtime.periodic import periodic
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.flows.rendering.attempt import RunningAttempt
from prefect_renderfarm.flows.rendering.attempts import Attempts, SlowChunks
from prefect_renderfarm.flows.rendering.chunk_renderer import ChunkRenderer

# So many chunks have to be done before others can be called slow ...
_LEAST_DONE = 3
# ... and so long a chunk has to take: below, the start of a program is most of it.
_LEAST_SECONDS = 5.0
_POLL_SECONDS = 0.5


def slowness(
    attempts: Attempts, frames: int, seconds: float, frame_times: Sequence[float]
) -> str | None:
    """Say in what a chunk is slow; None if it is not.

    Args:
        attempts: How the job's chunks are tried; it says which chunks are slow.
        frames: Number of frames of the chunk.
        seconds: How long it has been rendered.
        frame_times: Seconds that a frame took, of each finished chunk.
    """
    factor = attempts.slow_factor
    if factor is None or len(frame_times) < _LEAST_DONE:
        return None
    usual = median(frame_times) * frames
    if seconds < max(factor * usual, _LEAST_SECONDS):
        return None
    return f"it takes {factor:g} times as long as the others, which took {usual:.1f} s"


@contextmanager
def watching_slow_chunks(renderer: ChunkRenderer) -> Iterator[None]:
    """Inside the block, report, duplicate or end a renderer's slow chunks."""
    if renderer.attempts.slow_factor is None:
        yield
        return
    with periodic(partial(_look, renderer), _POLL_SECONDS, "slow chunks"):
        yield


def _look(renderer: ChunkRenderer) -> None:
    times = renderer.frame_times()
    for attempt in list(renderer.running.values()):
        slow = slowness(renderer.attempts, attempt.chunk.frame_count, attempt.age, times)
        if slow is not None and not attempt.slow:
            attempt.slow = True
            _act(attempt, renderer.attempts.slow_chunks, slow)


def _act(attempt: RunningAttempt, action: SlowChunks, slow: str) -> None:
    log, chunk = run_log(), attempt.chunk.id
    if action is SlowChunks.END:
        log.warning("chunk %s: %s: this attempt is ended", chunk, slow)
        attempt.end(f"ended after {attempt.age:.0f} s: {slow}")
    elif action is SlowChunks.DUPLICATE:
        log.warning("chunk %s: %s: a second attempt begins beside it", chunk, slow)
        attempt.duplicate()
    else:
        log.warning("chunk %s: %s", chunk, slow)
