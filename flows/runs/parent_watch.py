"""What a run that assembles knows of the run that renders."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from prefect_renderfarm.blocks.runtime.run_log import run_log


def why_no_more_chunks(*, crashed: bool = True) -> Callable[[], str | None]:
    """Return a function that says why the current flow run's parent renders no more chunks.

    It returns None while the parent runs, and while the server does not answer: the chunks are
    waited for in the job folder, and come without a server, too.

    Args:
        crashed: Whether a parent that the server calls crashed renders no more. It may be alive,
            and cut off from the server.
    """
    parent = flow_run.parent_flow_run_id
    log = run_log()

    def ask() -> str | None:
        if parent is None:
            return None
        try:
            with get_client(sync_client=True) as client:
                run = client.read_flow_run(UUID(str(parent)))
        except Exception as error:
            log.warning("the server does not say how the rendering is: %s", error)
            return None
        if run.state is None or (run.state.is_crashed() and not crashed):
            return None
        if run.state.is_final():
            return f"render-job run {run.name!r} ended as {run.state.name}"
        return None

    return ask
