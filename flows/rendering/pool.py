"""Rendering by flow runs of `render-chunks`: hand out batches, see what is done, replace the lost.

What is done is told by the chunks' manifests, in the storage or the job folder. The server tells
only how the runs are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from uuid import UUID

from prefect.client.schemas.objects import FlowRun

from prefect_renderfarm.blocks.adapters.work_pool import WorkPoolAdapter
from prefect_renderfarm.blocks.errors import StorageError, StorageRefused
from prefect_renderfarm.blocks.runtime.prefect_api import read_runs
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.fields import Chunk
from prefect_renderfarm.flows.parameters import reference
from prefect_renderfarm.flows.rendering.attempts import Attempts, Failures, SlowChunks
from prefect_renderfarm.flows.rendering.pool_losses import RunLosses
from prefect_renderfarm.flows.rendering.pool_queue import ChunkQueue
from prefect_renderfarm.flows.rendering.pool_run import BatchRun, end_all, wait_for_ends
from prefect_renderfarm.flows.rendering.pool_start import BatchStarts
from prefect_renderfarm.flows.runs.names import job_tag
from prefect_renderfarm.flows.runs.progress import Progress
from prefect_renderfarm.flows.state.done_chunks import DoneChunks
from prefect_renderfarm.flows.state.eta import Pace
from prefect_renderfarm.flows.state.job_folder import JobFolder
from prefect_renderfarm.flows.state.notes import RunNotes
from prefect_renderfarm.flows.state.stored_folder import StoredFolder

# A run that no worker has taken by then is worth a warning.
_PATIENCE_SECONDS = 60.0
_STOPPED = "its job was stopped"
_DONE_ELSEWHERE = "its chunks are done by another run"


class ChunkRuns:
    """Renders chunks of one job by flow runs, once; `pace` may be called from another thread.

    Args:
        folder: The job's folder.
        chunks: The chunks.
        adapter: Where the runs are, and how they are cut.
        rules: What the stitcher asks of chunks.
        attempts: How chunks are tried, in their runs.
        done: Those of the chunks that need not be rendered, by their ids.
        width: Number of runs at once.
        failures: Takes the attempts that fail.
        family: What the runs have in common with this one, so that they may render its chunks.

    Raises:
        SetupError: The storage is not saved, so that other machines could not load it.
    """

    def __init__(
        self,
        folder: JobFolder,
        chunks: Sequence[Chunk],
        adapter: WorkPoolAdapter,
        rules: ChunkRules,
        attempts: Attempts,
        done: Mapping[int, ChunkResult],
        *,
        width: int,
        failures: Failures,
        family: str,
    ) -> None:
        parameters = (
            _place(folder)
            | attempts.parameters()
            | {
                "environment": folder.environment,
                "family": family,
                "verify": rules.verify.value,
            }
        )
        job = folder.job
        self._starts = BatchStarts(adapter, parameters, job.title, job_tag(job))
        self._folder = folder
        self._chunks = chunks
        self._adapter = adapter
        self._width = width
        self._done = DoneChunks(folder, chunks, rules, attempts.retries, done)
        self._losses = RunLosses(folder, attempts.retries)
        self._failures = failures
        self._runs: list[BatchRun] = []
        target = adapter.target_minutes * 60 * adapter.chunks_at_once
        self._queue = ChunkQueue(self._left(), adapter.chunks_per_run, target, width)
        self._warned: set[str] = set()
        # Two runs at the same chunk would write the same file in a folder that they share.
        doubled = attempts.slow_factor if attempts.slow_chunks is SlowChunks.DUPLICATE else None
        factor = adapter.straggler_factor or doubled
        self._factor = factor if isinstance(folder, StoredFolder) else None

    def pace(self) -> Pace:
        """Return how far the rendering is."""
        done = dict(self._done.results)
        ages: dict[int, float] = {}
        for run in list(self._runs):
            if run.running:
                at = run.chunks[: self._adapter.chunks_at_once]
                ages |= {chunk.id: run.silence for chunk in at if chunk.id not in done}
        finished = [result.seconds for result in done.values()]
        waiting = len(self._left()) - len(ages)
        return Pace(finished, list(ages.values()), waiting)

    def render(self) -> list[ChunkResult]:
        """Render the chunks by runs of the deployment, each a child of the current flow run.

        When a chunk fails for good, the other runs are ended.

        Returns:
            The results, in the order of the chunks.

        Raises:
            WorkerError: That of the first chunk that failed for good.
            SetupError: A run could not be started, or ended before it came to any chunk.
            StorageRefused: The storage does not say what is done.
        """
        progress = Progress(len(self._done.results) + len(self._left()), "chunks rendered")
        with progress:
            try:
                self._look()
                while self._left():
                    self._give_out()
                    time.sleep(self._adapter.poll_seconds)
                    self._look()
                    progress.show(len(self._done.results))
            except BaseException as error:
                self._end_all()
                if isinstance(error, Exception):
                    wait_for_ends(self._runs)
                raise
        for run in self._runs:
            self._take_failures(run)
        end_all([run for run in self._runs if run.doubled], _DONE_ELSEWHERE)
        return [self._result(chunk.id) for chunk in self._chunks]

    def _left(self) -> list[Chunk]:
        return [chunk for chunk in self._chunks if chunk.id not in self._done.results]

    def _result(self, chunk_id: int) -> ChunkResult:
        result = self._done.results[chunk_id]
        more = self._losses.count[chunk_id] + self._done.refused[chunk_id]
        # A manifest in a storage was written by who knows of one attempt only.
        failed = sum(attempt.chunk == chunk_id for attempt in self._failures.all)
        return result.model_copy(update={"attempts": max(result.attempts, 1 + failed) + more})

    def _look(self) -> None:
        """Take note of how the runs are and of what is done; take back what runs did not do."""
        states = self._states()
        # After the states: the last chunk of a run that has ended is among them.
        try:
            odd = self._done.look()
        except StorageRefused:
            raise
        except StorageError as error:
            self._warn("the storage does not say what is done: %s", error)
            return
        odd_ids = {chunk.id for chunk in odd}
        for run in self._runs:
            run.did(odd_ids | self._done.results.keys())
            run.saw(states.get(run.run.id, run.run))
        self._queue.give_back(odd)
        for run in [run for run in self._runs if run.final]:
            self._runs.remove(run)
            self._take_failures(run)
            if run.chunks:
                self._losses.judge(run)
                self._failures.check()
                others = {chunk.id for other in self._runs for chunk in other.chunks}
                self._queue.give_back([chunk for chunk in run.chunks if chunk.id not in others])
        for run in self._runs:
            self._watch(run)

    def _take_failures(self, run: BatchRun) -> None:
        try:
            failed = RunNotes(self._folder, str(run.run.id)).failed_attempts()
        except StorageRefused:
            raise
        except (StorageError, OSError) as error:
            self._warn("the storage does not say what failed in a run: %s", error)
        else:
            self._failures.take(failed)

    def _states(self) -> dict[UUID, FlowRun]:
        try:
            return read_runs(run.run.id for run in self._runs)
        except Exception as error:
            # What is done is found without the server, too.
            self._warn("the server does not say how the runs are: %s", error)
            return {}

    def _watch(self, run: BatchRun) -> None:
        """Notice a run that no worker takes, or of which nothing is heard any more."""
        if not run.begun:
            if run.silence > _PATIENCE_SECONDS:
                pool = run.run.work_pool_name
                self._warn(
                    "no worker has taken run %r yet: is one of work pool %r up?", run.name, pool
                )
            return
        limit = self._adapter.lost_seconds(self._done.longest(), starting=not run.running)
        try:
            if not run.chunks:
                run.dismiss(_DONE_ELSEWHERE)
            elif limit is not None and run.silence > limit:
                run.give_up(f"none of its chunks was done for {limit:.0f} s")
        except Exception as error:
            self._warn("a run cannot be ended: %s", error)

    def _give_out(self) -> None:
        each = self._done.frame_seconds()
        for run in self._runs:
            if self._queue and run.wants_more:
                left = run.frames_left
                self._extend(run, self._queue.more(each, self._frames_left(), run.frames, left))
        for run in self._starts.repeat():
            self._runs.append(run)
        for _ in range(self._width - len(self._runs) - len(self._starts)):
            if self._queue:
                batch = self._queue.next_batch(each, self._frames_left())
                self._runs += self._starts.start(batch)
            elif straggler := self._straggler():
                straggler.doubled = True
                run_log().info("run %r is slow: its chunks are given out once more", straggler.name)
                self._runs += self._starts.start(straggler.chunks, again=True)

    def _frames_left(self) -> int:
        return sum(run.frames_left for run in self._runs)

    def _extend(self, run: BatchRun, chunks: Sequence[Chunk]) -> None:
        try:
            if chunks:
                run.give_more(self._folder, chunks)
        except (StorageError, OSError) as error:
            self._queue.give_back(chunks)
            self._warn("a run cannot be given more chunks: %s", error)

    def _end_all(self) -> None:
        """End all runs: first those that are known, for which less must be asked."""
        end_all(self._runs, _STOPPED)
        found = self._starts.find()
        end_all(found, _STOPPED)
        self._runs += found

    def _straggler(self) -> BatchRun | None:
        """Return the run that is longest at a chunk, if that is too long."""
        each = self._done.frame_seconds()
        if self._factor is None or each is None:
            return None
        slow = [
            run
            for run in self._runs
            if run.running and run.chunks and not run.doubled and not run.lost
            and run.silence > self._factor * each * run.chunks[0].frame_count
        ]  # fmt: skip
        return max(slow, key=lambda run: run.silence, default=None)

    def _warn(self, message: str, *arguments: object) -> None:
        if message not in self._warned:
            self._warned.add(message)
            run_log().warning(message, *arguments)


def _place(folder: JobFolder) -> dict[str, object]:
    """Return the parameters that tell a run where the job is: in a storage or a shared folder."""
    if isinstance(folder, StoredFolder):
        storage = reference(folder.store.store.block, "storage")
        return {"job": folder.job.key, "storage": storage}
    return {"job": str(folder.job_file), "job_dir": str(folder.path)}
