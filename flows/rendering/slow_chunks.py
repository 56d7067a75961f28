"""Notice chunks that take far longer than the others, and do about it what the job says."""

from __future__ import annotations

import contextvars
import threading
from statistics import median
from typing import Self

from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.flows.rendering.attempt import RunningAttempt
from prefect_renderfarm.flows.rendering.attempts import SlowChunks
from prefect_renderfarm.flows.rendering.chunk_renderer import ChunkRenderer

# So many chunks have to be done before others can be called slow ...
_LEAST_DONE = 3
# ... and so long a chunk has to take: below, the start of a program is most of it.
_LEAST_SECONDS = 5.0
_POLL_SECONDS = 0.5


class SlowWatch:
    """A context in which a renderer's slow chunks are reported, doubled or ended.

    Args:
        renderer: Renders the chunks; it says how they are tried.
    """

    def __init__(self, renderer: ChunkRenderer) -> None:
        self._renderer = renderer
        self._over = threading.Event()
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._watch,), name="slow chunks", daemon=True
        )

    def __enter__(self) -> Self:
        if self._renderer.attempts.slow_factor is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(_POLL_SECONDS):
            times = self._renderer.frame_times()
            if len(times) < _LEAST_DONE:
                continue
            each = median(times)
            for attempt in list(self._renderer.running.values()):
                self._look_at(attempt, each * attempt.chunk.frame_count)

    def _look_at(self, attempt: RunningAttempt, usual: float) -> None:
        how = self._renderer.attempts
        factor = how.slow_factor or 0.0
        if attempt.slow or attempt.age < max(factor * usual, _LEAST_SECONDS):
            return
        attempt.slow = True
        chunk = attempt.chunk.id
        words = f"it takes {factor:g} times as long as the others, which took {usual:.1f} s"
        if how.slow_chunks is SlowChunks.END:
            run_log().warning("chunk %s: %s: this attempt is ended", chunk, words)
            attempt.end(f"ended after {attempt.age:.0f} s: {words}")
        elif how.slow_chunks is SlowChunks.DUPLICATE:
            run_log().warning("chunk %s: %s: a second attempt begins beside it", chunk, words)
            attempt.double()
        else:
            run_log().warning("chunk %s: %s", chunk, words)
