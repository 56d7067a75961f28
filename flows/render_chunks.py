"""The flow `render-chunks`: render some chunks of a job, and assemble nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from prefect import flow
from prefect.context import FlowRunContext
from prefect.runtime import flow_run

import prefect_renderfarm.flows.parameters as parameters
from prefect_renderfarm.blocks.adapters.remote import WorkerFailure
from prefect_renderfarm.blocks.errors import JobError, StorageError, WorkStopped
from prefect_renderfarm.blocks.media.model import Verify
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.load import file_of
from prefect_renderfarm.flows.jobs.spec import Chunk, RenderJob, is_key
from prefect_renderfarm.flows.rendering.attempts import Attempts, Failures, SlowChunks
from prefect_renderfarm.flows.rendering.chunk_renderer import plan_rendering
from prefect_renderfarm.flows.rendering.preflight import check_adapter, job_slot
from prefect_renderfarm.flows.runs.clock import check_clock
from prefect_renderfarm.flows.runs.failure import failing_in_a_line
from prefect_renderfarm.flows.runs.names import batch_run_name, tag_run
from prefect_renderfarm.flows.runs.orphans import end_with_run, ending_in_order, why_no_more_chunks
from prefect_renderfarm.flows.state.job_lock import JobLock, job_lock, using_chunks
from prefect_renderfarm.flows.state.job_state import JobState, RunNotes, open_job


@flow(name="render-chunks", flow_run_name=batch_run_name, on_crashed=[end_with_run])
@failing_in_a_line
def render_chunks(
    job: parameters.JobParameter,
    chunk_ids: list[int] | None = None,
    adapter: parameters.AdapterParameter = "local-adapter/default",
    storage: parameters.StorageParameter = None,
    job_dir: parameters.OptionalPath = None,
    concurrency: parameters.Concurrency = None,
    retries: parameters.Retries = 0,
    retry_delay: parameters.Seconds = 1.0,
    max_failures: parameters.Count = None,
    timeout: parameters.OptionalSeconds = None,
    slow_factor: parameters.OptionalFactor = 5.0,
    slow_chunks: SlowChunks = SlowChunks.REPORT,
    force: bool = False,
    verify: Verify = Verify.PACKETS,
    inputs: parameters.OptionalText = None,
    fresh: bool = False,
) -> list[ChunkResult]:
    """Render some chunks of a job, and assemble nothing.

    Args:
        job: The job: an absolute path, an https:// or s3:// URL, or the job spec itself; or, with a
            storage, the job's key.
        chunk_ids: The chunks to render. Empty: all.
        adapter: Where the chunks' commands run.
        storage: What carries chunks between machines. Empty: all share the job folder.
        job_dir: The folder where commands run. Empty: as for render-job.
        concurrency: Number of chunks to render at once. Empty: as many as the adapter takes.
        retries: Number of further attempts that a chunk has.
        retry_delay: As for render-job, and so are the next four.
        max_failures: Number of failed attempts after which the run gives up. Empty: any.
        timeout: Longest time of an attempt, in seconds. Empty: the adapter's own limit.
        slow_factor: A chunk is slow that takes this many times as long as the others. Empty: none.
        slow_chunks: What to do about a slow chunk.
        force: Whether to render all of them, also those that are done already.
        verify: How closely to look at a finished chunk.
        inputs: As render-job starts its runs: the inputs digest of the chunks. Empty: found by this
            run, which then waits for the job lock.
        fresh: As render-job starts its runs: whether no other run was given these chunks, so that
            none of them is looked for before it is rendered.

    Returns:
        The chunks, in order of id.

    Raises:
        JobError: The job is not valid, or has no such chunk; nothing has run.
        SetupError: A block is missing or of the wrong kind; nothing has run.
        WorkerError: The last attempt at a chunk failed, or the run that started this one has ended.
    """
    check_clock()
    state = open_job(job, storage, job_dir, rendered_before=True)
    failures = Failures(max_failures, lambda failed: _write(state, RunNotes(failed=tuple(failed))))
    with ending_in_order(with_job=inputs is not None), _writing_failure(state, failures, inputs):
        chunks = list(state.job.chunks) if chunk_ids is None else _chosen(state.job, chunk_ids)
        runner = parameters.load_adapter(adapter)
        check_adapter(runner, state)
        attempts = Attempts(retries, retry_delay, max_failures, timeout, slow_factor, slow_chunks)
        attempts.check(state.block)
        state.prepare(sent=state.block is not None and isinstance(job, str) and is_key(job.strip()))
        tag_run(state.job)
        if inputs is not None and (reason := why_no_more_chunks(True, crashed=False)()):
            raise WorkStopped(f"no chunk is begun: {reason}")
        lock: AbstractContextManager[JobLock | None] = using_chunks(state)
        if inputs is None:  # else render-job holds the lock
            lock = job_lock(state, why_no_more_chunks(with_job=False))
        with lock as held, job_slot(runner):
            if inputs is None:
                state.identify(runner, file_of(job))
            else:
                state.inputs = inputs
            rendering = plan_rendering(
                state, chunks, runner, ChunkRules(verify=verify), attempts,
                width=concurrency or runner.default_concurrency(),
                failures=failures, lock=held, force=force,
                fresh=fresh and held is None and _begins_first(),
            )  # fmt: skip
            results = rendering.render_all()
            if inputs is not None:
                _write(state, RunNotes(failed=failures.all, done=tuple(results)))
            return sorted(results, key=lambda result: result.id)


def _begins_first() -> bool:
    """Return whether this run has not begun before, and was suspended or lost its machine."""
    context = FlowRunContext.get()
    run = context.flow_run if context is not None else None
    return run is not None and run.state is not None and run.start_time == run.state.timestamp


def _chosen(spec: RenderJob, chunk_ids: Iterable[int]) -> list[Chunk]:
    """Return chunks in the order in which they are asked for, each once."""
    known = {chunk.id: chunk for chunk in spec.chunks}
    wanted = dict.fromkeys(chunk_ids)
    if unknown := wanted.keys() - known.keys():
        raise JobError(f"job {spec.title!r} has no chunk {min(unknown)}: see the ids in its spec")
    return [known[number] for number in wanted]


def _write(state: JobState, notes: RunNotes) -> None:
    """Write what the run reads that started this one; it is no error if that fails."""
    try:
        state.save_notes(notes, str(flow_run.id))
    except (OSError, StorageError) as error:
        run_log().warning("could not record what failed: %s", error)


@contextmanager
def _writing_failure(state: JobState, failures: Failures, inputs: str | None) -> Iterator[None]:
    """Inside the block, an error is written for the run that started this one, if one did."""
    try:
        yield
    except Exception as error:
        if inputs is not None:
            _write(state, RunNotes(failed=failures.all, failure=WorkerFailure.of(error)))
        raise
