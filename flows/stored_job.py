"""Jobs that were rendered before, found again by their report, their id or their key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from prefect.blocks.abstract import ObjectStorageBlock

from prefect_renderfarm.blocks import JobError
from prefect_renderfarm.blocks.excerpt import excerpt, one_line
from prefect_renderfarm.blocks.job_store import JobStore
from prefect_renderfarm.flows.job import RenderJob, is_key
from prefect_renderfarm.flows.job_files import RECORDS
from prefect_renderfarm.flows.job_source import read_limited
from prefect_renderfarm.flows.job_text import parse_spec
from prefect_renderfarm.flows.results import RenderReport

_BEGINNING = 4000


def find_in_storage(job: Any, block: ObjectStorageBlock | None) -> RenderJob | None:
    """Find the job that a key stands for; None if `job` is something else.

    Args:
        job: The key of a job that was rendered through the storage, such as `film-1a2b3c4d5e6f`.
        block: The storage block; None: there is none.

    Raises:
        JobError: It is no spec that is found there.
    """
    if block is None or not isinstance(job, str) or not is_key(job.strip()):
        return None
    job = job.strip()
    store = JobStore(block, job)
    data = store.read("job.json")
    if data is None:
        raise JobError(
            f"job {job!r}: no such job was rendered through this storage, {store.store.name}, as "
            "it is reached from here: check the name of the bucket, and the credentials, region "
            "and endpoint of this machine"
        )
    return RenderJob.model_validate_json(data)


def find_stored_job(job: Any, job_dir: Path | None) -> tuple[RenderJob, Path] | None:
    """Find the job that a report or an id stands for.

    Args:
        job: A `RenderReport`, its JSON, or the absolute path of its file; or the id of a job that
            was rendered in `job_dir`.
        job_dir: The job folder.

    Returns:
        The job and its folder; None if `job` is something else.

    Raises:
        JobError: It is a report or an id, but there is no such job in the folder.
    """
    report = _as_report(job)
    if report is not None:
        name = f"job {excerpt(report.job)}"
        if not is_key(report.key):  # it is the name of a folder
            raise JobError(f"{name}: its report has key {excerpt(report.key)}, which is none")
        folder = job_dir or report.job_dir
        return _read(folder / RECORDS / report.key / "job.json", name), folder
    if job_dir is not None and isinstance(job, str) and re.fullmatch(r"[^/{}:]+", job.strip()):
        name = job.strip()
        if not name.endswith(".json"):
            return _find_by_id(name, job_dir), job_dir
    return None


def _as_report(job: Any) -> RenderReport | None:
    if isinstance(job, RenderReport):
        return job
    if isinstance(job, str):
        text = job.strip()
        beginning = _beginning(Path(text)) if text.startswith("/") else text[:_BEGINNING]
        # Its first lines tell it from a job spec, which may be large.
        if not beginning.startswith("{") or '"job_dir"' not in beginning:
            return None
        name = f"report {excerpt(text)}"
        job = parse_spec(text if text.startswith("{") else read_limited(Path(text), name), name)
    if not isinstance(job, dict) or "job_dir" not in job:
        return None
    try:
        return RenderReport.model_validate(job)
    except ValueError as error:
        raise JobError(f"the report is none of render-job's: {one_line(error)}") from None


def _beginning(path: Path) -> str:
    """Return the first lines of a file; none if it cannot be read, or is none."""
    try:
        if not path.is_file():  # a pipe or a device has no end
            return ""
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_BEGINNING).lstrip()
    except (OSError, ValueError):
        return ""


def _find_by_id(name: str, folder: Path) -> RenderJob:
    found = []
    for path in (folder / RECORDS).glob("*/job.json"):
        job = _read(path, f"job {excerpt(name)}")
        if name in (job.id, job.key):
            found.append((path.stat().st_mtime, path, job))
    if not found:
        raise JobError(
            f"job {excerpt(name)}: no job with this id was rendered in {str(folder)!r}: give "
            "another job_dir, or the absolute path of the job"
        )
    # A job that was edited has several keys: the last one that was run is meant.
    return max(found)[2]


def _read(path: Path, name: str) -> RenderJob:
    return RenderJob.model_validate_json(read_limited(path, f"{name}: {str(path)!r}"))
