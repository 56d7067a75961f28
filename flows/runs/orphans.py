"""Flow runs and task runs that nobody ends any more, because the run that they belong to has died.

The process worker notices within seconds that a flow run's process was killed, and declares that
one run crashed. Its task runs, and the flow runs that it called in its own process, stay Running on
the server for ever; the runs that it started on work pools go on.
"""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
    TaskRunFilterState,
    TaskRunFilterStateType,
    TaskRunFilterSubFlowRuns,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State, StateType
from prefect.runtime import flow_run as this_run
from prefect.states import Crashed

from prefect_renderfarm.blocks.runtime.prefect_api import declare_crashed, end_run
from prefect_renderfarm.blocks.runtime.run_log import run_log

# The server records what task runs say of themselves after about a second; farm.py has it so.
_RECORDING_SECONDS = 2.0
# What a killed run said last may still be on its way, so its hook looks more than once.
_LOOKS = 2

_OPEN = [kind for kind in StateType if kind not in TERMINAL_STATES]


def end_with_run(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """End the parts of a run whose process was killed; for `on_crashed` of a flow.

    The worker that started the run calls this. A run that crashes in good order, on a signal, calls
    it, too; but its parts have all said how they ended.
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
    what is done.

    Args:
        run_id: The run.
        certain: Whether its process has ended for certain, and was not only silent.
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
    task_runs = TaskRunFilter(
        flow_run_id=TaskRunFilterFlowRunId(any_=[run.id]),
        state=TaskRunFilterState(type=TaskRunFilterStateType(any_=_OPEN)),
        # Not those that only stand for a flow run that was started.
        subflow_runs=TaskRunFilterSubFlowRuns(exists_=False),
    )
    ended: set[UUID] = set()
    while found := {item.id for item in client.read_task_runs(task_run_filter=task_runs)} - ended:
        for task_run_id in found:
            client.set_task_run_state(task_run_id, Crashed(message=_reason(run)), force=True)
        ended |= found


def _open_children(client: SyncPrefectClient, run: FlowRun) -> list[FlowRun]:
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_OPEN)),
        )
    )


def _reason(run: FlowRun) -> str:
    return f"flow run {run.name!r}, to which it belonged, has died or was ended"
