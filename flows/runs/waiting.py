"""Why a run does not go on: its pool is paused, full or without a worker; or it is suspended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, WorkPoolStatus
from prefect.client.schemas.responses import FlowRunSlotSummary
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.states import Scheduled

from prefect_renderfarm.blocks.errors import SetupError
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.runtime.repeat import once_a_minute
from prefect_renderfarm.flows.runs.report import about

_LONG_SECONDS = 60.0
_MOST_HOLDERS = 3  # that are named


class _Limit(NamedTuple):
    """A concurrency limit under which a deployment's runs are."""

    of: str  # what has it
    slots: int
    used: int
    holders: list[FlowRunSlotSummary]
    is_ours: bool  # the current flow run is under it, too
    fix: str


def check_room(parameter: str, deployment: str) -> None:
    """Refuse a deployment no run of which can begin before the current flow run has ended.

    Raises:
        SetupError: A concurrency limit of its work pool, work queue or itself has no slot but the
            one that the current run holds.
    """
    context = FlowRunContext.get()
    own = context.flow_run if context is not None else None
    with get_client(sync_client=True) as client:
        target = client.read_deployment_by_name(deployment)
        limits = list(_limits(client, target.work_pool_name, target.work_queue_name, own))
        if (own_limit := target.global_concurrency_limit) is not None:
            ours = own is not None and own.deployment_id == target.id
            fix = f"`prefect gcl update {own_limit.name} --limit N`"
            limits.append(_Limit("this deployment", own_limit.limit, 0, [], ours, fix))
    for limit in limits:
        if limit.slots <= limit.is_ours:
            held = ", which this run itself holds" if limit.slots else ""
            raise SetupError(
                f"{parameter} {deployment!r}: {limit.of} has a concurrency limit of {limit.slots}"
                f"{held}, so that its runs could never begin: raise the limit ({limit.fix}), or "
                "name a deployment on another work pool"
            )


def why_waiting(client: SyncPrefectClient, run: FlowRun) -> str:
    """Return what a run waits for that has not begun, or was suspended, and what to do about it."""
    pool, queue, state = run.work_pool_name, run.work_queue_name, run.state or Scheduled()
    if pool is None:
        return "it is on no work pool"
    if state.is_paused():
        return "a person has suspended it: resume it on its page in the UI"
    if state.is_pending():
        return f"a worker of work pool {pool!r} has taken it, and it has not started yet"
    try:
        found = client.read_work_pool(pool)
        if found.is_paused:
            return f"work pool {pool!r} is paused: `prefect work-pool resume {pool}`"
        if queue and client.read_work_queue_by_name(queue, pool).is_paused:
            return f"work queue {queue!r} is paused: `prefect work-queue resume {queue} -p {pool}`"
        limits = list(_limits(client, pool, queue, None))
    except ObjectNotFound:
        return f"work pool {pool!r}, or its work queue {queue!r}, is not there any more"
    for limit in limits:
        if limit.used >= limit.slots:
            held = ", ".join(map(_holder, limit.holders[:_MOST_HOLDERS]))
            more = len(limit.holders) - _MOST_HOLDERS
            held += f" and {more} more" if more > 0 else ""
            return (
                f"{limit.of} has a concurrency limit of {limit.slots}, and its slots are held by "
                f"{held or 'runs that end just now'}: wait, or {limit.fix}"
            )
    if state.name == "AwaitingConcurrencySlot":
        return "other runs hold the slots of its deployment's concurrency limit"
    if found.status == WorkPoolStatus.NOT_READY:
        return f"no worker of work pool {pool!r} is up: `prefect worker start --pool {pool}`"
    return f"no worker of work pool {pool!r} has taken it yet"


def telling_why_runs_wait() -> Callable[[Iterable[FlowRun]], None]:
    """Return a function that is given runs again and again, and logs why the first one waits.

    It does so once a minute while a run waits for longer than that.
    """
    since: dict[UUID, float] = {}
    warn = once_a_minute(run_log().warning)

    def tell(runs: Iterable[FlowRun]) -> None:
        now = time.monotonic()
        waiting = [run for run in runs if _is_waiting(run)]
        late = [run for run in waiting if now - since.setdefault(run.id, now) > _LONG_SECONDS]
        if late:
            warn(lambda: told(late[0], now, len(late) - 1))

    def told(run: FlowRun, now: float, others: int) -> str:
        with get_client(sync_client=True) as client:
            why = why_waiting(client, run)
        more = f", and so do {others} others" if others else ""
        return f"run {run.name!r} has been waiting for {about(now - since[run.id])}{more}: {why}"

    return tell


def _is_waiting(run: FlowRun) -> bool:
    state = run.state or Scheduled()
    return state.is_paused() or (run.start_time is None and not state.is_final())


def _limits(
    client: SyncPrefectClient, pool: str | None, queue: str | None, own: FlowRun | None
) -> Iterator[_Limit]:
    """Give the limits of a work pool and of one of its queues."""
    if pool is None:
        return
    status = client.read_work_pool_concurrency_status(pool)
    command = "prefect work-{} set-concurrency-limit {} {}"
    same_pool = own is not None and own.work_pool_name == pool
    if (slots := status.concurrency_limit) is not None:
        runs = [run for each in status.queues for run in each.flow_runs]
        fix = f"`{command.format('pool', pool, slots + 1)}`"
        yield _Limit(f"work pool {pool!r}", slots, status.active_slots, runs, same_pool, fix)
    for each in status.queues:
        if each.queue_name == queue and (slots := each.concurrency_limit) is not None:
            ours = same_pool and own is not None and own.work_queue_name == queue
            fix = f"`{command.format('queue', queue, slots + 1)} -p {pool}`"
            of = f"work queue {queue!r} of work pool {pool!r}"
            yield _Limit(of, slots, each.active_slots, each.flow_runs, ours, fix)


def _holder(run: FlowRunSlotSummary) -> str:
    age = run.time_in_current_state
    seconds = f" for {about(age.total_seconds())}" if age is not None else ""
    return f"{run.name!r} ({run.state_name}{seconds})"
