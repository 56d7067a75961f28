"""The flow `render-job`: render a job's chunks, assemble the film, publish a report."""

from __future__ import annotations

import inspect
import time
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from prefect import flow, tags
from prefect.states import Completed

import prefect_renderfarm.flows.parameters as parameters
from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.errors import JobError, SetupError, StorageError
from prefect_renderfarm.blocks.runtime.prefect_api import find_deployment, run_log
from prefect_renderfarm.blocks.runtime.repeat import retry
from prefect_renderfarm.blocks.stitchers.base import ChunkRules, VideoStitcher
from prefect_renderfarm.flows.jobs.load import file_of
from prefect_renderfarm.flows.jobs.spec import RenderJob
from prefect_renderfarm.flows.merge_job import film_link, film_path, merge_job, plan_assembly
from prefect_renderfarm.flows.merging.merge_run import MergeRun, starting_ahead
from prefect_renderfarm.flows.rendering.attempts import Attempts, Failures, SlowChunks
from prefect_renderfarm.flows.rendering.chunk_renderer import plan_rendering
from prefect_renderfarm.flows.rendering.preflight import (
    check_adapter,
    check_commands,
    check_place,
    job_slot,
)
from prefect_renderfarm.flows.results import Assembly, MergeReport, RenderReport
from prefect_renderfarm.flows.runs.clock import check_clock
from prefect_renderfarm.flows.runs.failure import failing_in_a_line
from prefect_renderfarm.flows.runs.names import job_run_name, job_tag, tag_run
from prefect_renderfarm.flows.runs.orphans import end_with_run, ending_in_order
from prefect_renderfarm.flows.runs.page import JobPage
from prefect_renderfarm.flows.runs.report import summarized
from prefect_renderfarm.flows.runs.waiting import check_room
from prefect_renderfarm.flows.state.job_lock import job_lock
from prefect_renderfarm.flows.state.job_state import JobState, open_job

# A merge run that waits longer than this for one chunk gives its slot on the work pool back.
_LEAST_CHUNK_TIMEOUT = 60.0


