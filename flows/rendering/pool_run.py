"""One flow run of `render-chunks`, as the run sees it that started it."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import suppress

from prefect.client.schemas.objects import FlowRun

from prefect_renderfarm.blocks.runtime.prefect_api import declare_crashed, end_run, read_runs
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.flows.jobs.fields import Chunk

# A worker that is up ends a run within this time; Prefect's own limit is 30 s.
_ENDING_SECONDS = 45.0
# How long a job that fails waits for its runs to end, so that none disturbs the next attempt.
_LAST_WAIT_SECONDS = 20.0
# A run whose chunks are all done needs a moment to report.
_REPORTING_SECONDS = 5.0


class BatchRun:
    """A run and the chunks that it has yet to render, in the order in which it renders them.

    Args:
        run: The run.
        chunks: Its chunks.
        again: Whether another run was given these chunks before, and still has them.
    """

    def __init__(self, run: FlowRun, chunks: Sequence[Chunk], again: bool = False) -> None:
        self.run = run
        self.chunks = list(chunks)
        self.duplicated = again
        self.lost = ""
        self._news_at = time.monotonic()
        self._ending_since: float | None = None

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name

    @property
    def begun(self) -> bool:
        """Whether a worker has taken the run."""
        return self.run.start_time is not None or bool(
            self.run.state and (self.run.state.is_pending() or self.run.state.is_running())
        )

    @property
    def running(self) -> bool:
        """Whether the run renders, as far as the server knows."""
        return bool(self.run.state and self.run.state.is_running())

    @property
    def final(self) -> bool:
        """Whether the run has ended."""
        return bool(self.run.state and self.run.state.is_final())

    @property
    def silence(self) -> float:
        """Seconds since the run began, or since the last one of its chunks was done."""
        return time.monotonic() - self._news_at

    @property
    def frames_left(self) -> int:
        """Number of frames that the run has yet to render."""
        return sum(chunk.frame_count for chunk in self.chunks)

    def update(self, run: FlowRun, done: Collection[int]) -> None:
        """Take note of what the server says of the run, and of which chunks are done."""
        left = [chunk for chunk in self.chunks if chunk.id not in done]
        if run.state_type != self.run.state_type or len(left) < len(self.chunks):
            self._news_at = time.monotonic()
        self.run, self.chunks = run, left

    def end(self, reason: str) -> None:
        """Have the run ended, if it is not; once."""
        if self._ending_since is None and not self.final:
            end_run(self.run.id, reason)
            self._ending_since = time.monotonic()

    def give_up(self, reason: str) -> None:
        """Take the run for lost: have it ended, and declare it crashed if nobody ends it."""
        self.lost = reason
        self.end(reason)
        if self._ending_since and time.monotonic() - self._ending_since > _ENDING_SECONDS:
            declare_crashed(self.run.id, reason)

    def dismiss(self, reason: str) -> None:
        """End a run of which all chunks are done, if it still renders what another did, too."""
        if self.duplicated and self.silence > _REPORTING_SECONDS:
            self.end(reason)


def end_all(runs: Sequence[BatchRun], reason: str) -> None:
    """Have runs ended, whatever happens at one of them."""
    for run in runs:
        try:
            run.end(reason)
        except Exception as error:
            with suppress(Exception):
                run_log().warning("run %r cannot be ended: %s", run.name, error)


def wait_for_ends(runs: Sequence[BatchRun]) -> None:
    """Wait until runs that are being ended have ended, for a limited time."""
    deadline = time.monotonic() + _LAST_WAIT_SECONDS
    with suppress(Exception):  # nobody is helped by an error on top of the one that ends the job
        while not all(run.final for run in runs) and time.monotonic() < deadline:
            time.sleep(0.25)
            states = read_runs(run.run.id for run in runs)
            for run in runs:
                run.update(states.get(run.run.id, run.run), ())
