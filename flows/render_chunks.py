"""The flow `render-chunks`: render some chunks of a job, and assemble nothing."""

from __future__ import annotations

from prefect import flow
from prefect.runtime import deployment

from prefect_renderfarm.blocks import JobError
from prefect_renderfarm.blocks.chunk_result import ChunkResult
from prefect_renderfarm.flows.chunk_renderer import ChunkRenderer
from prefect_renderfarm.flows.job_folder import default_folder
from prefect_renderfarm.flows.job_source import load_job
from prefect_renderfarm.flows.parameters import (
    AdapterParameter,
    Concurrency,
    JobParameter,
    OptionalPath,
    Retries,
    Seconds,
    StorageParameter,
    absolute_in_deployment,
    load_adapter,
    load_storage,
)
from prefect_renderfarm.flows.render_chunk import render_all
from prefect_renderfarm.flows.run_names import job_run_name, tagged
from prefect_renderfarm.flows.stored_folder import find_in_storage, open_folder
from prefect_renderfarm.flows.worker_watch import ending_with_its_worker


@flow(name="render-chunks", flow_run_name=job_run_name("render chunks of"))
def render_chunks(
    job: JobParameter,
    chunk_ids: list[int] | None = None,
    adapter: AdapterParameter = "local-adapter/default",
    storage: StorageParameter = None,
    job_dir: OptionalPath = None,
    concurrency: Concurrency = None,
    retries: Retries = 0,
    retry_delay: Seconds = 1.0,
) -> list[ChunkResult]:
    """Render some chunks of a job, and assemble nothing.

    Args:
        job: The job: an absolute path, an https:// or s3:// URL, or the job spec itself.
        chunk_ids: The chunks to render. Empty: all.
        adapter: Where the chunks' commands run.
        storage: What carries chunks between machines. Empty: all share the job folder.
        job_dir: The folder where commands run. Empty: as for render-job.
        concurrency: Number of chunks to render at once. Empty: as many as the adapter takes.
        retries: Number of further attempts that a chunk has.
        retry_delay: Seconds between two attempts.

    Returns:
        The chunks that were rendered, in order of id.

    Raises:
        JobError: The job is not valid, or has no such chunk; nothing has run.
        SetupError: A block is missing or of the wrong kind; nothing has run.
        WorkerError: A chunk failed for good.
    """
    block = load_storage(storage)
    deployed = deployment.id is not None
    found = find_in_storage(job, block)
    spec, job_file_folder = (found, None) if found else load_job(job, deployed=deployed)
    wanted = set(chunk_ids) if chunk_ids is not None else {chunk.id for chunk in spec.chunks}
    chunks = [chunk for chunk in spec.chunks if chunk.id in wanted]
    if unknown := wanted - {chunk.id for chunk in chunks}:
        raise JobError(f"job {spec.title!r} has no chunk {min(unknown)}: see the ids in its spec")
    path = job_dir or default_folder(spec, job_file_folder)
    folder = open_folder(absolute_in_deployment(path, "job_dir", deployed), spec, block)
    runner = load_adapter(adapter)
    runner.check()
    folder.prepare()
    with tagged(spec), ending_with_its_worker():
        return render_all(
            ChunkRenderer(folder, runner, retry_delay),
            chunks,
            concurrency=concurrency or runner.default_concurrency(),
            retries=retries,
        )
