"""The flow `clean-storage`: show what jobs left in a storage, and delete what is old."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, cast

from humanize import naturalsize
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import BaseModel, Field

from prefect_renderfarm.blocks.assets.inputs import ASSETS, is_list, read_list
from prefect_renderfarm.blocks.errors import JobError, SetupError
from prefect_renderfarm.blocks.runtime.prefect_api import call_sync, run_log
from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.blocks.storage.objects import ObjectStore, StoredObject
from prefect_renderfarm.flows.jobs.spec import is_key
from prefect_renderfarm.flows.parameters import OptionalText, StorageParameter, load_storage
from prefect_renderfarm.flows.runs.failure import failing_in_a_line
from prefect_renderfarm.flows.runs.report import only_logged

# A job keeps these: they are small, and say what the job was and how it ended.
_RECORDS = frozenset({"job.json", "report.json", "merge.json"})


class Leftover(BaseModel, frozen=True):
    """What one job left in the storage, or input files that no job names."""

    key: str = Field(description="The job's key, or `assets`.")
    objects: int = Field(description="Number of objects, beside the job's spec and reports.")
    size: int = Field(description="Bytes of these objects.")
    age_days: float = Field(description="Days since the newest of the job's objects was written.")
    old: bool = Field(description="Whether it is older than the limit.")
    deleted: bool = Field(default=False, description="Whether it was deleted.")


class CleanReport(BaseModel, frozen=True):
    """What jobs left in a storage."""

    storage: str = Field(description="The storage.")
    jobs: tuple[Leftover, ...] = Field(description="What jobs left, the oldest first.")
    assets: Leftover = Field(description="Old input files that no remaining job names.")


def _run_name() -> str:
    given = flow_run.parameters
    verb = "look through" if given.get("dry_run", True) else "clean"
    return f"{verb} storage{' of ' + given['job'] if given.get('job') else ''}"


@flow(name="clean-storage", flow_run_name=_run_name)
@failing_in_a_line
def clean_storage(
    storage: StorageParameter,
    older_than_days: Annotated[float, Field(ge=0)] = 30.0,
    job: OptionalText = None,
    dry_run: bool = True,
) -> CleanReport:
    """Show what jobs left in a storage, and delete what is old.

    A job is old if its newest object is. An old job loses its chunks, logs, manifests, audio and
    the list of its input files, and keeps its spec and its reports. An input file is deleted if it
    is old and no remaining job names it. Films and all other objects in the storage stay.

    The age of a job that is being rendered is that of its last chunk: give jobs more days than
    their longest chunk takes.

    Args:
        storage: The storage to look through.
        older_than_days: The limit of age, in days.
        job: The key of one job, such as film-1a2b3c4d5e6f, to look at it only. Empty: all jobs.
        dry_run: Whether to look only. Off: what is old is deleted.

    Returns:
        What jobs left, and what of it was deleted; it is also an artifact of the run.

    Raises:
        JobError: There is no such job in the storage.
        SetupError: No storage is chosen, or its kind cannot be listed.
        StorageError: The storage did not answer.
    """
    block = load_storage(storage)
    if block is None:
        raise SetupError("storage: choose the storage to look through, such as 's3-bucket/renders'")
    store = BucketStore(block)
    limit = datetime.now(UTC) - timedelta(days=older_than_days)
    found = _by_job(store)
    if job is not None and (job := job.strip()) not in found:
        raise JobError(f"job {job!r}: no such job was rendered through this storage")

    def leftover(key: str, objects: Sequence[StoredObject], newest: datetime) -> Leftover:
        old, age = newest < limit, (datetime.now(UTC) - newest) / timedelta(days=1)
        return Leftover(
            key=key, objects=len(objects), size=sum(item.size for item in objects),
            age_days=max(age, 0.0), old=old, deleted=old and not dry_run,
        )  # fmt: skip

    jobs: list[Leftover] = []
    doomed: set[str] = set()
    for key, objects in found.items():
        own = [item for item in objects if item.key.partition(f"{key}/")[2] not in _RECORDS]
        if own and job in (None, key):
            newest = max(item.modified for item in objects)
            jobs.append(leftover(key, own, newest))
            if jobs[-1].old:
                doomed |= {item.key for item in own}
    candidates = [item for item in store.objects(ASSETS) if item.modified < limit]
    if job is not None:
        of_the_job = _input_files(store, found[job])
        candidates = [item for item in candidates if item.key in of_the_job]
    if not dry_run:
        if job is None:  # entries of cache keys; a chunk whose entry is gone is rendered again
            known = store.objects(f"{store.root}/known")
            store.delete(item.key for item in known if item.modified < limit)
        # Manifests first: if this is interrupted, no manifest names a missing file.
        store.delete(sorted(doomed, key=lambda key: not key.endswith(".json")))
        found = _by_job(store)  # a job may have begun meanwhile
    remaining = [item for own in found.values() for item in own if item.key not in doomed]
    needed = _input_files(store, remaining)
    unused = [item for item in candidates if item.key not in needed]
    if not dry_run:
        store.delete(item.key for item in unused)
    newest = max((item.modified for item in unused), default=datetime.now(UTC))
    report = CleanReport(
        storage=store.name,
        jobs=tuple(sorted(jobs, key=lambda entry: -entry.age_days)),
        assets=leftover("assets", unused, newest),
    )
    summary = _publish(report)
    return cast(CleanReport, Completed(message=summary, data=report))


def _by_job(store: ObjectStore) -> dict[str, list[StoredObject]]:
    """Return the objects of each job; objects of no job are left out."""
    found: dict[str, list[StoredObject]] = {}
    for item in store.objects(store.root):
        key, _, name = item.key.removeprefix(f"{store.root}/").partition("/")
        if name and is_key(key):
            found.setdefault(key, []).append(item)
    return found


def _input_files(store: ObjectStore, objects: Sequence[StoredObject]) -> set[str]:
    """Return the keys of the input files that the lists among some objects name."""
    # Only lists of jobs, not a chunk of that name: the third part of its key has folders.
    lists = [item.key for item in objects if is_list(item.key.split("/", 2)[-1])]
    return {file.key for key in lists for file in read_list(store, key).files}


def _publish(report: CleanReport) -> str:
    """Put the report on the run's page; return it in a line."""
    rows = [*report.jobs, *([report.assets] if report.assets.objects else [])]
    lines = ["| Job | Objects | Size | Age in days | |", "|---|---:|---:|---:|---|"]
    for row in rows:
        state = "deleted" if row.deleted else "old" if row.old else ""
        size = naturalsize(row.size)
        lines.append(f"| `{row.key}` | {row.objects:,} | {size} | {row.age_days:.1f} | {state} |")
    table = "\n".join(lines) if rows else "No job left anything."
    summary = (
        f"{report.storage}: {len(report.jobs)} jobs left something; "
        f"{naturalsize(sum(row.size for row in rows if row.old))} of it is old"
        f"{' and deleted' if any(row.deleted for row in rows) else ''}"
    )
    run_log().info("%s", summary)
    with only_logged("show the report on the run's page"):
        content = {"markdown": f"# {report.storage}\n\n{table}", "description": report.storage}
        call_sync(create_markdown_artifact, key="clean-storage", **content)
    return summary
