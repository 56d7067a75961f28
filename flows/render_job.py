"""The flow `render-job`: render a job's chunks, have them put together, report."""

from __future__ import annotations

import time
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from prefect import flow, tags
from prefect.blocks.abstract import ObjectStorageBlock
from prefect.runtime import deployment

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.errors import JobError, SetupError, StorageError
from prefect_renderfarm.blocks.runtime.prefect_api import find_deployment
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.blocks.stitchers.base import ChunkRules, VideoStitcher
from prefect_renderfarm.flows.jobs.load import file_of, load_job
from prefect_renderfarm.flows.merge_job import merge_job
from prefect_renderfarm.flows.merging.assembly import plan_assembly
from prefect_renderfarm.flows.merging.merge_ahead import MergeAhead
from prefect_renderfarm.flows.merging.merge_run import MergeRun
from prefect_renderfarm.flows.parameters import (
    AdapterParameter,
    Concurrency,
    Count,
    JobParameter,
    OptionalAdapterParameter,
    OptionalFactor,
    OptionalPath,
    OptionalSeconds,
    OptionalText,
    Retries,
    Seconds,
    StitcherParameter,
    StorageParameter,
    absolute_in_deployment,
    load_adapter,
    load_stitcher,
    load_storage,
    reference,
)
from prefect_renderfarm.flows.rendering.attempts import (
    Attempts,
    Failures,
    SlowChunks,
    check_attempts,
)
from prefect_renderfarm.flows.rendering.preflight import check_adapter, check_commands, job_slot
from prefect_renderfarm.flows.rendering.shared import SharedRendering
from prefect_renderfarm.flows.results import Assembly, MergeReport, RenderReport
from prefect_renderfarm.flows.runs.names import job_run_name, job_tag, tag_run
from prefect_renderfarm.flows.runs.orphans import end_orphans, end_with_run
from prefect_renderfarm.flows.runs.report import publish_report
from prefect_renderfarm.flows.runs.retry import patiently
from prefect_renderfarm.flows.runs.worker_watch import ending_with_its_worker
from prefect_renderfarm.flows.state.file_locks import taking_turns
from prefect_renderfarm.flows.state.job_folder import JobFolder, default_folder
from prefect_renderfarm.flows.state.output_location import output_location
from prefect_renderfarm.flows.state.stored_folder import open_folder


