"""Names and tags by which a person finds a job's flow runs and task runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from prefect import tags
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.runtime import flow_run

from prefect_renderfarm.flows.job import RenderJob


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


def job_tag(job: RenderJob) -> str:
    """Return the tag that all runs of a job carry."""
    return f"job:{job.title}"


@contextmanager
def tagged(job: RenderJob) -> Iterator[None]:
    """Give the job's tag to the current flow run and to the runs that start inside the block."""
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        with get_client(sync_client=True) as client:
            run = context.flow_run
            client.update_flow_run(run.id, tags={*run.tags, job_tag(job)})
    with tags(job_tag(job)):
        yield
