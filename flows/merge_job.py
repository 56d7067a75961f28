"""The flow `merge-job`: assemble a job's finished chunks, where the film is wanted."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from humanize import naturalsize
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed

import prefect_renderfarm.flows.parameters as parameters
from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.command import WorkerJob
from prefect_renderfarm.blocks.errors import (
    AssemblyError,
    JobError,
    NotAppendableError,
    RenderStopped,
    StorageError,
    StorageRefused,
    WorkerError,
)
from prefect_renderfarm.blocks.media.image_sequence import has_number
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.runtime.repeat import retry
from prefect_renderfarm.blocks.stitchers.base import StitchReport, VideoStitcher, watching
from prefect_renderfarm.flows.jobs.spec import Chunk
from prefect_renderfarm.flows.merging.merge_run import RELEASED
from prefect_renderfarm.flows.rendering.preflight import check_commands
from prefect_renderfarm.flows.results import Assembly, MergeReport
from prefect_renderfarm.flows.runs.clock import check_clock
from prefect_renderfarm.flows.runs.failure import failing_in_a_line
from prefect_renderfarm.flows.runs.names import job_run_name, tag_run
from prefect_renderfarm.flows.runs.orphans import ending_in_order, why_no_more_chunks
from prefect_renderfarm.flows.runs.report import film_line, showing_progress
from prefect_renderfarm.flows.state.job_lock import job_lock, using_chunks
from prefect_renderfarm.flows.state.job_state import JobState, open_job

_IN_STORAGE = "storage:"
_POLL_SECONDS = 0.05  # of a job folder
_STORAGE_POLL_SECONDS = 0.3
_LINK_SECONDS = 86_400
_PARALLEL_FETCHES = 4  # from a storage; in a job folder files are only read


@flow(name="merge-job", flow_run_name=job_run_name("merge"))
@failing_in_a_line
def merge_job(
    job: parameters.JobParameter,
    adapter: parameters.AdapterParameter = "local-adapter/default",
    merge_adapter: parameters.OptionalAdapterParameter = None,
    stitcher: parameters.StitcherParameter = None,
    output_file: parameters.OptionalPath = None,
    storage: parameters.StorageParameter = None,
    job_dir: parameters.OptionalPath = None,
    chunk_timeout: parameters.Seconds = 0.0,
    inputs: parameters.OptionalText = None,
) -> MergeReport | State[Any]:
    """Assemble the finished chunks of a job.

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
        chunk_timeout: Seconds to wait for a chunk that is not done yet. 0: all must be done.
        inputs: As render-job starts its runs: the inputs digest of the chunks. Empty: chunks are
            taken as they are.

    Returns:
        How the film was assembled, and where it is. A run that waits for a chunk or for the job
        lock in vain, or whose render-job ends, ends as cancelled.

    Raises:
        JobError: The job cannot be read or is not valid.
        SetupError: A block is missing or of the wrong kind.
        AssemblyError: A chunk is missing or wrong, or the film could not be made.
    """
    started = time.monotonic()
    check_clock()
    state = open_job(job, storage, job_dir, rendered_before=True)
    state.tidy()
    state.inputs = inputs or ""
    chosen = parameters.load_stitcher(stitcher)
    film = film_path(state, output_file)
    assembly = plan_assembly(state.job.merge_command, chosen, film)
    why_not = why_no_more_chunks(with_job=inputs is not None)
    chunks = ChunkFetcher(state, chunk_timeout, why_not)
    tag_run(state.job)
    lock: AbstractContextManager[Any] = using_chunks(state)
    if inputs is None and not chunk_timeout:  # else render-job holds the lock
        lock = job_lock(state, why_not)
    stitch: StitchReport | None = None
    try:
        with ending_in_order(with_job=inputs is not None), lock, state.copies():
            if assembly is Assembly.STITCHED and chosen is not None and film is not None:
                if (track := state.audio_track()) is not None:
                    chosen = chosen.with_track(track)
                stitch = _stitch(state, chunks, chosen, film)
            elif assembly is Assembly.MERGED:
                if merge_adapter is None:
                    runner = parameters.load_adapter(adapter)
                else:
                    runner = parameters.load_adapter(merge_adapter, "merge_adapter")
                _run_merge_command(state, chunks, runner, film)
            finished_at = datetime.now(UTC) if assembly.wanted else None
            film = _deliver(state, film, output_file) if film and output_file else None
    except RenderStopped as stopped:
        return Cancelled(name=RELEASED, message=str(stopped))
    seconds = time.monotonic() - started
    report = MergeReport(
        assembly=assembly, film=film, stitch=stitch, seconds=seconds, finished_at=finished_at
    )
    retry(partial(state.save_merge, report, str(flow_run.id)), "the report of the assembly")
    summary = f"assembly {assembly.value} in {seconds:.1f} s"
    if film is not None:
        summary = film_line(film, stitch) if stitch else f"{summary}: {film}"
    run_log().info("%s", summary)
    return Completed(message=summary, data=report)


def plan_assembly(
    merge_command: str | None, stitcher: VideoStitcher | None, film: Path | None, merge: bool = True
) -> Assembly:
    """Decide who assembles the chunks. Raises: JobError, if a film would have no maker or name."""
    if not merge:
        return Assembly.OFF
    if stitcher is not None and film is not None:
        return Assembly.STITCHED
    if merge_command is None:
        if stitcher is not None:
            raise JobError(
                "a stitcher is chosen, but no output_file, and the job has no merge command: "
                "give output_file, the path of the film, or switch merge off"
            )
        if film is not None:
            raise JobError(
                f"output_file {str(film)!r} is given, but no stitcher, and the job has no merge "
                "command: choose a stitcher, such as 'remux-stitcher/default'"
            )
        return Assembly.SKIPPED
    if stitcher is not None:
        run_log().warning(
            "a stitcher is chosen, but no output_file: the job's merge command assembles"
        )
    return Assembly.MERGED


def film_path(state: JobState, output_file: Path | None) -> Path | None:
    """Return where the film is assembled, also if it then goes to a key. Raises: JobError."""
    if output_file is None:
        return None
    if (key := _key(output_file)) is None:
        return state.path / output_file
    text = output_file.as_posix()
    if state.block is None:
        raise JobError(f"output_file {text!r} is a key in the storage, but no storage is chosen")
    if not key.name or ".." in key.parts or "%" in key.name:
        raise JobError(f"output_file {text!r}: name one file, such as 'storage:films/film.mp4'")
    return state.path / key.name


def _key(output_file: Path) -> PurePosixPath | None:
    """Return a film's key, below the storage block's folder: of `storage:films/film.mp4`."""
    text = output_file.as_posix()
    if not text.startswith(_IN_STORAGE):
        return None
    return PurePosixPath(text.removeprefix(_IN_STORAGE).lstrip("/"))


def _deliver(state: JobState, film: Path, output_file: Path) -> Path:
    """Send a film to the storage, if it has a key, and keep no copy; return where it is now."""
    if (key := _key(output_file)) is None:
        return film
    try:
        state.objects.store.upload(film, str(key))
    except StorageError as error:
        raise AssemblyError(f"{error}; the film stays at {str(film)!r}") from None
    film.unlink()
    return Path(f"{_IN_STORAGE}{key}")


def film_link(state: JobState, film: Path | None) -> str | None:
    """Return a URL by which people may fetch a film from the storage for a day, if it is there."""
    key = None if film is None else _key(film)
    try:
        return None if key is None else state.objects.store.link(str(key), _LINK_SECONDS)
    except StorageError as error:
        run_log().warning("no link to the film: %s", error)
        return None


class ChunkFetcher:
    """Waits for the manifests of a job's chunks, and checks each file against its own.

    What is done is told by the manifests alone, so that whoever waits and whoever renders may both
    be stopped and started again at any moment. With a `timeout` of 0 s all chunks must be there;
    else `why_not` is asked why no more will come.
    """

    def __init__(self, state: JobState, timeout: float, why_not: Callable[[], str | None]) -> None:
        self._state = state
        self._timeout = timeout
        self._why_not = why_not
        self._checked: set[int] = set()
        self._stop = threading.Event()

    def all_here(self) -> bool:
        """Return whether every chunk counts as done; False if the storage does not say for now."""
        ask = partial(self._state.done, self._state.job.chunks)
        try:
            return len(retry(ask, "which chunks are done")) == len(self._state.job.chunks)
        except StorageError as error:
            if isinstance(error, StorageRefused) or not self._timeout:
                raise
            return False

    def __iter__(self) -> Iterator[Chunk]:
        """Give the chunks in the order of the film; the next are fetched and checked meanwhile.

        Raises: AssemblyError, if a file is not what was rendered; RenderStopped, if the next chunk
        will not come, or did not come for too long.
        """
        width = 1 if self._state.block is None else _PARALLEL_FETCHES
        self._stop.clear()
        with ThreadPoolExecutor(width, thread_name_prefix="fetch") as ahead:
            left = (ahead.submit(self._next, chunk) for chunk in self._state.job.chunks)
            try:
                coming = deque(itertools.islice(left, width))
                while coming:
                    chunk = coming.popleft().result()
                    coming.extend(itertools.islice(left, 1))
                    yield chunk
            finally:
                self._stop.set()
        # Whoever reads that a job has crashed or was cancelled is not to find its film later.
        if reason := why_no_more_chunks(with_job=bool(self._state.inputs))():
            raise RenderStopped(f"the film is not wanted any more: {reason}")

    def fetch_all(self) -> None:
        """Wait until all chunks are here, and checked."""
        for _ in self:
            pass

    def _next(self, chunk: Chunk) -> Chunk:
        if chunk.id not in self._checked:
            self._wait(chunk)
            fetch = partial(self._state.fetch_chunk, chunk)
            try:
                retry(fetch, f"chunk {chunk.id}", sleep=self._sleep)
            except StorageError as error:
                raise AssemblyError(f"chunk {chunk.id}: {error}") from None
            self._checked.add(chunk.id)
        return chunk

    def _wait(self, chunk: Chunk) -> None:
        poll_seconds = _POLL_SECONDS if self._state.block is None else _STORAGE_POLL_SECONDS
        since = time.monotonic()
        while self._timeout and not self._is_there(chunk):
            if reason := self._why_not():
                raise RenderStopped(f"chunk {chunk.id} will not come: {reason}")
            if time.monotonic() - since > self._timeout:
                raise RenderStopped(f"chunk {chunk.id} did not come within {self._timeout:g} s")
            self._sleep(poll_seconds)

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise RenderStopped("the assembly was stopped")

    def _is_there(self, chunk: Chunk) -> bool:
        try:
            return self._state.manifest(chunk) is not None
        except StorageError as error:  # who waits for a chunk waits for the storage, too
            if isinstance(error, StorageRefused):
                raise
            run_log().info("the storage does not say whether chunk %s is done: %s", chunk.id, error)
            return False


def _stitch(
    state: JobState, fetcher: ChunkFetcher, stitcher: VideoStitcher, film: Path
) -> StitchReport:
    """Stitch the chunks, each as it comes where the stitcher can and not all are done already."""
    inputs = [state.chunk_file(chunk) for chunk in state.job.chunks]
    counts = [chunk.frame_count for chunk in state.job.chunks]
    plan: dict[str, Any] = {"fps": str(state.job.metadata.rate), "frame_counts": counts}
    with showing_progress(sum(counts), "frames assembled") as show_progress:

        def show(frames: int, size: int) -> None:
            show_progress(frames, f", {naturalsize(size)}")

        growing = None if fetcher.all_here() else stitcher.grow(inputs, film, **plan)
        if growing is not None:
            try:
                with growing as grown:
                    for _ in fetcher:
                        grown.append()
                        show(grown.frames, grown.size)
            except NotAppendableError as reason:
                run_log().info("waiting for all chunks: %s", reason)
            else:
                return grown.report
        fetcher.fetch_all()
        with watching(show), _must_write(film, type(stitcher).__name__):
            report = stitcher.stitch(inputs, film, **plan)
        show(report.frames, report.size)
        return report


def _run_merge_command(
    state: JobState, fetcher: ChunkFetcher, adapter: WorkerAdapter, film: Path | None
) -> None:
    command = state.job.merge_command or ""
    check_commands(adapter, [("the merge command", command)])
    fetcher.fetch_all()
    with nullcontext() if film is None else _must_write(film, "the merge command"):
        try:
            result = adapter.execute(WorkerJob(command=command, cwd=state.path, name="merge"))
            result.require_success("merge")
        except WorkerError as error:
            raise AssemblyError(str(error)) from error


@contextmanager
def _must_write(film: Path, who: str) -> Iterator[None]:
    """Refuse the end of the block without an error if the film was not written anew."""
    path = film.parent if has_number(film) else film

    def identity() -> tuple[int, ...]:
        status = path.stat() if path.exists() else None
        return (status.st_ino, status.st_mtime_ns, status.st_size) if status else ()

    before = identity()
    yield
    if identity() in ((), before):
        state = "is the old one, untouched" if path.exists() else "is not there"
        raise AssemblyError(
            f"{who} ended without an error, but film {str(film)!r} {state}: leave output_file "
            "empty if a merge command writes another"
        )
