"""Rendering by flow runs of `render-chunks`: hand out batches, see what is done, replace the lost.

What is done is told by the chunks' manifests, in the storage or the job folder. The server tells
only how the runs are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from uuid import UUID, uuid4

from prefect.client.schemas.objects import FlowRun

from prefect_renderfarm.blocks.adapters.work_pool import WorkPoolAdapter
from prefect_renderfarm.blocks.errors import StorageError, StorageRefused
from prefect_renderfarm.blocks.runtime.prefect_api import read_runs
from prefect_renderfarm.blocks.runtime.retry import retry
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.fields import Chunk
from prefect_renderfarm.flows.parameters import reference
from prefect_renderfarm.flows.rendering.attempts import Attempts, Failures, SlowChunks
from prefect_renderfarm.flows.rendering.pool_done import DoneChunks
from prefect_renderfarm.flows.rendering.pool_losses import RunLosses
from prefect_renderfarm.flows.rendering.pool_queue import ChunkQueue
from prefect_renderfarm.flows.rendering.pool_run import BatchRun, end_all, wait_for_ends
from prefect_renderfarm.flows.rendering.slow_chunks import slowness
from prefect_renderfarm.flows.runs.names import batch_name, job_tag
from prefect_renderfarm.flows.runs.progress import Progress
from prefect_renderfarm.flows.state.eta import Eta
from prefect_renderfarm.flows.state.job_state import JobState
from prefect_renderfarm.flows.state.notes import RunNotes

# A run that no worker has taken by then is worth a warning.
_WAITING_SECONDS = 60.0
# So long the server may start no run before the job fails.
_SERVER_AWAY_SECONDS = 900.0
_STOPPED = "its job was stopped"
_DONE_ELSEWHERE = "its chunks are done by another run"


class ChunkRuns:
    """Renders chunks of one job by flow runs, once; `eta` may be called from another thread.

    Args:
        state: The job.
        chunks: The chunks.
        adapter: Where the runs are, and how they are cut.
        rules: What the stitcher asks of chunks.
        attempts: How chunks are tried, in their runs.
        done: Those of the chunks that need not be rendered, by their ids.
        width: Number of runs at once.
        failures: Takes the attempts that fail.

    Raises:
        SetupError: The storage is not saved, so that other machines could not load it.
    """

    def __init__(
        self,
        state: JobState,
        chunks: Sequence[Chunk],
        adapter: WorkPoolAdapter,
        rules: ChunkRules,
        attempts: Attempts,
        done: Mapping[int, ChunkResult],
        *,
        width: int,
        failures: Failures,
    ) -> None:
        self._parameters = (
            _location(state)
            | attempts.parameters()
            | {"inputs": state.inputs, "verify": rules.verify.value}
        )
        self._state = state
        self._chunks = chunks
        self._adapter = adapter
        self._attempts = attempts
        self._width = width
        self._done = DoneChunks(state, chunks, rules, attempts.retries, done)
        self._losses = RunLosses(state, attempts.retries)
        self._failures = failures
        self._runs: list[BatchRun] = []
        # What the server was asked to start and has not answered.
        self._asked: tuple[Sequence[Chunk], bool, str] | None = None
        target = adapter.target_minutes * 60 * adapter.chunks_at_once
        self._queue = ChunkQueue(self._done.left, adapter.chunks_per_run, target, width)
        self._warned: set[str] = set()

    def eta(self) -> Eta:
        """Return how far the rendering is."""
        done = dict(self._done.results)
        ages: dict[int, float] = {}
        for run in list(self._runs):
            if run.running:
                under_way = run.chunks[: self._adapter.chunks_at_once]
                ages |= {chunk.id: run.silence for chunk in under_way if chunk.id not in done}
        finished = [result.seconds for result in done.values()]
        return Eta(finished, list(ages.values()), len(self._chunks) - len(done) - len(ages))

    def render(self) -> list[ChunkResult]:
        """Render the chunks by runs of the deployment, each a child of the current flow run.

        When the last attempt at a chunk fails, the other runs are ended.

        Returns:
            The results, in the order of the chunks.

        Raises:
            WorkerError: That of the first chunk whose last attempt failed.
            SetupError: A run could not be started, or ended before it came to any chunk.
            StorageRefused: The storage does not say what is done.
        """
        with Progress(len(self._chunks), "chunks rendered") as progress:
            try:
                self._look()
                while self._done.left:
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
        end_all([run for run in self._runs if run.duplicated], _DONE_ELSEWHERE)
        return [self._result(chunk.id) for chunk in self._chunks]

    def _result(self, chunk_id: int) -> ChunkResult:
        result = self._done.results[chunk_id]
        more = self._losses.count[chunk_id] + self._done.refused[chunk_id]
        # A manifest in a storage was written by a worker that knows of one attempt only.
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
        done = {chunk.id for chunk in odd} | self._done.results.keys()
        for run in self._runs:
            run.update(states.get(run.run.id, run.run), done)
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
            failed = RunNotes(self._state, str(run.run.id)).failed_attempts()
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
            if run.silence > _WAITING_SECONDS:
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
        for _ in range(self._width - len(self._runs)):
            if self._queue:
                frames_running = sum(run.frames_left for run in self._runs)
                self._start(self._queue.next_batch(each, frames_running))
            elif slow := self._slow_run():
                slow.duplicated = True
                run_log().info("run %r is slow: its chunks are given out once more", slow.name)
                self._start(slow.chunks, again=True)

    def _start(self, chunks: Sequence[Chunk], *, again: bool = False) -> None:
        """Have the server start a run, once, though its answers may be lost."""
        self._asked = chunks, again, uuid4().hex
        ask = partial(self._ask, *self._asked)
        self._runs.append(retry(ask, "a run of render-chunks", seconds=_SERVER_AWAY_SECONDS))
        self._asked = None

    def _ask(self, chunks: Sequence[Chunk], again: bool, key: str) -> BatchRun:
        ids = [chunk.id for chunk in chunks]
        job = self._state.job
        given = self._parameters | {"chunk_ids": ids}
        run = self._adapter.start(given, batch_name(ids, job.title), [job_tag(job)], key)
        return BatchRun(run, chunks, again)

    def _end_all(self) -> None:
        """End all runs: first those that are known, for which less must be asked."""
        end_all(self._runs, _STOPPED)
        if self._asked is not None:
            try:
                self._runs.append(self._ask(*self._asked))
            except Exception as error:
                run_log().warning("a run may be left of which nothing was heard: %s", error)
            else:
                end_all(self._runs[-1:], _STOPPED)

    def _slow_run(self) -> BatchRun | None:
        """Return the run that is longest at a slow chunk, if slow chunks are duplicated."""
        if self._attempts.slow_chunks is not SlowChunks.DUPLICATE:
            return None
        times = self._done.frame_times()
        slow = [
            run
            for run in self._runs
            if run.running and run.chunks and not run.duplicated and not run.lost
            and slowness(self._attempts, run.chunks[0].frame_count, run.silence, times)
        ]  # fmt: skip
        return max(slow, key=lambda run: run.silence, default=None)

    def _warn(self, message: str, *arguments: object) -> None:
        if message not in self._warned:
            self._warned.add(message)
            run_log().warning(message, *arguments)


def _location(state: JobState) -> dict[str, object]:
    """Return the parameters that tell a run where the job is: in a storage or a shared folder."""
    if state.block is not None:
        return {"job": state.job.key, "storage": reference(state.block, "storage")}
    return {"job": str(state.job_file), "job_dir": str(state.path)}
