"""The current run's log, and calls to Prefect's server: a deployment, and its flow runs."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import MissingContextError, ObjectNotFound, PrefectHTTPStatusError
from prefect.logging import get_logger, get_run_logger
from prefect.states import Cancelled, Cancelling, Crashed

from prefect_renderfarm.blocks.errors import SetupError

_PAGE = 200  # the server returns at most this many items
# At the end of what Docker's and ECS' workers say of a run's infrastructure; people read 12 digits.
_CONTAINER_ID = re.compile(r"[:/]([0-9a-f]{12})(?:[0-9a-f]{20}|[0-9a-f]{52})$")


def run_log() -> logging.Logger | logging.LoggerAdapter[Any]:
    """Return the logger of the current flow or task run, or an ordinary one outside a run."""
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("renderfarm")


def this_worker() -> str:
    """Return this machine's name, behind that of the run's Prefect worker: `cloud-1 (host)`.

    In a container, pod or task: `3f2a9c1b0d4e (image farm:1, work pool render)`.
    """
    context = FlowRunContext.get()
    run, host = context.flow_run if context is not None else None, socket.gethostname()
    if run is not None and (image := os.environ.get("RENDERFARM_IMAGE")):
        # A container that uses its host's network has the host's name, a task one of its address.
        return f"{container_of(run) or host} (image {image}, work pool {run.work_pool_name})"
    worker = run.labels.get("prefect.worker.name") if run is not None else None
    return f"{worker} ({host})" if worker else host


def container_of(run: FlowRun) -> str:
    """Return the id of a run's container or ECS task, as people read it; empty if it has none."""
    known = _CONTAINER_ID.search(run.infrastructure_pid or "")
    return known[1] if known else ""


def label_run(name: str, value: str) -> None:
    """Give the current run a label, if there is a run, and the server answers."""
    if (context := FlowRunContext.get()) is None or context.flow_run is None:
        return
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run_labels(context.flow_run.id, {name: value})
    except Exception as error:
        run_log().debug("the server takes no label of the run: %s", error)


def call_sync(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call the sync form of a Prefect function that would return a coroutine in an event loop."""
    return call(*arguments, _sync=True, **options)  # no type has this argument


def find_deployment(name: str, flow: str, parameter: str, example: str) -> None:
    """Raise SetupError, with a valid name, unless a parameter names a deployment of a flow."""
    if name.startswith(f"{flow}/"):
        with suppress(ObjectNotFound, ValueError), get_client(sync_client=True) as client:
            client.read_deployment_by_name(name)
            return
    raise SetupError(
        f"{parameter} {name!r} is no deployment of the flow {flow} on this server: deploy it, or "
        f"name another, such as {example!r} (`prefect deployment ls`)"
    )


def start_run(
    deployment: str,
    parameters: dict[str, Any],
    *,
    name: str,
    tags: list[str],
    job_variables: dict[str, Any] | None = None,
    idempotency_key: str | None = None,
) -> FlowRun:
    """Create a run of a deployment, as a child of the current flow run; do not wait for it.

    The server creates no second run for the same idempotency key. Raises SetupError if it refuses
    the run, such as for a job variable of the wrong type; if it does not answer, see `is_away`.
    """
    try:
        run: FlowRun = call_sync(
            run_deployment,
            deployment,
            parameters=parameters,
            flow_run_name=name,
            timeout=0,
            tags=tags,
            job_variables=job_variables,
            # The client repeats a request whose answer was lost, and the run may exist already.
            idempotency_key=idempotency_key or uuid4().hex,
        )
    except PrefectHTTPStatusError as error:
        if is_away(error):
            raise
        raise SetupError(
            f"deployment {deployment!r}: the server refuses a run of it: {error.response.text}"
        ) from None
    return run


def is_away(error: BaseException) -> bool:
    """Return whether an error says that the server does not answer for now."""
    if isinstance(error, PrefectHTTPStatusError):
        status = error.response.status_code
        # RFC 9110, section 15.5.9, RFC 8470 and RFC 6585: the same request may succeed later.
        return status >= 500 or status in (408, 425, 429)
    return isinstance(error, httpx.TransportError)


def read_runs(ids: Iterable[UUID]) -> dict[UUID, FlowRun]:
    """Return the current state of flow runs."""
    wanted = list(ids)
    found: dict[UUID, FlowRun] = {}
    with get_client(sync_client=True) as client:
        for first in range(0, len(wanted), _PAGE):
            page = FlowRunFilterId(any_=wanted[first : first + _PAGE])
            runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=page), limit=_PAGE)
            found.update((run.id, run) for run in runs)
    return found


def end_run(run_id: UUID, reason: str) -> None:
    """Cancel a run: one that has not begun at once, others by their worker, within seconds."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(run_id)
        if run.state is None or run.state.is_final():
            return
        begun = run.start_time is not None or run.state.is_pending()
        ending = Cancelling if begun else Cancelled
        client.set_flow_run_state(run.id, ending(message=reason))


def declare_crashed(run_id: UUID, reason: str) -> None:
    """Set a run to Crashed whose worker can no longer do so."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, Crashed(message=reason), force=True)
