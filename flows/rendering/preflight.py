"""What a job needs of an adapter before it renders: that it can, and a slot of its limit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.events.filters import EventFilter, EventResourceFilter
from prefect.exceptions import ObjectNotFound

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.adapters.work_pool import WorkPoolAdapter
from prefect_renderfarm.blocks.errors import FatalWorkerError, JobError, SetupError
from prefect_renderfarm.blocks.media.image_sequence import has_number
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.runtime.repeat import SERVER_AWAY_SECONDS, retry
from prefect_renderfarm.flows.runs.waiting import check_room
from prefect_renderfarm.flows.state.job_state import JobState

# The shortest lease that Prefect gives: how long a slot stays taken whose run was killed.
_LEASE_SECONDS = 60.0
_TELL_SECONDS = 60.0
_EVENTS = 50  # that are searched for the holders of slots: as many as a page has


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
    if isinstance(adapter, WorkPoolAdapter):
        check_room("adapter: its deployment", adapter.deployment)
    check_commands(adapter, ((f"chunk {chunk.id}", chunk.command) for chunk in state.job.chunks))


def check_commands(adapter: WorkerAdapter, commands: Iterable[tuple[str, str]]) -> None:
    """Refuse commands, given with their names, that an adapter would not run. Raises: JobError."""
    for name, command in commands:
        try:
            adapter.check_command(command)
        except FatalWorkerError as error:
            raise JobError(f"{name}: {error}") from None


def check_place(film: Path, job_folder: Path, make_folders: bool) -> None:
    """Refuse a film in a folder that is not there, or cannot be written to. Raises: JobError."""
    folder = Path(os.path.normpath(film.parent.parent if has_number(film) else film.parent))
    if not folder.is_dir() and not (make_folders or folder.is_relative_to(job_folder)):
        raise JobError(
            f"output_file {str(film)!r}: folder {str(folder)!r} does not exist: create it, correct "
            "the path, or switch make_folders on"
        )
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise JobError(
            f"output_file {str(film)!r}: folder {str(there)!r} cannot be written to: "
            f"{error.strerror}"
        ) from None


@contextmanager
def job_slot(adapter: WorkerAdapter) -> Iterator[None]:
    """Hold a slot of an adapter's concurrency limit, if it has one, while a job renders.

    One for a job and not for a chunk: taking a slot costs the server 59 to 255 ms. Who waits for
    it says once a minute for whom.
    """
    limit = adapter.shared_limit()
    with ExitStack() as held:

        def take() -> None:
            # By default a strict limit ends a job when the server is away at a renewal.
            slot = concurrency(
                limit or "", strict=True, timeout_seconds=_TELL_SECONDS,
                lease_duration=_LEASE_SECONDS, raise_on_lease_renewal_failure=False,
            )  # fmt: skip
            held.enter_context(slot)

        while limit is not None:
            try:
                retry(take, f"a slot of limit {limit!r}", seconds=SERVER_AWAY_SECONDS)
                break
            except TimeoutError:
                run_log().warning("waiting for a slot of limit %r: %s", limit, _slots_of(limit))
        yield


def _slots_of(limit: str) -> str:
    """Return who holds the slots of a global concurrency limit, as the server's events tell."""
    try:
        with get_client(sync_client=True) as client:
            found = client.read_global_concurrency_limit_by_name(limit)
            resource = EventResourceFilter(id=[f"prefect.concurrency-limit.{found.id}"])
            events = client.read_events(EventFilter(resource=resource), limit=_EVENTS).events
    except Exception as error:
        return f"the server does not say who holds them: {error}"
    released = {event.follows for event in events}
    names = [
        repr(related.name)
        for event in events
        if event.event.endswith(".acquired") and event.id not in released
        for related in event.related
        if related.role == "flow-run"
    ]
    held = ", ".join(names[: found.active_slots]) or "nobody who is known"
    return (
        f"{found.active_slots} of {found.limit} are held, by {held}; that of a run that was killed "
        f"is free after {_LEASE_SECONDS:.0f} s or a little more"
    )
