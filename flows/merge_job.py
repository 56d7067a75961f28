"""The flow `merge-job`: put a job's finished chunks together, where the film is wanted."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.blocks.abstract import ObjectStorageBlock
from prefect.client.schemas.objects import State
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.command import WorkerJob
from prefect_renderfarm.blocks.errors import (
    AssemblyError,
    NotAppendableError,
    RenderStopped,
    WorkerError,
)
from prefect_renderfarm.blocks.media.image_sequence import has_number
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.blocks.stitchers.base import StitchReport, VideoStitcher
from prefect_renderfarm.blocks.stitchers.progress import watching
from prefect_renderfarm.flows.jobs.load import find_in_storage, load_earlier_job
from prefect_renderfarm.flows.jobs.spec import RenderJob
from prefect_renderfarm.flows.merging.assembly import plan_assembly
from prefect_renderfarm.flows.merging.fetch import ChunkArrivals
from prefect_renderfarm.flows.merging.merge_run import RELEASED
from prefect_renderfarm.flows.parameters import (
    AdapterParameter,
    JobParameter,
    OptionalAdapterParameter,
    OptionalPath,
    OptionalText,
    Seconds,
    StitcherParameter,
    StorageParameter,
    absolute_in_deployment,
    load_adapter,
    load_stitcher,
    load_storage,
)
from prefect_renderfarm.flows.rendering.executors import require_success
from prefect_renderfarm.flows.rendering.preflight import check_commands
from prefect_renderfarm.flows.results import Assembly, MergeReport
from prefect_renderfarm.flows.runs.names import job_run_name, tag_run
from prefect_renderfarm.flows.runs.parent_watch import why_no_more_chunks
from prefect_renderfarm.flows.runs.progress import Progress
from prefect_renderfarm.flows.runs.report import human_size
from prefect_renderfarm.flows.runs.retry import patiently
from prefect_renderfarm.flows.runs.worker_watch import ending_with_its_worker
from prefect_renderfarm.flows.state.chunks_in_use import chunks_in_use
from prefect_renderfarm.flows.state.file_locks import BUSY_SECONDS, taking_turns
from prefect_renderfarm.flows.state.job_folder import JobFolder, default_folder
from prefect_renderfarm.flows.state.lease import Lease
from prefect_renderfarm.flows.state.output_location import output_location
from prefect_renderfarm.flows.state.stored_folder import open_folder


@flow(name="merge-job", flow_run_name=job_run_name("merge"))
def merge_job(
    job: JobParameter,
    adapter: AdapterParameter = "local-adapter/default",
    merge_adapter: OptionalAdapterParameter = None,
    stitcher: StitcherParameter = None,
    output_file: OptionalPath = None,
    storage: StorageParameter = None,
    job_dir: OptionalPath = None,
    patience: Seconds = 0.0,
    environment: OptionalText = None,
) -> MergeReport | State[Any]:
    """Put the finished chunks of a job together.

    The stitcher does it if there are a stitcher and an output file; else the job's merge command,
    on the merge adapter or, without one, on the adapter; else nobody.

    Args:
        job: The job: an absolute path, an https:// or s3:// URL, or the job spec itself; or the
            report of an earlier run (its path or its JSON); or, with job_dir, the job's id.
        adapter: Where the merge command runs if there is no merge adapter.
        merge_adapter: Where the merge command runs.
        stitcher: What assembles the chunks.
        output_file: The film: an absolute path, a path relative to the job folder, or a key in the
            storage, such as storage:films/film.mp4.
        storage: What carries chunks between machines. Empty: they are in the job folder.
        job_dir: The job folder. Empty: the folder of the job file; with a storage, a folder of its
            own under the run's working directory.
        patience: Seconds to wait for a chunk that is not done yet. 0: all must be done.
        environment: As render-job starts its runs: what else than their commands decides what the
            chunks are. Empty: chunks are taken as they are.

    Returns:
        How the film was assembled, and where it is. A run whose patience ends, or whose render-job
        does, ends as cancelled.

    Raises:
        JobError: The job cannot be read or is not valid.
        SetupError: A block is missing or of the wrong kind.
        AssemblyError: A chunk is missing or wrong, or the film could not be made.
    """
    log = run_log()
    started = time.monotonic()
    block = load_storage(storage)
    deployed = deployment.id is not None
    spec, job_file_folder = _find_job(job, job_dir, block, deployed)
    path = job_dir or default_folder(spec, job_file_folder)
    folder = open_folder(absolute_in_deployment(path, "job_dir", deployed), spec, block)
    folder.tidy()
    folder.environment = environment or ""
    glue = None if stitcher is None else load_stitcher(stitcher)
    place = output_location(folder, output_file)
    film = place.path if place else None
    assembly = plan_assembly(spec.merge_command, glue, film)
    why_not = why_no_more_chunks()
    arrivals = ChunkArrivals(folder, patience, why_not)
    tag_run(spec)
    with ending_with_its_worker(), Lease(folder) as lease:
        try:
            # A run that waits for chunks uses none; else render-job keeps them as they are.
            if environment is None and arrivals.all_here():
                lease.use(chunk.id for chunk in spec.chunks)
            in_use = chunks_in_use(lease, [chunk.id for chunk in spec.chunks])
            # Without a storage the render-job has had its turn; with one, who is at it is at work.
            longest = BUSY_SECONDS if block is None else None
            with taking_turns(folder, patience=longest, why_not=why_not), folder.assembling():
                if assembly is Assembly.STITCHED and glue is not None and film is not None:
                    if (track := folder.audio_track()) is not None:
                        glue = glue.with_track(track)
                    report = _stitch(folder, arrivals, glue, film, in_use)
                elif assembly is Assembly.MERGED:
                    name = "adapter" if merge_adapter is None else "merge_adapter"
                    runner = load_adapter(adapter if merge_adapter is None else merge_adapter, name)
                    check_commands(runner, [("the merge command", spec.merge_command or "")])
                    report = _run_merge_command(folder, arrivals, runner, film, in_use)
                else:
                    report = MergeReport(assembly=assembly)
                if place is not None and report.film is not None:
                    place.deliver(folder)
                    report = report.model_copy(update={"film": place.name})
        except RenderStopped as stopped:
            return Cancelled(name=RELEASED, message=str(stopped))
    report = report.model_copy(update={"seconds": time.monotonic() - started})
    save = partial(folder.save_merge, report, str(flow_run.id))
    patiently(save, "the report of the assembly")
    log.info("assembly %s in %.1f s%s", report.assembly.value, report.seconds,
             f": {report.film}" if report.film else "")  # fmt: skip
    return report


def _find_job(
    job: Any, job_dir: Path | None, block: ObjectStorageBlock | None, deployed: bool
) -> tuple[RenderJob, Path | None]:
    if (stored := find_in_storage(job, block)) is not None:
        return stored, None
    spec, folder = load_earlier_job(job, job_dir, deployed=deployed)
    return spec, folder if block is None else None


def _stitch(
    folder: JobFolder,
    arrivals: ChunkArrivals,
    stitcher: VideoStitcher,
    film: Path,
    in_use: AbstractContextManager[None],
) -> MergeReport:
    """Stitch the chunks, each as it comes where the stitcher can and not all are there already."""
    chunks = folder.job.chunks
    inputs = [folder.chunk_file(chunk) for chunk in chunks]
    fps = str(folder.job.metadata.rate)
    frame_counts = [chunk.frame_count for chunk in chunks]
    with Progress(sum(frame_counts), "frames assembled") as progress:

        def show(frames: int, size: int) -> None:
            progress.show(frames, f", {human_size(size)}")

        if not arrivals.all_here():
            growing = stitcher.grow(inputs, film, fps=fps, frame_counts=frame_counts)
            if growing is not None:
                try:
                    with growing as grown:
                        for _ in arrivals:
                            grown.append()
                            show(grown.frames, grown.size)
                except NotAppendableError as reason:
                    run_log().info("waiting for all chunks: %s", reason)
                else:
                    return _assembled(Assembly.STITCHED, film, grown.report)
        for _ in arrivals:
            pass
        before = _identity(film)
        with in_use, watching(show):
            report = stitcher.stitch(inputs, film, fps=fps, frame_counts=frame_counts)
        _require_new(film, before, type(stitcher).__name__)
        show(report.frames, report.size)
        return _assembled(Assembly.STITCHED, film, report)


def _run_merge_command(
    folder: JobFolder,
    arrivals: ChunkArrivals,
    adapter: WorkerAdapter,
    film: Path | None,
    in_use: AbstractContextManager[None],
) -> MergeReport:
    for _ in arrivals:
        pass
    before = _identity(film)
    command = folder.job.merge_command or ""
    try:
        with in_use:
            result = adapter.execute(WorkerJob(command=command, cwd=folder.path, name="merge"))
        require_success(result, "merge")
    except WorkerError as error:
        raise AssemblyError(str(error)) from error
    if film is not None:
        _require_new(film, before, "the merge command")
    return _assembled(Assembly.MERGED, film)


def _assembled(
    assembly: Assembly, film: Path | None, stitch: StitchReport | None = None
) -> MergeReport:
    return MergeReport(assembly=assembly, film=film, stitch=stitch, finished_at=datetime.now(UTC))


def _identity(film: Path | None) -> tuple[int, int, int] | None:
    """Return what changes when a film is written anew; None: there is none."""
    if film is not None and has_number(film):
        film = film.parent
    if film is None or not film.exists():
        return None
    status = film.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _require_new(film: Path, before: tuple[int, int, int] | None, who: str) -> None:
    after = _identity(film)
    if after is None:
        raise AssemblyError(
            f"{who} ended without an error, but film {str(film)!r} is not there: leave output_file "
            "empty if a merge command writes another"
        )
    if after == before:
        raise AssemblyError(
            f"{who} ended without an error, but film {str(film)!r} is the old one, untouched"
        )