@flow(name="render-job", flow_run_name=job_run_name("render"), on_crashed=[end_with_run])
def render_job(
    job: JobParameter,
    adapter: AdapterParameter = "local-adapter/default",
    merge_adapter: OptionalAdapterParameter = None,
    stitcher: StitcherParameter = None,
    output_file: OptionalPath = None,
    storage: StorageParameter = None,
    job_dir: OptionalPath = None,
    concurrency: Concurrency = None,
    retries: Retries = 0,
    retry_delay: Seconds = 1.0,
    max_failures: Count = None,
    timeout: OptionalSeconds = None,
    slow_factor: OptionalFactor = 5.0,
    slow_chunks: SlowChunks = SlowChunks.REPORT,
    merge: bool = True,
    merge_deployment: OptionalText = None,
    merge_lead: Seconds = 30.0,
    keep_chunks: bool = True,
    force: bool = False,
) -> RenderReport:
    """Render the chunks of a job and have the film put together.

    Args:
        job: The job: an absolute path, an https:// or s3:// URL, or the job spec itself.
        adapter: Where the chunks' commands run.
        merge_adapter: Where the merge command runs. Empty: on the adapter.
        stitcher: What assembles the chunks. Empty: the job's merge command.
        output_file: The film: an absolute path, a path relative to the job folder, or a key in the
            storage, such as storage:films/film.mp4.
        storage: What carries chunks between machines. Empty: all share the job folder.
        job_dir: The folder where commands run. Empty: the folder of the job file; for a job given
            as a job spec or by URL, a folder of its own under the run's working directory.
        concurrency: Number of chunks to render at once. Empty: as many as the adapter takes.
        retries: Number of further attempts that a chunk has.
        retry_delay: Seconds before a chunk's second attempt; twice as many before each further one,
            up to 300, and up to half as many by chance.
        max_failures: Number of failed attempts after which the job gives up. Empty: any.
        timeout: Longest time of an attempt, in seconds. Empty: the adapter's own limit.
        slow_factor: A chunk is slow that takes this many times as long as the others. Empty: none.
        slow_chunks: What to do about a slow chunk: report it; duplicate it, that is begin a second
            attempt beside it, of which the first to be done counts (needs a storage); or end the
            attempt, as if it had failed.
        merge: Whether to assemble the chunks at all.
        merge_deployment: The deployment that assembles, such as merge-job/local. Empty: this run.
        merge_lead: How long before the expected end of the rendering the merge run is started, in
            seconds, so that it is warm when the last chunk is done. 0: after the last chunk.
        keep_chunks: Whether the chunks stay when the film is there. Off: their files, logs and
            manifests are deleted then. A job that fails or is cancelled keeps them, and so does
            one without an output file.
        force: Whether to render all chunks, also those that are done already.

    Returns:
        What the job came to.

    Raises:
        JobError: The job or a parameter is not valid; nothing has run.
        SetupError: A block or deployment is missing or of the wrong kind; nothing has run.
        WorkerError: A chunk failed for good.
        AssemblyError: The film could not be put together; the chunks are still there.
    """
    log = run_log()
    deployed = deployment.id is not None
    spec, job_file_folder = load_job(job, deployed=deployed)
    path = job_dir or default_folder(spec, job_file_folder)
    chosen = _Chosen(
        load_adapter(adapter),
        None if merge_adapter is None else load_adapter(merge_adapter, "merge_adapter"),
        None if stitcher is None else load_stitcher(stitcher),
        load_storage(storage),
    )
    folder = open_folder(absolute_in_deployment(path, "job_dir", deployed), spec, chosen.storage)
    place = output_location(folder, output_file)
    film = place.path if place else None
    assembly = plan_assembly(spec.merge_command, chosen.stitcher, film, merge)
    merger = chosen.merge_adapter or chosen.adapter
    if assembly is Assembly.MERGED and not merger.runs_commands:
        raise SetupError(f"a {type(merger).__name__} runs no merge command: name a merge_adapter")
    if assembly is Assembly.MERGED:
        check_commands(merger, [("the merge command", spec.merge_command or "")])
    rules = _check_film(folder, chosen.stitcher, film, assembly)
    wanted = assembly in (Assembly.STITCHED, Assembly.MERGED)
    merge_run = None
    if wanted and merge_deployment is not None:
        # Another machine has a folder of its own, unless the storage does not carry the chunks.
        shared = folder.path if chosen.storage is None else job_dir
        written = film if chosen.storage is None else output_file
        merge_run = _merge_run(merge_deployment, folder, chosen, shared, written, merge_lead)
    attempts = Attempts(
        retries, retry_delay, max_failures, timeout, slow_factor, SlowChunks(slow_chunks)
    )
    check_attempts(attempts, chosen.storage)
    check_adapter(chosen.adapter, folder)
    folder.prepare(film=film)

    tag_run(spec)
    with ending_with_its_worker(), ExitStack() as stack:
        end_orphans(spec)
        if chosen.storage is None:  # else only the assembly has files in the folder
            stack.enter_context(taking_turns(folder))
        folder.identify(chosen.adapter, film, file_of(job))
        width = concurrency or chosen.adapter.default_concurrency()
        log.info(
            "job %s: %d chunks, %d frames at %s a second, %d at a time, in %s",
            spec.title, len(spec.chunks), spec.metadata.total_frames, spec.metadata.rate, width,
            folder.path,
        )  # fmt: skip
        started = time.monotonic()
        failures = Failures(max_failures)
        how = SharedRendering(
            folder, spec.chunks, chosen.adapter, rules, attempts,
            width=width, failures=failures, force=force,
        )  # fmt: skip
        ahead = MergeAhead(merge_run, how.pace, width, merge_lead) if merge_run else None
        with job_slot(chosen.adapter):
            stack.enter_context(how)
            # The merge run comes last: it takes for done what has a manifest.
            with ahead or nullcontext():
                chunks = how.render(kept=wanted)
        rendered = time.monotonic()
        merged: Any = MergeReport(assembly=assembly)
        if wanted:
            if merge_run is not None:
                merged = merge_run.finish()
            else:
                with tags(job_tag(spec)):  # from its creation, so that it is found if it is killed
                    merged = merge_job(
                        str(folder.job_file), *chosen[:3], output_file, chosen.storage, folder.path,
                        environment=folder.environment,
                    )  # fmt: skip
        report = RenderReport(
            job=spec.title,
            key=spec.key,
            job_dir=folder.path,
            frames=sum(chunk.frame_count for chunk in chunks),
            fps=str(spec.metadata.rate),
            chunks=tuple(chunks),
            reused=tuple(sorted(how.reused)),
            failed_attempts=failures.all,
            assembly=merged.assembly,
            film=merged.film,
            stitch=merged.stitch,
            render_seconds=rendered - started,
            assembly_seconds=time.monotonic() - rendered,
            rendered_at=max(chunk.published_at for chunk in chunks if chunk.published_at),
            assembled_at=merged.finished_at,
        )
        _save_report(folder, report)
        publish_report(report)
        if not keep_chunks:
            _delete_chunks(folder, report, how)
    log.info(
        "job %s: %s%s",
        spec.title,
        report.assembly.value,
        f", film: {report.film}" if report.film else "",
    )
    return report


