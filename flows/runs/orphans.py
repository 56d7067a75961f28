"""Runs that would go on, or show as Running, though the run that they belong to is over.

The process worker notices within seconds that a flow run's process was killed, and declares that
one run crashed. Its task runs, and the flow runs that it called in its own process, stay Running on
the server for ever; the runs that it started on work pools go on.
"""

from __future__ import annotations

import contextvars
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State, StateType
from prefect.exceptions import TerminationSignal
from prefect.runtime import deployment
from prefect.runtime import flow_run as this_run
from prefect.states import Crashed, Scheduled

from prefect_renderfarm.blocks.runtime.prefect_api import (
    declare_crashed,
    end_run,
    read_runs,
    run_log,
)
from prefect_renderfarm.blocks.runtime.repeat import periodic
from prefect_renderfarm.flows.runs.failure import RunCancelled

# The server records what task runs say of themselves after about a second; farm.py has it so.
_RECORDING_SECONDS = 2.0
# What a killed run said last may still be on its way, so its hook looks more than once.
_LOOKS = 2
_OPEN = {"type": {"any_": [kind for kind in StateType if kind not in TERMINAL_STATES]}}
_WORKER_POLL_SECONDS = 1.0
# Six requests a minute; a cancelled run has 10 s left to end its commands within 20 s.
_ASK_SECONDS = 10.0
_ASK_ABOUT_PARENT_SECONDS = 15.0
# Prefect's process worker and `prefect flow-run execute` set this to "false" for the runs that they
# end themselves (prefect.flow_engine, `_engine_owns_cancellation_handling`).
_SUPERVISED = "PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS"


def end_with_run(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """End the parts of a run whose process was killed; for `on_crashed` of a flow.

    The worker that started the run calls this. A run that crashes in good order, on a signal, does
    so, too; but its parts have all said how they ended.
    """
    if flow_run.deployment_id is None or str(flow_run.id) == this_run.id:
        return
    for _ in range(_LOOKS):
        time.sleep(_RECORDING_SECONDS)
        with get_client(sync_client=True) as client:
            _end_parts(client, flow_run)


def end_after_death(run_id: UUID, *, certain: bool) -> None:
    """End what a run left behind that has died: its parts, and the runs that it had started.

    Never fails: the server's states are for people to look at, and the job folder or storage says
    what is done. `certain`: its process has ended for certain, and was not only silent.
    """
    try:
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(run_id)
            final = run.state is not None and run.state.is_final()
            if certain and not final:
                declare_crashed(run.id, "its process is gone")
            if certain or final:
                _end_parts(client, run)
            for child in _open_children(client, run):
                if child.deployment_id is not None:
                    end_run(child.id, _reason(run))
    except Exception as error:
        run_log().warning("the runs that a dead run left behind cannot be ended: %s", error)


def _end_parts(client: SyncPrefectClient, run: FlowRun) -> None:
    """End the task runs of a dead run, and the flow runs that it called in its own process."""
    for child in _open_children(client, run):
        if child.deployment_id is None:
            declare_crashed(child.id, _reason(run))
            _end_parts(client, child)
    # Not those that stand for a flow run.
    wanted = {"flow_run_id": {"any_": [run.id]}, "state": _OPEN, "subflow_runs": {"exists_": False}}
    task_runs = TaskRunFilter.model_validate(wanted)
    ended: set[UUID] = set()
    while found := {item.id for item in client.read_task_runs(task_run_filter=task_runs)} - ended:
        for task_run_id in found:
            client.set_task_run_state(task_run_id, Crashed(message=_reason(run)), force=True)
        ended |= found


def _open_children(client: SyncPrefectClient, run: FlowRun) -> list[FlowRun]:
    parent = {"parent_flow_run_id": {"any_": [run.id]}, "state": _OPEN}
    return client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(parent))


def _reason(run: FlowRun) -> str:
    return f"flow run {run.name!r}, to which it belonged, has died or was ended"


