"""The flow `merge-job`: put a job's finished chunks together, where the film is wanted."""

from __future__ import annotations

import time
from pathlib import Path

from prefect import flow
from prefect.runtime import deployment

from prefect_renderfarm.blocks import (
    AssemblyError,
    VideoStitcher,
    WorkerAdapter,
    WorkerError,
    WorkerJob,
)
from prefect_renderfarm.blocks.run_log import run_log
from prefect_renderfarm.flows.assembly import plan_assembly
from prefect_renderfarm.flows.chunk_renderer import require_success
from prefect_renderfarm.flows.job_folder import JobFolder, default_folder
from prefect_renderfarm.flows.job_source import load_job
from prefect_renderfarm.flows.parameters import (
    AdapterParameter,
    JobParameter,
    OptionalAdapterParameter,
    OptionalPath,
    StitcherParameter,
    StorageParameter,
    absolute_in_deployment,
    load_adapter,
    load_stitcher,
    refuse_storage,
)
from prefect_renderfarm.flows.results import Assembly, MergeReport
from prefect_renderfarm.flows.run_names import job_run_name, tagged
from prefect_renderfarm.flows.worker_watch import ending_with_its_worker


@flow(name="merge-job", flow_run_name=job_run_name("merge"))
def merge_job(
    job: JobParameter,
    adapter: AdapterParameter = "local-adapter/default",
    merge_adapter: OptionalAdapterParameter = None,
    stitcher: StitcherParameter = None,
    output_file: OptionalPath = None,
    storage: StorageParameter = None,
    job_dir: OptionalPath = None,
) -> MergeReport:
    """Put the finished chunks of a job together.

    The stitcher does it if there are a stitcher and an output file; else the job's merge command,
    on the merge adapter or, without one, on the adapter; else nobody.

    Args:
        job: The job: an absolute path, an https:// or s3:// URL, or the job spec itself.
        adapter: Where the merge command runs if there is no merge adapter.
        merge_adapter: Where the merge command runs.
        stitcher: What assembles the chunks.
        output_file: The film: an absolute path, or a path relative to the job folder.
        storage: Not supported yet; leave it empty: the chunks are in the job folder.
        job_dir: The job folder. Empty: the folder of the job file.

    Returns:
        How the film was assembled, and where it is.

    Raises:
        JobError: The job cannot be read or is not valid.
        SetupError: A block is missing or of the wrong kind.
        AssemblyError: A chunk is missing or wrong, or the film could not be made.
    """
    log = run_log()
    started = time.monotonic()
    refuse_storage(storage)
    spec, job_file_folder = load_job(job, deployed=deployment.id is not None)
    path = job_dir or default_folder(spec, job_file_folder)
    folder = JobFolder(absolute_in_deployment(path, "job_dir", deployment.id is not None), spec)
    folder.forget_merge()
    glue = None if stitcher is None else load_stitcher(stitcher)
    film = None if output_file is None else folder.path / output_file
    assembly = plan_assembly(spec.merge_command, glue, film)
    with tagged(spec), ending_with_its_worker():
        if assembly is Assembly.STITCHED and glue is not None and film is not None:
            report = _stitch(folder, glue, film)
        elif assembly is Assembly.MERGED:
            name = "adapter" if merge_adapter is None else "merge_adapter"
            runner = load_adapter(adapter if merge_adapter is None else merge_adapter, name)
            report = _run_merge_command(folder, runner, film)
        else:
            report = MergeReport(assembly=assembly)
    report = report.model_copy(update={"seconds": time.monotonic() - started})
    folder.save_merge(report)
    log.info("assembly %s in %.1f s%s", report.assembly.value, report.seconds,
             f": {report.film}" if report.film else "")  # fmt: skip
    return report


def _stitch(folder: JobFolder, stitcher: VideoStitcher, film: Path) -> MergeReport:
    chunks = folder.finished_chunks()
    stitch = stitcher.stitch(
        [chunk.path for chunk in chunks],
        film,
        fps=str(folder.job.metadata.rate),
        frame_counts=[chunk.frame_count for chunk in chunks],
    )
    if not film.is_file():
        raise AssemblyError(
            f"{type(stitcher).__name__} ended without an error, but film {str(film)!r} is not there"
        )
    return MergeReport(assembly=Assembly.STITCHED, film=film, stitch=stitch)


def _run_merge_command(folder: JobFolder, adapter: WorkerAdapter, film: Path | None) -> MergeReport:
    folder.finished_chunks()
    command = folder.job.merge_command or ""
    try:
        result = adapter.execute(WorkerJob(command=command, cwd=folder.path, name="merge"))
        require_success(result, "merge")
    except WorkerError as error:
        raise AssemblyError(str(error)) from error
    if film is not None and not film.is_file():
        raise AssemblyError(
            f"the merge command ended without an error, but film {str(film)!r} is not there: "
            "leave output_file empty if the command writes another"
        )
    return MergeReport(assembly=Assembly.MERGED, film=film)
