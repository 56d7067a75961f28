"""Names of flow runs that a person can tell apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from prefect.runtime import flow_run


def job_run_name(verb: str) -> Callable[[], str]:
    """Return a function for Prefect's `flow_run_name` that names a run after its job."""
    return lambda: f"{verb} {job_label(flow_run.parameters.get('job'))}"


def job_label(job: Any) -> str:
    """Return a short name of a job as it was given: its id, or the name of its file."""
    if isinstance(job, str) and job.lstrip().startswith("{"):
        try:
            job = json.loads(job)
        except ValueError:
            return "job"
    if isinstance(job, str):
        path = PurePath(urlsplit(job).path if "://" in job else job)
        if (
            ".renderfarm" in path.parts
        ):  # the copy in a job folder's records: …/<name>-<hash>/job.json
            return path.parent.name.rpartition("-")[0]
        return path.stem or "job"
    name = job.get("id") if isinstance(job, dict) else getattr(job, "id", None)
    return str(name or "job")
