"""Jobs that were rendered before, found again by their report or their id."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from prefect_renderfarm.blocks import JobError
from prefect_renderfarm.flows.job import RenderJob
from prefect_renderfarm.flows.job_folder import RECORDS
from prefect_renderfarm.flows.results import RenderReport


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
        folder = job_dir or report.job_dir
        return _read(folder / RECORDS / report.key / "job.json", f"job {report.job!r}"), folder
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
        if text.startswith("/") and Path(text).is_file():
            text = Path(text).read_text(encoding="utf-8")
        # Its first lines tell it from a job spec, which may be large.
        if not text.startswith("{") or '"job_dir"' not in text[:4000]:
            return None
        try:
            job = json.loads(text)
        except ValueError:
            return None
    if not isinstance(job, dict) or "job_dir" not in job:
        return None
    try:
        return RenderReport.model_validate(job)
    except ValueError as error:
        raise JobError(f"the report is none of render-job's: {error}") from None


def _find_by_id(name: str, folder: Path) -> RenderJob:
    found = []
    for path in (folder / RECORDS).glob("*/job.json"):
        job = _read(path, f"job {name!r}")
        if name in (job.id, job.key):
            found.append((path.stat().st_mtime, path, job))
    if not found:
        raise JobError(
            f"job {name!r}: no job with this id was rendered in {str(folder)!r}: give another "
            "job_dir, or the absolute path of the job"
        )
    # A job that was edited has several keys: the last one that was run is meant.
    return max(found)[2]


def _read(path: Path, name: str) -> RenderJob:
    try:
        return RenderJob.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobError(f"{name}: {str(path)!r} cannot be read: {error.strerror}") from None