@flow(name="render-job", flow_run_name=job_run_name("render"), on_crashed=[end_with_run])
@failing_in_a_line
def render_job(
    job: parameters.JobParameter,
    adapter: parameters.AdapterParameter = "local-adapter/default",
    merge_adapter: parameters.OptionalAdapterParameter = None,
    stitcher: parameters.StitcherParameter = None,
    output_file: parameters.OptionalPath = None,
    storage: parameters.StorageParameter = None,
    job_dir: parameters.OptionalPath = None,
    concurrency: parameters.Concurrency = None,
    retries: parameters.Retries = 0,
    retry_delay: parameters.Seconds = 1.0,
    max_failures: parameters.Count = None,
    timeout: parameters.OptionalSeconds = None,
    slow_factor: parameters.OptionalFactor = 5.0,
    slow_chunks: SlowChunks = SlowChunks.AUTO,
    merge: bool = True,
    merge_deployment: parameters.OptionalText = None,
    merge_lead: parameters.Seconds = 30.0,
    keep_chunks: bool = True,
    force: bool = False,
    make_folders: bool = False,
) -> RenderReport:
    """Render the chunks of a job, and assemble the film.

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
            attempt, as if it had failed. auto: duplicate it on a work pool with a storage, once no
            other chunk waits; else report it.
        merge: Whether to assemble the chunks at all.
        merge_deployment: The deployment that assembles, such as merge-job/local. Empty: this run.
        merge_lead: How long before the expected end of the rendering the merge run is started, in
            seconds, so that it is warm when the last chunk is done. 0: after the last chunk.
        keep_chunks: Whether the chunks stay when the film is there. Off: their files, logs and
            manifests are deleted then. A job that fails or is cancelled keeps them, and so does
            one without an output file.
        force: Whether to render all chunks, also those that are done already.
        make_folders: Whether to make the film's folder if it is not there. Folders below the job
            folder are made in any case.

    Returns:
        What the job came to.

    Raises:
        JobError: The job or a parameter is not valid; nothing has run.
        SetupError: A block or deployment is missing or of the wrong kind; nothing has run.
        WorkerError: The last attempt at a chunk failed.
        AssemblyError: The film could not be assembled; the chunks are still there.
    """
    # 1. Check: nothing is paid for yet.
    check_clock()
    attempts = Attempts(retries, retry_delay, max_failures, timeout, slow_factor, slow_chunks)
    plan, rules, merge_run = _check(
        job, adapter, merge_adapter, stitcher, output_file, storage, job_dir, attempts,
        merge=merge, merge_deployment=merge_deployment, merge_lead=merge_lead,
        make_folders=make_folders,
    )  # fmt: skip
    state = plan.state
    state.prepare(film=plan.film)
    tag_run(state.job)
    page = JobPage(state.job, state.thumbnails)

    with ending_in_order(), page.opened(), job_lock(state) as lock:
        # 2. Render what is not done yet.
        state.identify(plan.adapter, plan.film, file_of(job))
        width = concurrency or plan.adapter.default_concurrency()
        run_log().info(
            "job %s: %d chunks, %d frames at %s a second, %d at a time, in %s",
            state.job.title, len(state.job.chunks), state.job.metadata.total_frames,
            state.job.metadata.rate, width, state.path,
        )  # fmt: skip
        started = time.monotonic()
        failures = Failures(max_failures)
        rendering = plan_rendering(
            state, state.job.chunks, plan.adapter, rules, attempts,
            width=width, failures=failures, lock=lock, force=force, fresh=lock.first,
        )  # fmt: skip
        with (
            job_slot(plan.adapter),
            page.showing(rendering.snapshot, lambda: rendering.eta().seconds_left(width)),
            starting_ahead(merge_run, rendering.eta, width, merge_lead),
        ):
            chunks = rendering.render_all()
        rendered = time.monotonic()

        # 3. Assemble: here, or on another work pool.
        page.assembling()
        merged: Any = MergeReport(assembly=plan.assembly)
        if merge_run is not None:
            merged = merge_run.finish()
        elif plan.assembly.wanted:
            with tags(job_tag(state.job)):  # from its creation, so that it is found if it is killed
                merged = merge_job(
                    str(state.job_file), plan.adapter, plan.merge_adapter, plan.stitcher,
                    output_file, state.block, state.path, inputs=state.inputs,
                )  # fmt: skip

        # 4. Report.
        report = RenderReport(
            job=state.job.title, key=state.job.key, job_dir=state.path,
            frames=state.job.metadata.total_frames, fps=str(state.job.metadata.rate),
            chunks=tuple(chunks), reused=tuple(sorted(rendering.reused)),
            failed_attempts=failures.all,
            assembly=merged.assembly, film=merged.film, stitch=merged.stitch,
            render_seconds=rendered - started, assembly_seconds=time.monotonic() - rendered,
            rendered_at=max(chunk.published_at for chunk in chunks if chunk.published_at),
            assembled_at=merged.finished_at,
        )  # fmt: skip
        try:  # the film is there: a storage that does not take the report fails no job
            retry(partial(state.save_report, report), "the report")
        except StorageError as error:
            run_log().warning("the report is not in the storage: %s", error)
        page.finish(report, film_link(state, report.film))

        # 5. Clean up.
        if not keep_chunks:
            _delete_chunks(state, report)
    summary = summarized(report)
    run_log().info("job %s: %s", report.job, summary)
    # Whoever calls the flow gets the report.
    return cast(RenderReport, Completed(message=summary, data=report))


def check_job(**given: Any) -> RenderJob:
    """Check a job as `render-job` does before it renders, and return it.

    Takes the parameters of `render_job`, and raises its errors.
    """
    bound = inspect.signature(render_job.fn).bind(**given)
    bound.apply_defaults()
    options = render_job.validate_parameters(dict(bound.arguments))
    attempts = Attempts(**{each.name: options.pop(each.name) for each in fields(Attempts)})
    plan, _, _ = _check(attempts=attempts, **options)
    return plan.state.job


class _Plan(NamedTuple):
    """Who renders a job, and who assembles it."""

    state: JobState
    adapter: WorkerAdapter
    merge_adapter: WorkerAdapter | None
    stitcher: VideoStitcher | None
    film: Path | None
    assembly: Assembly


