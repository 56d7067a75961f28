"""What a job needs of an adapter before it renders: that it can, and a slot of its limit."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.errors import FatalWorkerError, JobError, SetupError
from prefect_renderfarm.flows.state.job_state import JobState


def check_adapter(adapter: WorkerAdapter, state: JobState) -> None:
    """Refuse an adapter that cannot render a job, or the command of one of its chunks."""
    if adapter.needs_storage and state.block is None:
        raise SetupError(
            f"adapter: the workers of a {type(adapter).__name__} do not see the job folder: choose "
            "a storage, which brings the chunks back"
        )
    if (limit := adapter.shared_limit()) is not None:
        try:
            with get_client(sync_client=True) as client:
                client.read_global_concurrency_limit_by_name(limit)
        except ObjectNotFound:
            raise SetupError(
                f"adapter: its concurrency_limit {limit!r} is not on this server: create it "
                f"(`prefect gcl create {limit} --limit 2`), or leave the field empty"
            ) from None
    adapter.check()
    check_commands(adapter, ((f"chunk {chunk.id}", chunk.command) for chunk in state.job.chunks))


def check_commands(adapter: WorkerAdapter, commands: Iterable[tuple[str, str]]) -> None:
    """Refuse commands, given with their names, that an adapter would not run. Raises: JobError."""
    for name, command in commands:
        try:
            adapter.check_command(command)
        except FatalWorkerError as error:
            raise JobError(f"{name}: {error}") from None


def job_slot(adapter: WorkerAdapter) -> AbstractContextManager[None]:
    """Hold a slot of an adapter's concurrency limit, if it has one, while a job renders.

    One for a job and not for a chunk: taking a slot costs the server 59 to 255 ms.
    """
    # By default a strict limit ends a job when the server is away at the moment of a renewal.
    limit = adapter.shared_limit() or ""  # no name, no slot
    return concurrency(limit, occupy=1, strict=True, raise_on_lease_renewal_failure=False)
