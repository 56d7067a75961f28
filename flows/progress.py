"""A progress bar on the flow run's page."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Self
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext

from prefect_renderfarm.blocks.run_log import run_log
from prefect_renderfarm.flows.in_sync import in_sync

# An update is a request of some 30 ms to the server.
_SECONDS_BETWEEN_UPDATES = 1.0


class Progress:
    """Shows how much of something is done; outside a flow run it shows nothing.

    Args:
        total: How much there is to do.
        what: What is being counted, such as `chunks rendered`.
    """

    def __init__(self, total: int, what: str) -> None:
        self._total = total
        self._what = what
        self._done = 0
        self._note = ""
        self._shown_at = time.monotonic()
        self._artifact: UUID | None = None
        if FlowRunContext.get() is not None:
            self._artifact = self._safely(
                lambda: in_sync(create_progress_artifact, 0.0, description=self._text(0))
            )

    def show(self, done: int, note: str = "") -> None:
        """Tell how much is done; it is shown at most once a second, and at the end."""
        self._done = done
        self._note = note
        if time.monotonic() - self._shown_at >= _SECONDS_BETWEEN_UPDATES:
            self._update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._update()

    def _update(self) -> None:
        artifact = self._artifact
        if artifact is None:
            return
        self._shown_at = time.monotonic()
        percent = 100.0 * self._done / self._total
        text = self._text(self._done)
        self._safely(lambda: in_sync(update_progress_artifact, artifact, percent, description=text))

    def _text(self, done: int) -> str:
        return f"{done:,} of {self._total:,} {self._what}{self._note}"

    @staticmethod
    def _safely(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            run_log().warning("progress cannot be shown: %s", error)
            return None
