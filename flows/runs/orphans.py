"""Runs that nobody ends any more, because the run that they are part of is over: end them.

The process worker notices within seconds that a flow run's process was killed, and declares that
one run crashed. Its task runs, and the flow runs that it called in its own process, stay Running on
the server for ever.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterParentTaskRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
    TaskRunFilterId,
    TaskRunFilterState,
    TaskRunFilterStateType,
    TaskRunFilterSubFlowRuns,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State, StateType
from prefect.runtime import flow_run as this_run
from prefect.states import Crashed

from prefect_renderfarm.blocks.runtime.prefect_api import declare_crashed, end_run, read_runs
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.flows.jobs.spec import RenderJob
from prefect_renderfarm.flows.runs.names import job_tag

# The server records what task runs say of themselves after about a second; farm.py has it so.
_RECORDING_SECONDS = 2.0
# What a killed run said last may still be on its way, so its hook looks more than once.
_LOOKS = 2
# Time after which a run that was told to end has nobody who does it; Prefect's workers take 30 s.
_ENDING_SECONDS = 60.0

_OPEN = [kind for kind in StateType if kind not in TERMINAL_STATES]


def end_with_run(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """End what a run leaves behind whose process was killed; for `on_crashed` of a flow.

    The worker that started the run calls this. A run that crashes in good order, on a signal, calls
    it, too; but its parts have all said how they ended.
    """
    if flow_run.deployment_id is None or str(flow_run.id) == this_run.id:
        return
    for _ in range(_LOOKS):
        time.sleep(_RECORDING_SECONDS)
        with get_client(sync_client=True) as client:
            _end_parts(client, flow_run.model_copy(update={"state": state}), None)


def end_orphans(job: RenderJob) -> None:
    """End what earlier runs of a job left behind: runs that crashed, failed or were cancelled.

    Task runs of crashed runs, and the runs that any of them called in its own process, are declared
    crashed. Runs that one started on a work pool are ended if it failed or was cancelled; those of
    a crashed run go on, since what they render is of use. Never fails: the server's states are for
    people to look at, and the job folder or storage says what is done.

    Args:
        job: The job.
    """
    try:
        with get_client(sync_client=True) as client:
            for parent in _parents(client, job).values():
                if parent.state and parent.state.is_final() and not parent.state.is_completed():
                    _end_children(client, parent, job_tag(job))
            for run in _with_open_task_runs(client, job):
                _end_task_runs(client, run)
    except Exception as error:
        run_log().warning("what earlier runs of the job left behind cannot be ended: %s", error)


def _end_parts(client: SyncPrefectClient, run: FlowRun, tag: str | None) -> None:
    """End what a crashed run leaves behind: its task runs and the runs that it called."""
    _end_children(client, run, tag)
    _end_task_runs(client, run)


def _end_children(client: SyncPrefectClient, parent: FlowRun, tag: str | None) -> None:
    """End the open flow runs that a run started which is over; of all of them those with a tag."""
    state = parent.state
    assert state is not None  # noqa: S101 -- it is over
    for child in _open_runs(client, _of_parent(parent, tag)):
        reason = _reason(parent)
        if child.deployment_id is None:  # called as a function, it ran in the same process
            declare_crashed(child.id, reason)
            _end_parts(client, child.model_copy(update={"state": Crashed()}), tag)
        elif state.is_crashed() or tag not in parent.tags:
            continue  # of use to others; or another flow started it, and may mean it to go on
        elif child.state is None or not child.state.is_cancelling():
            end_run(child.id, reason)
        elif child.state.timestamp < _ago(_ENDING_SECONDS):
            declare_crashed(child.id, reason)


def _end_task_runs(client: SyncPrefectClient, run: FlowRun) -> None:
    its_own = _open_task_runs(TaskRunFilterFlowRunId(any_=[run.id]))
    ended: set[UUID] = set()
    while found := {item.id for item in client.read_task_runs(task_run_filter=its_own)} - ended:
        for task_run_id in found:
            client.set_task_run_state(task_run_id, Crashed(message=_reason(run)), force=True)
        ended |= found


def _reason(run: FlowRun) -> str:
    return f"flow run {run.name!r}, of which it was part, crashed or was ended"


def _parents(client: SyncPrefectClient, job: RenderJob) -> dict[UUID, FlowRun]:
    """Return the runs that started the open runs of a job."""
    started = FlowRunFilter(
        tags=_tagged(job_tag(job)), parent_task_run_id=FlowRunFilterParentTaskRunId(is_null_=False)
    )
    calls = [run.parent_task_run_id for run in _open_runs(client, started)]
    wanted = TaskRunFilter(id=TaskRunFilterId(any_=[call for call in calls if call]))
    found = client.read_task_runs(task_run_filter=wanted) if calls else []
    return read_runs({call.flow_run_id for call in found if call.flow_run_id})


def _with_open_task_runs(client: SyncPrefectClient, job: RenderJob) -> list[FlowRun]:
    """Return the job's crashed runs that have open task runs, as far as all is recorded."""
    crashed = FlowRunFilter(
        tags=_tagged(job_tag(job)),
        state=_in_state([StateType.CRASHED]),
        end_time=FlowRunFilterEndTime.model_validate({"before_": _ago(_RECORDING_SECONDS)}),
    )
    return client.read_flow_runs(flow_run_filter=crashed, task_run_filter=_open_task_runs())


def _open_runs(client: SyncPrefectClient, which: FlowRunFilter) -> list[FlowRun]:
    return client.read_flow_runs(
        flow_run_filter=which.model_copy(update={"state": _in_state(_OPEN)})
    )


def _of_parent(run: FlowRun, tag: str | None) -> FlowRunFilter:
    return FlowRunFilter(
        parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]),
        tags=None if tag is None else _tagged(tag),
    )


def _open_task_runs(of: TaskRunFilterFlowRunId | None = None) -> TaskRunFilter:
    """Return a filter for task runs, but for those that only stand for a flow run started."""
    return TaskRunFilter(
        flow_run_id=of,
        state=TaskRunFilterState(type=TaskRunFilterStateType(any_=_OPEN)),
        subflow_runs=TaskRunFilterSubFlowRuns(exists_=False),
    )


def _tagged(tag: str) -> FlowRunFilterTags:
    return FlowRunFilterTags(all_=[tag])


def _in_state(kinds: Iterable[StateType]) -> FlowRunFilterState:
    return FlowRunFilterState(type=FlowRunFilterStateType(any_=list(kinds)))


def _ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)
