"""A progress bar on the flow run's page."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any, Self

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext

from prefect_renderfarm.blocks.runtime.prefect_api import call_sync
from prefect_renderfarm.blocks.runtime.run_log import run_log

# An update is a request of some 30 ms to the server.
_SECONDS_BETWEEN_UPDATES = 1.0


class Progress:
    """A context that shows progress on the flow run's page; without a flow run, nowhere.

    A thread sends the updates, so that the work never waits for the server.

    Args:
        total: The number that is 100 %.
        what: What is counted, such as `chunks rendered`.
    """

    def __init__(self, total: int, what: str) -> None:
        self._total = total
        self._what = what
        self._now = (0, "")
        self._over = threading.Event()
        self._warned = False
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), daemon=True)

    def show(self, done: int, note: str = "") -> None:
        """Set what is shown: at most once a second, and at the end."""
        self._now = (done, note)

    def __enter__(self) -> Self:
        if FlowRunContext.get() is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        shown = self._now
        artifact = self._call(create_progress_artifact, 0.0, description=self._text(*shown))
        while artifact is not None:
            over = self._over.wait(_SECONDS_BETWEEN_UPDATES)
            if self._now != shown:
                shown = done, note = self._now
                percent, text = 100.0 * done / self._total, self._text(done, note)
                self._call(update_progress_artifact, artifact, percent, description=text)
            if over:
                return

    def _text(self, done: int, note: str) -> str:
        return f"{done:,} of {self._total:,} {self._what}{note}"

    def _call(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return call_sync(call, *arguments, **options)
        except Exception as error:
            log = run_log().debug if self._warned else run_log().warning
            log("cannot show progress: %s", error)
            self._warned = True
            return None