def _check(
    job: Any,
    adapter: Any,
    merge_adapter: Any,
    stitcher: Any,
    output_file: Path | None,
    storage: Any,
    job_dir: Path | None,
    attempts: Attempts,
    *,
    merge: bool,
    merge_deployment: str | None,
    merge_lead: float,
    make_folders: bool,
    **_: Any,
) -> tuple[_Plan, ChunkRules, MergeRun | None]:
    """Read the job and load the blocks; refuse what cannot become a film.

    Returns also what the stitcher asks of chunks, and the run that assembles on another work pool;
    it is not started yet.
    """
    state = open_job(job, storage, job_dir)
    runner = parameters.load_adapter(adapter)
    merger = None
    if merge_adapter is not None:
        merger = parameters.load_adapter(merge_adapter, "merge_adapter")
    assembler = parameters.load_stitcher(stitcher)
    film = film_path(state, output_file)
    assembly = plan_assembly(state.job.merge_command, assembler, film, merge)
    plan = _Plan(state, runner, merger, assembler, film, assembly)
    rules = _check_assembly(plan)
    merge_run = None
    if assembly.wanted and merge_deployment is not None:
        merge_run = _merge_run(merge_deployment, plan, job_dir, output_file, merge_lead)
    if film is not None and assembly.wanted and (state.block is None or merge_run is None):
        check_place(film, state.path, make_folders)  # else it is on another machine
    attempts.check(state.block)
    check_adapter(runner, state)
    return plan, rules, merge_run


def _check_assembly(plan: _Plan) -> ChunkRules:
    """Refuse a film that cannot be made; return what its stitcher asks of chunks."""
    state, film = plan.state, plan.film
    if plan.assembly is Assembly.MERGED:
        merger = plan.merge_adapter or plan.adapter
        if not merger.runs_commands:
            raise SetupError(
                f"a {type(merger).__name__} runs no merge command: name a merge_adapter"
            )
        check_commands(merger, [("the merge command", state.job.merge_command or "")])
    if plan.assembly is not Assembly.STITCHED or film is None or plan.stitcher is None:
        return ChunkRules()
    stitcher = plan.stitcher
    if (track := state.audio_track()) is not None:
        stitcher = stitcher.with_track(track)
    files = {chunk.id: state.chunk_file(chunk) for chunk in state.job.chunks}
    for chunk in state.job.chunks:
        if chunk.output_file.endswith("/"):  # a folder of pictures, by which stitchers know them
            files[chunk.id].mkdir(parents=True, exist_ok=True)
    frames, rate = state.job.metadata.total_frames, state.job.metadata.rate
    stitcher.check_output(film, list(files.values()))
    stitcher.check_length(film, frames, rate)
    stitcher.check_track(frames, rate)
    for number, file in files.items():
        if file.resolve() == film.resolve():
            raise JobError(
                f"output_file {str(film)!r} is also the file of chunk {number}: name another film"
            )
    return replace(stitcher.chunk_rules(), check_first=partial(stitcher.check_first_chunk, film))


def _merge_run(
    deployment: str, plan: _Plan, job_dir: Path | None, output_file: Path | None, lead: float
) -> MergeRun:
    find_deployment(deployment, "merge-job", "merge_deployment", "merge-job/local")
    check_room("merge_deployment", deployment)
    state = plan.state
    if state.block is None:  # else the other machine has a folder of its own
        job_dir, output_file = state.path, plan.film
    given = {
        "job": state.job.key if state.block else str(state.job_file),
        "adapter": parameters.reference(plan.adapter, "adapter"),
        "merge_adapter": parameters.reference(plan.merge_adapter, "merge_adapter"),
        "stitcher": parameters.reference(plan.stitcher, "stitcher"),
        "output_file": output_file and str(output_file),
        "storage": parameters.reference(state.block, "storage"),
        "job_dir": job_dir and str(job_dir),
        "chunk_timeout": max(_LEAST_CHUNK_TIMEOUT, 4 * lead),
    }
    known = {name: value for name, value in given.items() if value is not None}
    return MergeRun(deployment, known, state)


def _delete_chunks(state: JobState, report: RenderReport) -> None:
    """Delete the chunks, now that their film is there; what cannot be deleted fails no job."""
    if report.film is None:
        run_log().warning("the chunks stay: no film is known, because output_file is empty")
        return
    try:
        state.delete_chunks()
    except (StorageError, SetupError, OSError) as error:
        run_log().warning("the chunks cannot be deleted: %s", error)