# A merge run that waits longer than this for one chunk gives its place on the work pool back.
_LEAST_PATIENCE_SECONDS = 60.0


def _save_report(folder: JobFolder, report: RenderReport) -> None:
    """Keep the report, now that the film is there; a storage that does not take it fails no job."""
    try:
        patiently(partial(folder.save_report, report), "the report")
    except StorageError as error:
        run_log().warning("the report is not in the storage: %s", error)


def _delete_chunks(folder: JobFolder, report: RenderReport, how: SharedRendering) -> None:
    """Delete the chunks, now that their film is there; what cannot be deleted fails no job."""
    if report.film is None:
        run_log().warning("the chunks stay: no film is known, because output_file is empty")
        return
    try:
        if how.take_all():
            folder.delete_chunks()
    except (StorageError, SetupError, OSError) as error:
        run_log().warning("the chunks cannot be deleted: %s", error)


class _Chosen(NamedTuple):
    adapter: WorkerAdapter
    merge_adapter: WorkerAdapter | None
    stitcher: VideoStitcher | None
    storage: ObjectStorageBlock | None


def _check_film(
    folder: JobFolder, stitcher: VideoStitcher | None, film: Path | None, assembly: Assembly
) -> ChunkRules:
    """Refuse a film that cannot be made; return what its stitcher asks of chunks."""
    if film is None or assembly is not Assembly.STITCHED or stitcher is None:
        return ChunkRules()
    track = folder.audio_track()
    if track is not None:
        stitcher = stitcher.with_track(track)
    stitcher.check_output(film, [folder.chunk_file(chunk) for chunk in folder.job.chunks])
    stitcher.check_track(folder.job.metadata.total_frames, folder.job.metadata.rate)
    for chunk in folder.job.chunks:
        if folder.chunk_file(chunk).resolve() == film.resolve():
            raise JobError(
                f"output_file {str(film)!r} is also the file of chunk {chunk.id}: name another film"
            )
    return stitcher.chunk_rules()


def _merge_run(
    name: str,
    folder: JobFolder,
    chosen: _Chosen,
    job_dir: Path | None,
    output_file: Path | None,
    lead: float,
) -> MergeRun:
    find_deployment(name, "merge-job", "merge_deployment", "merge-job/local")
    stored = chosen.storage is not None
    parameters: dict[str, Any] = {
        "job": folder.job.key if stored else str(folder.job_file),
        "adapter": reference(chosen.adapter, "adapter"),
        "merge_adapter": reference(chosen.merge_adapter, "merge_adapter"),
        "stitcher": reference(chosen.stitcher, "stitcher"),
        "storage": reference(chosen.storage, "storage"),
        "output_file": str(output_file) if output_file else None,
        "job_dir": str(job_dir) if job_dir else None,
        "patience": max(_LEAST_PATIENCE_SECONDS, 4 * lead),
    }
    given = {key: value for key, value in parameters.items() if value is not None}
    return MergeRun(name, given, folder)
