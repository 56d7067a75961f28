"""Names and tags by which a person finds a job's flow runs and task runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

from coolname.data import config  # of the names that Prefect makes up
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.runtime import flow_run

from prefect_renderfarm.blocks.errors import JobError
from prefect_renderfarm.blocks.http.url_rules import public_part
from prefect_renderfarm.blocks.runtime.text import one_line
from prefect_renderfarm.flows.jobs.checks import RECORDS
from prefect_renderfarm.flows.jobs.spec import RenderJob, is_key, parse_spec

# Ranges of ids that a run's name spells out.
_SHOWN_RANGES = 5
_SHOWN_CHARACTERS = 100
_READ_CHARACTERS = 10_000
_NAME_OF_UI = re.compile(
    r"(alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|omicron|pi|rho"
    r"|sigma|tau|upsilon|phi|chi|psi|omega)\d*(-[a-z]+){1,2}|[A-Z][a-z]+-[A-Z][a-z]+"
)


def job_run_name(verb: str) -> Callable[[], str]:
    """Return a function for Prefect's `flow_run_name` that names a run after its job.

    A name that a person gave the run stays.
    """

    def name() -> str:
        given = str(flow_run.name or "")
        if given and not _is_generated(given):
            return given
        return f"{verb} {job_label(flow_run.parameters.get('job'))}"

    return name


def _is_generated(name: str) -> bool:
    """Return whether Prefect has made up a run's name: red-bug; its UIs: zeta2-rigel, Big-Cat."""
    if _NAME_OF_UI.fullmatch(name):
        return True
    parts: Any = config.values()
    words = {word for part in parts for word in part.get("words", ())}
    return name.count("-") == 1 and words.issuperset(name.split("-"))


def batch_name(chunk_ids: Sequence[int], job: str) -> str:
    """Return a name for a run that renders some chunks of a job, such as `chunks 3-9 of film`."""
    ids = set(chunk_ids)
    firsts = sorted(number for number in ids if number - 1 not in ids)
    lasts = sorted(number for number in ids if number + 1 not in ids)
    ranges = zip(firsts, lasts, strict=True)
    named = [f"{first}-{last}" if first < last else f"{first}" for first, last in ranges]
    some = ", ".join(named[:_SHOWN_RANGES]) + (" …" if len(named) > _SHOWN_RANGES else "")
    return f"chunk{'s' if len(chunk_ids) > 1 else ''} {some} of {job}"


def batch_run_name() -> str:
    """Name a run of `render-chunks` after its chunks, for Prefect's `flow_run_name`."""
    label = job_label(flow_run.parameters.get("job"))
    ids = flow_run.parameters.get("chunk_ids")
    return batch_name(ids, label) if ids else f"render chunks of {label}"


def job_label(job: Any) -> str:
    """Return a short name for a `job` parameter before it is read: its id, or its file's name."""
    if isinstance(job, str) and job[:100].lstrip().startswith("{"):
        try:
            job = parse_spec(job)
        except JobError:
            return "job"  # the flow raises the error
    name = job.get("id") if isinstance(job, dict) else getattr(job, "id", None)
    if isinstance(job, str):
        text = job[:_READ_CHARACTERS]
        path = PurePath(public_part(text))
        # The record of a job is …/<its key>/job.json, and a key ends with a hash.
        key = text if is_key(text) else path.parent.name if RECORDS in path.parts else ""
        name = key.rpartition("-")[0] if key else path.stem
    return (one_line(name, _SHOWN_CHARACTERS) if isinstance(name, str) else "") or "job"


def job_tag(job: RenderJob) -> str:
    """Return the tag that all runs of a job carry."""
    return f"job:{job.title}"


def tag_run(job: RenderJob) -> None:
    """Give the job's tag to the current flow run.

    Its task runs have none: one that has a tag asks the server for a concurrency slot before it
    begins, and an error of the server then fails the flow run (Prefect 3.8.8).
    """
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        with get_client(sync_client=True) as client:
            run = context.flow_run
            client.update_flow_run(run.id, tags={*run.tags, job_tag(job)})
