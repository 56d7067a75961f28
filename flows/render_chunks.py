"""The flow `render-chunks`: render some chunks of a job, and assemble nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

from prefect import flow
from prefect.runtime import deployment, flow_run

from prefect_renderfarm.blocks.errors import JobError, StorageError, WorkStopped
from prefect_renderfarm.blocks.media.model import Verify
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.fields import Chunk
from prefect_renderfarm.flows.jobs.load import file_of, find_in_storage, load_job
from prefect_renderfarm.flows.jobs.spec import RenderJob
from prefect_renderfarm.flows.parameters import (
    AdapterParameter,
    Concurrency,
    Count,
    JobParameter,
    OptionalFactor,
    OptionalPath,
    OptionalSeconds,
    OptionalText,
    Retries,
    Seconds,
    StorageParameter,
    absolute_in_deployment,
    load_adapter,
    load_storage,
)
from prefect_renderfarm.flows.rendering.attempts import (
    Attempts,
    Failures,
    SlowChunks,
    check_attempts,
)
from prefect_renderfarm.flows.rendering.preflight import check_adapter, job_slot
from prefect_renderfarm.flows.rendering.shared import SharedRendering
from prefect_renderfarm.flows.results import FailedAttempt
from prefect_renderfarm.flows.runs.names import batch_run_name, tag_run
from prefect_renderfarm.flows.runs.orphans import end_with_run
from prefect_renderfarm.flows.runs.parent_watch import why_no_more_chunks
from prefect_renderfarm.flows.runs.worker_watch import ending_with_its_worker
from prefect_renderfarm.flows.state.file_locks import BUSY_SECONDS, taking_turns
from prefect_renderfarm.flows.state.job_folder import JobFolder, default_folder
from prefect_renderfarm.flows.state.notes import RunNotes
from prefect_renderfarm.flows.state.stored_folder import open_folder


@flow(name="render-chunks", flow_run_name=batch_run_name, on_crashed=[end_with_run])
def render_chunks(
    job: JobParameter,
    chunk_ids: list[int] | None = None,
    adapter: AdapterParameter = "local-adapter/default",
    storage: StorageParameter = None,
    job_dir: OptionalPath = None,
    concurrency: Concurrency = None,
    retries: Retries = 0,
    retry_delay: Seconds = 1.0,
    max_failures: Count = None,
    timeout: OptionalSeconds = None,
    slow_factor: OptionalFactor = 5.0,
    slow_chunks: SlowChunks = SlowChunks.REPORT,
    force: bool = False,
    verify: Verify = Verify.PACKETS,
    environment: OptionalText = None,
    family: OptionalText = None,
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
        environment: As render-job starts its runs: what else than their commands decides what the
            chunks are. Empty: found out by this run.
        family: As render-job starts its runs: what they have in common, so that they may render the
            chunks that render-job has to itself.

    Returns:
        The chunks, in order of id.

    Raises:
        JobError: The job is not valid, or has no such chunk; nothing has run.
        SetupError: A block is missing or of the wrong kind; nothing has run.
        WorkerError: A chunk failed for good, or the run that started this one has ended.
    """
    block = load_storage(storage)
    deployed = deployment.id is not None
    found = find_in_storage(job, block)
    spec, job_file_folder = (found, None) if found else load_job(job, deployed=deployed)
    chunks = list(spec.chunks) if chunk_ids is None else _chosen(spec, chunk_ids)
    path = job_dir or default_folder(spec, job_file_folder)
    folder = open_folder(absolute_in_deployment(path, "job_dir", deployed), spec, block)
    runner = load_adapter(adapter)
    check_adapter(runner, folder)
    folder.prepare(sent=found is not None)
    rules = ChunkRules(verify=verify)
    attempts = Attempts(
        retries, retry_delay, max_failures, timeout, slow_factor, SlowChunks(slow_chunks)
    )
    check_attempts(attempts, block)
    tag_run(spec)
    why_not = why_no_more_chunks()
    if family is not None and (reason := why_no_more_chunks(crashed=False)()):
        raise WorkStopped(f"no chunk is begun: {reason}")
    with (
        ending_with_its_worker(),
        _leaving_word(folder),
        nullcontext() if block else taking_turns(folder, patience=BUSY_SECONDS, why_not=why_not),
        job_slot(runner),
    ):
        if environment is None:
            folder.identify(runner, file_of(job))
        else:
            folder.environment = environment
        results: list[ChunkResult] = []
        given = {chunk.id for chunk in chunks}
        failures = Failures(max_failures, _tell_failures(folder))
        while chunks:
            how = SharedRendering(
                folder, chunks, runner, rules, attempts,
                width=concurrency or runner.default_concurrency(), failures=failures,
                force=force, family=family,
            )  # fmt: skip
            with how:
                results += how.render()
            chunks = _more(folder, given)
            given |= {chunk.id for chunk in chunks}
    return sorted(results, key=lambda result: result.id)


def _chosen(spec: RenderJob, chunk_ids: Iterable[int]) -> list[Chunk]:
    """Return chunks in the order in which they are asked for, each once."""
    known = {chunk.id: chunk for chunk in spec.chunks}
    wanted = dict.fromkeys(chunk_ids)
    if unknown := wanted.keys() - known.keys():
        raise JobError(f"job {spec.title!r} has no chunk {min(unknown)}: see the ids in its spec")
    return [known[number] for number in wanted]


def _more(folder: JobFolder, known: Collection[int]) -> list[Chunk]:
    """Return the chunks that this run was given while it ran, but for those that it knows of."""
    if flow_run.id is None:
        return []
    given = RunNotes(folder, str(flow_run.id)).more()
    return _chosen(folder.job, [number for number in given if number not in known])


def _tell_failures(folder: JobFolder) -> Callable[[Sequence[FailedAttempt]], None]:
    """Return what writes failed attempts where the run finds them that started this one."""
    run_id = flow_run.id

    def tell(failed: Sequence[FailedAttempt]) -> None:
        try:
            if run_id is not None:
                RunNotes(folder, str(run_id)).write_failed_attempts(failed)
        except (OSError, StorageError) as error:
            run_log().warning("no word is left of a failed attempt: %s", error)

    return tell


@contextmanager
def _leaving_word(folder: JobFolder) -> Iterator[None]:
    """Write the error of this run where the run finds it that started this one."""
    try:
        yield
    except Exception as error:
        if flow_run.id is not None:
            try:
                RunNotes(folder, str(flow_run.id)).write_failure(error)
            except (OSError, StorageError) as failed:
                run_log().warning("no word is left of the failure: %s", failed)
        raise
