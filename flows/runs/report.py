"""Progress bars and other artifacts of a flow run, and what a job came to, in a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from humanize import naturalsize
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext

from prefect_renderfarm.blocks.runtime.prefect_api import call_sync, run_log
from prefect_renderfarm.blocks.runtime.repeat import periodic
from prefect_renderfarm.blocks.stitchers.base import StitchReport
from prefect_renderfarm.flows.results import RenderReport

# An update is a request of some 30 ms to the server.
_SECONDS_BETWEEN_UPDATES = 1.0
_MINUTE = 60.0  # seconds


@contextmanager
def showing_progress(
    total: int, what: str, more: Callable[[], str] = str
) -> Iterator[Callable[..., None]]:
    """Inside the block, show "3 of 9 chunks rendered" on the flow run's page, if there is a run.

    Yields `show(done, note="")`, which sets what a thread sends, at most once a second, and at the
    end: the work never waits for the server. `more` is asked for what stands behind the note.
    """
    now = (0, "")
    sent = ""
    artifact: Any = None

    def show(done: int, note: str = "") -> None:
        nonlocal now
        now = (done, note)

    def send() -> None:
        nonlocal artifact, sent
        done, note = now
        text = f"{done:,} of {total:,} {what}{note}{more()}"
        if text == sent:
            return
        shown = {"progress": 100.0 * done / total, "description": text}
        if artifact is None:
            artifact = call_sync(create_progress_artifact, **shown)
        else:
            call_sync(update_progress_artifact, artifact, **shown)
        sent = text

    if FlowRunContext.get() is None:
        yield show
        return
    try:
        with periodic(send, _SECONDS_BETWEEN_UPDATES, "progress", wait=True):
            yield show
    finally:
        with only_logged("show progress"):
            send()


@contextmanager
def only_logged(what: str) -> Iterator[None]:
    """Inside the block, an error is only logged: what a page cannot show fails no job."""
    try:
        yield
    except Exception as error:
        # Errors quote what was sent, and a link to a film is a secret for a day.
        run_log().warning("cannot %s: %s", what, type(error).__name__)


def about(seconds: float) -> str:
    """Return a duration for people: 40 s, 12 min, 3 h."""
    if seconds < _MINUTE:
        return f"{max(round(seconds, -1), 10):.0f} s" if seconds > 10 else f"{seconds:.0f} s"
    if seconds < 90 * _MINUTE:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds / 60 / _MINUTE:.0f} h"


def summarized(report: RenderReport) -> str:
    """Return what a job came to, in a line."""
    if report.film is None:
        return f"{report.frames:,} frames in {len(report.chunks):,} chunks, {report.assembly}"
    if report.stitch is None:
        return f"film: {report.film} ({report.frames:,} frames)"
    return film_line(report.film, report.stitch)


def film_line(film: Path, stitch: StitchReport) -> str:
    """Return what a film is, and where, in a line."""
    size = naturalsize(stitch.size)
    return f"film: {film} ({stitch.frames:,} frames, {stitch.duration:.1f} s, {size})"