def why_no_more_chunks(with_job: bool, *, crashed: bool = True) -> Callable[[], str | None]:
    """Return a function that says why no more chunks come for the current run, or are wanted.

    That is if the run, or the one that started it, is cancelled; `with_job` also if one has ended.
    It returns None while they run, and while the server does not answer: chunks come without a
    server, too. The server is asked once in 15 s. `crashed`: a run that the server calls crashed
    counts; it may be alive, and cut off from the server.
    """
    ids = _watched(with_job=True)
    log = run_log()
    # With the run's client; a new one would ask for a CSRF token each time.
    context = contextvars.copy_context()
    due = 0.0

    def ask() -> str | None:
        nonlocal due
        if not ids or time.monotonic() < due:
            return None
        due = time.monotonic() + _ASK_ABOUT_PARENT_SECONDS
        try:
            found = context.copy().run(_reason_to_end, ids, ended=with_job, crashed=crashed)
        except Exception as error:
            log.warning("the server does not say how the rendering is: %s", error)
            return None
        return found or None

    return ask


@contextmanager
def ending_in_order(*, with_job: bool = False) -> Iterator[None]:
    """Inside the block, end a deployed run in good order that nobody else would end so.

    A process worker ends its runs when they are cancelled; but one that is killed leaves them
    running, and with them their renderers: a process whose parent dies gets another parent. In a
    container, pod or task nobody ends a run that is cancelled, so it looks at its own state, and
    `with_job` at that of the run that started it. A flow that is called from Python is not watched.

    Raises:
        RunCancelled: The run, or the one that started it, was cancelled, or that one has ended.
    """
    if deployment.id is None:
        yield
        return
    main = threading.main_thread().ident or 0
    parent = os.getppid()
    supervised = os.environ.get(_SUPERVISED) == "false"
    ids = [] if supervised else _watched(with_job)
    reason = ""

    def look() -> None:
        nonlocal reason
        found = ""
        if reason:
            return
        if not supervised:
            found = _reason_to_end(ids)
        elif os.getppid() != parent:
            found = "the worker that started this run is gone"
            # Standard output and error are pipes that nobody reads any more, and rich, with which
            # Prefect prints its log, ends the thread that meets a broken pipe.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            os.close(nowhere)
        if found:
            reason = found
            run_log().error("%s: the run ends, too", reason)
            # Prefect ends a run in good order on SIGTERM; only the main thread can take it.
            signal.pthread_kill(main, signal.SIGTERM)

    seconds = _WORKER_POLL_SECONDS if supervised else _ASK_SECONDS
    try:
        # Outside the block the signal would end the run as Crashed: the watch ends before that.
        with periodic(look, seconds, "watch on the run", wait=True):
            yield
    except TerminationSignal:
        if supervised or not reason:
            raise
    except Exception:
        # A run that this one started may have known of the cancel sooner.
        reason = _own_reason_to_end()
        if not reason:
            raise
    else:
        reason = _own_reason_to_end()
    if reason:  # and nothing else: the server lets a run that is Cancelling only be Cancelled
        raise RunCancelled(reason) from None


def _watched(with_job: bool) -> list[UUID]:
    """Return the current run, if it is deployed, and `with_job` the one that started it."""
    own = this_run.id if deployment.id is not None else None
    ids = [own, this_run.parent_flow_run_id if with_job else None]
    return [UUID(run_id) for run_id in ids if run_id is not None]


def _own_reason_to_end() -> str:
    try:
        return _reason_to_end(_watched(with_job=False))
    except Exception as error:
        run_log().warning("the server does not say whether the run was cancelled: %s", error)
        return ""


def _reason_to_end(ids: Iterable[UUID], *, ended: bool = True, crashed: bool = False) -> str:
    """Return which of some runs is cancelled or, if that counts, has ended, and how; "" if none.

    One that the server calls crashed may be alive, and was cut off: it counts if `crashed` is set.
    """
    for run in read_runs(ids).values():
        state = run.state or Scheduled()
        cancelled = state.is_cancelling() or state.is_cancelled()
        if cancelled or (ended and state.is_final() and (crashed or not state.is_crashed())):
            how = "was cancelled" if cancelled else f"ended as {state.name}"
            why = f": {state.message}" if state.is_cancelling() and state.message else ""
            return f"flow run {run.name!r} {how}{why}"
    return ""
