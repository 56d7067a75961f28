"""The flow `clean-storage`: see what jobs left in a storage, and delete what is old."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict, Field

from prefect_renderfarm.blocks.assets.manifest import ASSETS, is_list, read_list
from prefect_renderfarm.blocks.errors import JobError, SetupError
from prefect_renderfarm.blocks.runtime.prefect_api import call_sync
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.blocks.storage.objects import ObjectStore, StoredObject
from prefect_renderfarm.flows.jobs.spec import is_key
from prefect_renderfarm.flows.parameters import OptionalText, StorageParameter, load_storage
from prefect_renderfarm.flows.runs.report import human_size

# What stays of a job: little, and it tells what the job was and what it came to.
_RECORDS = frozenset({"job.json", "report.json", "merge.json"})

_Days = Annotated[float, Field(ge=0)]


class Leftover(BaseModel):
    """What one job left in the storage, or input files that no job names."""

    model_config = ConfigDict(frozen=True)

    key: str = Field(description="The job's key, or `assets`.")
    objects: int = Field(description="Number of objects, beside the job's spec and reports.")
    size: int = Field(description="Bytes of these objects.")
    age_days: float = Field(description="Days since the newest of the job's objects was written.")
    old: bool = Field(description="Whether that is longer ago than asked for.")
    deleted: bool = Field(default=False, description="Whether they have been deleted.")

    @property
    def state(self) -> str:
        """What a person is told of it: deleted, old, or nothing."""
        return "deleted" if self.deleted else "old" if self.old else ""


class CleanReport(BaseModel):
    """What jobs left in a storage."""

    model_config = ConfigDict(frozen=True)

    storage: str = Field(description="The storage.")
    jobs: tuple[Leftover, ...] = Field(description="What jobs left, the oldest first.")
    assets: Leftover = Field(description="Old input files that no job names which stays.")


def _run_name() -> str:
    given = flow_run.parameters
    verb = "look through" if given.get("dry_run", True) else "clean"
    return f"{verb} storage{' of ' + given['job'] if given.get('job') else ''}"


@flow(name="clean-storage", flow_run_name=_run_name)
def clean_storage(
    storage: StorageParameter,
    older_than_days: _Days = 30.0,
    job: OptionalText = None,
    dry_run: bool = True,
) -> CleanReport:
    """Show what jobs left in a storage, and delete what is old.

    Of a job whose newest object is old, all is deleted but its spec and its reports: chunks, logs,
    manifests, sound, the list of its input files. An input file goes when it is old itself and no
    job names it that stays. Nothing else in the storage is touched, and no film.

    The age of a job that is being rendered is that of its last chunk: leave jobs more days than
    their longest chunk takes.

    Args:
        storage: The storage to look through.
        older_than_days: What is older than so many days is old.
        job: The key of one job, such as film-1a2b3c4d5e6f, to look at it only. Empty: all.
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
    now = datetime.now(UTC)
    limit = now - timedelta(days=older_than_days)
    found = _by_job(store)
    if job is not None and (job := job.strip()) not in found:
        raise JobError(f"job {job!r}: no such job was rendered through this storage")
    jobs, doomed = [], []
    for key, objects in found.items():
        own = [item for item in objects if item.key.partition(f"{key}/")[2] not in _RECORDS]
        if own and job in (None, key):
            entry = _leftover(key, own, max(item.modified for item in objects), limit, now)
            jobs.append(entry.model_copy(update={"deleted": entry.old and not dry_run}))
            doomed += own if entry.old else []
    candidates = [item for item in store.objects(ASSETS) if item.modified < limit]
    if job is not None:
        wanted = _named(store, found[job])
        candidates = [item for item in candidates if item.key in wanted]
    gone = {item.key for item in doomed}
    if not dry_run:
        if job is None:  # what chunks are known by; a chunk whose entry is gone is rendered again
            store.delete(
                item.key for item in store.objects(f"{store.root}/known") if item.modified < limit
            )
        # Manifests first: whatever is left if this is cut short, none names a missing file.
        store.delete(sorted(gone, key=lambda key: not key.endswith(".json")))
        found = _by_job(store)  # a job may have come meanwhile
    needed = _named(store, [item for own in found.values() for item in own if item.key not in gone])
    unused = [item for item in candidates if item.key not in needed]
    if not dry_run:
        store.delete(item.key for item in unused)
    newest = max((item.modified for item in unused), default=now)
    assets = _leftover("assets", unused, newest, limit, now)
    report = CleanReport(
        storage=store.name,
        jobs=tuple(sorted(jobs, key=lambda entry: -entry.age_days)),
        assets=assets.model_copy(update={"deleted": bool(unused) and not dry_run}),
    )
    _publish(report)
    return report


def _by_job(store: ObjectStore) -> dict[str, list[StoredObject]]:
    """Return the objects of each job; what is no job's is left out."""
    found: dict[str, list[StoredObject]] = defaultdict(list)
    for item in store.objects(store.root):
        key, _, name = item.key.removeprefix(f"{store.root}/").partition("/")
        if name and is_key(key):
            found[key].append(item)
    return dict(found)


def _named(store: ObjectStore, objects: Sequence[StoredObject]) -> set[str]:
    """Return the keys of the input files that the lists among some objects name."""
    # A job's own, and no chunk of that name: there the third part of the key has folders.
    lists = [item.key for item in objects if is_list(item.key.split("/", 2)[-1])]
    return {file.key for key in lists for file in read_list(store, key).files}


def _leftover(
    key: str, objects: Sequence[StoredObject], newest: datetime, limit: datetime, now: datetime
) -> Leftover:
    return Leftover(
        key=key,
        objects=len(objects),
        size=sum(item.size for item in objects),
        age_days=max((now - newest).total_seconds(), 0) / 86_400,
        old=newest < limit,
    )


def _publish(report: CleanReport) -> None:
    rows = [*report.jobs, *([report.assets] if report.assets.objects else [])]
    lines = [f"# {report.storage}", "", "| Job | Objects | Size | Age in days | |"]
    lines += ["|---|---:|---:|---:|---|"] if rows else []
    lines += [
        f"| `{row.key}` | {row.objects:,} | {human_size(row.size)} | {row.age_days:.1f} "
        f"| {row.state} |"
        for row in rows
    ]
    if not rows:
        lines = [lines[0], "", "No job left anything."]
    size = human_size(sum(row.size for row in rows if row.old))
    run_log().info(
        "%s: %d jobs left something; %s of it is old%s", report.storage, len(report.jobs), size,
        " and deleted" if any(row.deleted for row in rows) else "",
    )  # fmt: skip
    try:
        call_sync(
            create_markdown_artifact,
            key="clean-storage",
            markdown="\n".join(lines),
            description=report.storage,
        )
    except Exception as error:
        run_log().warning("the report cannot be shown: %s", error)
