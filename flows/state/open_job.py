"""What every flow does first: find the job, its storage and its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect.runtime import deployment

from prefect_renderfarm.flows.jobs.load import find_in_storage, load_earlier_job, load_job
from prefect_renderfarm.flows.parameters import absolute_in_deployment, load_storage
from prefect_renderfarm.flows.state.job_state import JobState


def open_job(
    job: Any, storage: Any, job_dir: Path | None, *, rendered_before: bool = False
) -> JobState:
    """Return the job that the parameters of a flow name.

    Args:
        job: The job, as a flow takes it.
        storage: What carries chunks between machines, as a flow takes it.
        job_dir: The job folder. None: the folder of the job file; for a job from elsewhere, or with
            a storage and a job that was rendered before, one under the run's working directory.
        rendered_before: Whether `job` may also be the key, the id or the report of an earlier run.

    Raises:
        JobError: The job cannot be read or is not valid.
        SetupError: The storage is no saved block, or the folder is relative in a deployed run.
    """
    block = load_storage(storage)
    deployed = deployment.id is not None
    folder: Path | None = None
    if rendered_before and (stored := find_in_storage(job, block)) is not None:
        spec = stored
    elif rendered_before:
        spec, folder = load_earlier_job(job, job_dir, deployed=deployed)
        folder = folder if block is None else None
    else:
        spec, folder = load_job(job, deployed=deployed)
    path = job_dir or folder or Path.cwd() / "renderfarm-jobs" / spec.key
    return JobState(absolute_in_deployment(path, "job_dir", deployed), spec, block)
