"""A run of `merge-job` on another work pool: start it in time, wait for it, stop it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from uuid import uuid4

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed, Scheduled

from prefect_renderfarm.blocks.errors import AssemblyError
from prefect_renderfarm.blocks.runtime.prefect_api import (
    declare_crashed,
    end_run,
    is_away,
    run_log,
    start_run,
)
from prefect_renderfarm.blocks.runtime.repeat import SERVER_AWAY_SECONDS, periodic, retry
from prefect_renderfarm.blocks.runtime.run_events import run_events
from prefect_renderfarm.flows.results import MergeReport
from prefect_renderfarm.flows.runs.names import job_label, job_tag
from prefect_renderfarm.flows.runs.waiting import telling_why_runs_wait
from prefect_renderfarm.flows.state.finished import Eta
from prefect_renderfarm.flows.state.job_state import JobState

# Name of the state of a merge run that gave its slot on the work pool back.
RELEASED = "Released"
# How often the server is asked how the run is, where it does not tell by itself.
_ASK_SECONDS = 10.0
_ASK_AHEAD_SECONDS = 30.0  # while chunks render: nobody waits for it yet
# A merge run whose process is lost is started again; one that is lost this often is at fault.
_MOST_LOST = 3
_AHEAD_POLL_SECONDS = 0.25
# A run whose worker was killed just after it took it stays Pending for ever; one whose container is
# being fetched and started stays so for minutes.
_STARTING_SECONDS = 300.0


class MergeRun:
    """A run of the `merge-job` deployment, as a child of the current flow run.

    The inputs digest, which is known when it is started, is added to its parameters.
    """

    def __init__(self, deployment: str, parameters: dict[str, Any], state: JobState) -> None:
        self._deployment = deployment
        self._parameters = parameters
        self._state = state
        self._run: FlowRun | None = None
        self._key: str | None = None
        self._pending_since: float | None = None
        self._lost = 0
        self._all_done = self._finishing = False

    def start(self) -> FlowRun:
        """Start the run; it waits for the chunks that are not done yet.

        A run of which the server's answer was lost is found when it is started again.
        """
        self._pending_since = None
        asked_before, self._key = self._key is not None, self._key or uuid4().hex
        try:
            run = self._start()
            if asked_before and _state(run).is_final() and not _state(run).is_completed():
                self._key = uuid4().hex
                run = self._start()
        except Exception as error:
            if not is_away(error):
                self._key = None
            raise
        self._run, self._key = run, None
        return run

    def _start(self) -> FlowRun:
        return start_run(
            self._deployment,
            self._parameters | {"inputs": self._state.inputs},
            name=f"merge {job_label(self._state.job)}",
            tags=[job_tag(self._state.job)],
            idempotency_key=self._key,
        )

    def alive(self) -> bool:
        """Return whether the run is pending, running, completed or failed. Idempotent.

        After one that gave its slot back, or whose process was lost, another may be started. One
        that failed is kept: another would fail the same way.
        """
        if self._run is None:
            return False
        lost = ""
        try:
            with get_client(sync_client=True) as client:
                self._run = client.read_flow_run(self._run.id)
            pending_since, self._pending_since = self._pending_since, None
            if _state(self._run).is_pending():
                self._pending_since = pending_since or time.monotonic()
                if time.monotonic() - self._pending_since > _STARTING_SECONDS:
                    lost = "its worker took it, and never began it"
                    declare_crashed(self._run.id, lost)
        except ObjectNotFound:
            lost = "it was deleted on the server"
        if lost:
            self._run.state = Crashed(message=lost)
        state = _state(self._run)
        if state.is_crashed():
            self._lost += 1
            run_log().warning("merge-job run %r was lost: %s", self._run.name, state.message)
            replaced = self._lost < _MOST_LOST
        else:
            # One that was started after the last chunk gives its slot back for a reason that stays.
            replaced = state.name == RELEASED and not self._all_done
        if replaced:
            self._run = None
        return not replaced

    def finish(self) -> MergeReport:
        """Wait for the end of the assembly; all chunks are done now. Raises: AssemblyError."""
        try:
            ended = self._wait()
        except BaseException:
            self.cancel("its render-job was stopped")
            raise
        if not _state(ended).is_completed():
            raise AssemblyError(_failure(ended))
        return retry(partial(self._state.load_merge, str(ended.id)), "the merge run's report")

    def _wait(self) -> FlowRun:
        tell = telling_why_runs_wait()
        with run_events(tag=job_tag(self._state.job)) as wait:
            while True:
                # A server that is started again costs no film: the run goes on without it.
                run = retry(self._look, "state of the merge run", seconds=SERVER_AWAY_SECONDS)
                if _state(run).is_final():
                    return run
                tell([run])
                wait(_ASK_SECONDS)

    def _look(self) -> FlowRun:
        """Return the run as it is now, all chunks being done; start it if there is none."""
        run = self._run if self.alive() else None
        if not self._finishing and run is not None and _state(run).is_failed():
            # What it met while it waited for chunks may be over, such as a storage that was away.
            run_log().warning("it is started again: %s", _failure(run))
            run = self._run = None
        self._finishing = True
        if run is None:
            self._all_done = True
            run = self.start()
        return run

    def cancel(self, reason: str) -> None:
        """End the run, if there is one: one that has not begun at once, others by their worker.

        A server that does not answer hides no error for which the run is ended.
        """
        try:
            if self._run is None and self._key is not None:
                self._run = self._start()
            if self._run is not None:
                end_run(self._run.id, reason)
        except Exception as error:
            run_log().warning("a merge run may be left that could not be ended: %s", error)


def _state(run: FlowRun) -> State[Any]:
    return run.state or Scheduled()


def _failure(run: FlowRun) -> str:
    message = (_state(run).message or "").removeprefix("Flow run encountered an exception: ")
    return (
        f"merge-job run {run.name!r} on work pool {run.work_pool_name!r} ended as "
        f"{_state(run).name}: {message}"
    )


@contextmanager
def starting_ahead(
    merge_run: MergeRun | None, eta: Callable[[], Eta], width: int, lead: float
) -> Iterator[None]:
    """Inside the block, in which chunks are rendered, start the merge run so that it is warm.

    It is started once the ETA of the rest, `width` chunks at once, is at most `lead` seconds, or at
    once if all chunks run already; with a lead of 0 not ahead. A merge run that gave its slot back,
    because chunks took longer, is started again after the next chunk. If the block ends with an
    error, the merge run is cancelled.
    """
    if merge_run is None:
        yield
        return
    finished_at_start = -1
    ask_at = 0.0

    def look() -> None:
        nonlocal finished_at_start, ask_at
        now = eta()
        left = now.seconds_left(width)
        due = now.waiting == 0 if left is None else left <= lead
        if not due or len(now.finished) <= finished_at_start or time.monotonic() < ask_at:
            return
        ask_at = time.monotonic() + _ASK_AHEAD_SECONDS
        if not merge_run.alive():
            finished_at_start = len(now.finished)  # a start that fails is not tried again at once
            merge_run.start()

    ahead = periodic(look, _AHEAD_POLL_SECONDS, "start of the merge run", wait=True)
    try:
        with ahead if lead > 0 else nullcontext():
            yield
    except BaseException:
        merge_run.cancel("its render-job ended without all chunks")
        raise
