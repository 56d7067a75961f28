"""A run of `merge-job` on another work pool: start it, wait for it, stop it with its parent."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from prefect_renderfarm.blocks import AssemblyError, SetupError
from prefect_renderfarm.blocks.run_log import run_log
from prefect_renderfarm.flows.in_sync import in_sync
from prefect_renderfarm.flows.job_folder import JobFolder
from prefect_renderfarm.flows.results import MergeReport
from prefect_renderfarm.flows.run_names import job_label, job_tag

_POLL_SECONDS = 0.25
_PATIENCE_SECONDS = 60.0


def find_deployment(name: str) -> None:
    """Make sure that a deployment exists.

    Raises:
        SetupError: It does not, or it is none of the flow `merge-job`.
    """
    if not name.startswith("merge-job/"):
        raise SetupError(
            f"merge_deployment {name!r} is no deployment of the flow merge-job: name one, such as "
            "'merge-job/local', or leave it empty"
        )
    try:
        with get_client(sync_client=True) as client:
            client.read_deployment_by_name(name)
    except (ObjectNotFound, ValueError):
        raise SetupError(
            f"merge_deployment {name!r} is no deployment on this server: deploy it, name another "
            "(`prefect deployment ls`), or leave merge_deployment empty"
        ) from None


class MergeRun:
    """A run of the `merge-job` deployment, as a child of the current flow run.

    Args:
        deployment: Its name, `flow/deployment`.
        parameters: The parameters of `merge_job`, ready for JSON.
    """

    def __init__(self, deployment: str, parameters: dict[str, Any]) -> None:
        self._deployment = deployment
        self._parameters = parameters

    def run(self, folder: JobFolder) -> MergeReport:
        """Assemble on the other pool, and wait for it.

        Raises:
            AssemblyError: The run did not complete; the message is its own.
        """
        folder.forget_merge()
        run: FlowRun = in_sync(
            run_deployment,
            self._deployment,
            parameters=self._parameters,
            flow_run_name=f"merge {job_label(folder.job)}",
            timeout=0,
            tags=[job_tag(folder.job)],
        )
        with get_client(sync_client=True) as client:
            try:
                ended = self._wait(client, run.id)
            except BaseException:
                client.set_flow_run_state(run.id, Cancelling(message="its render-job was stopped"))
                raise
        state = ended.state
        if state is None or not state.is_completed():
            raise AssemblyError(_failure(ended))
        return folder.load_merge()

    def _wait(self, client: SyncPrefectClient, run_id: UUID) -> FlowRun:
        log = run_log()
        started = time.monotonic()
        warned = False
        while True:
            run = client.read_flow_run(run_id)
            if run.state is not None and run.state.is_final():
                return run
            waiting = run.start_time is None and time.monotonic() - started > _PATIENCE_SECONDS
            if waiting and not warned:
                warned = True
                log.warning(
                    "merge-job run %r has not begun after %.0f s: is a worker of work pool %r up?",
                    run.name, _PATIENCE_SECONDS, run.work_pool_name,
                )  # fmt: skip
            time.sleep(_POLL_SECONDS)


def _failure(run: FlowRun) -> str:
    state = run.state
    message = (state.message if state else None) or ""
    message = message.removeprefix("Flow run encountered an exception: ")
    name = state.name if state else "unknown"
    return (
        f"merge-job run {run.name!r} on work pool {run.work_pool_name!r} ended as {name}: {message}"
    )
