"""Start the merge run shortly before the last chunk is done, so that it is warm by then."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Self

from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.flows.merging.merge_run import MergeRun
from prefect_renderfarm.flows.state.eta import Pace

_POLL_SECONDS = 0.25


class MergeAhead:
    """A context around the rendering that starts the merge run in time, from another thread.

    The merge run is started once the rendering will take no longer than `lead` seconds, by the pace
    so far. If all chunks run at once there is no pace yet: then it is started at once. A merge run
    that gave its place back, because chunks took longer, is started again after the next chunk.

    Args:
        merge_run: The run to start.
        pace: Says how far the rendering is.
        width: Number of chunks that are rendered at once.
        lead: Seconds; 0: the merge run is not started ahead.
    """

    def __init__(
        self, merge_run: MergeRun, pace: Callable[[], Pace], width: int, lead: float
    ) -> None:
        self._merge_run = merge_run
        self._pace = pace
        self._width = width
        self._lead = lead
        self._over = threading.Event()
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._watch,), daemon=True)

    def __enter__(self) -> Self:
        if self._lead > 0:
            self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if kind is not None:
            self._merge_run.cancel("its render-job ended without all chunks")

    def _watch(self) -> None:
        started_at = -1
        while not self._over.wait(_POLL_SECONDS):
            try:
                pace = self._pace()
                news = len(pace.finished) > started_at
                if news and self._due(pace) and not self._merge_run.alive():
                    started_at = len(pace.finished)
                    self._merge_run.start()
            except Exception as error:
                # It is started after the last chunk, then, and says there what is wrong.
                run_log().warning("the merge run cannot be started ahead: %s", error)
                return

    def _due(self, pace: Pace) -> bool:
        left = pace.seconds_left(self._width)
        return pace.waiting == 0 if left is None else left <= self._lead
