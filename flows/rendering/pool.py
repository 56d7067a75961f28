"""Rendering by flow runs of `render-chunks`: hand out batches, see what is done, replace the lost.

What is done is told by the chunks' manifests, in the storage or the job folder. The server tells
only how the runs are.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any
from uuid import UUID, uuid4

from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Scheduled

from prefect_renderfarm.blocks.adapters.remote import WorkerFailure
from prefect_renderfarm.blocks.adapters.work_pool import WorkPoolAdapter
from prefect_renderfarm.blocks.errors import (
    SetupError,
    StorageError,
    StorageRefused,
    WorkerLost,
    WorkStopped,
)
from prefect_renderfarm.blocks.runtime.prefect_api import (
    declare_crashed,
    end_run,
    read_runs,
    run_log,
    start_run,
)
from prefect_renderfarm.blocks.runtime.repeat import retry
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.spec import Chunk
from prefect_renderfarm.flows.parameters import reference
from prefect_renderfarm.flows.rendering.attempts import (
    Attempts,
    Failures,
    SlowChunks,
    frame_times,
)
from prefect_renderfarm.flows.rendering.pool_chunks import ChunkQueue, DoneChunks
from prefect_renderfarm.flows.runs.names import batch_name, job_tag
from prefect_renderfarm.flows.runs.report import showing_progress
from prefect_renderfarm.flows.state.finished import Eta
from prefect_renderfarm.flows.state.job_state import RunNotes

# A run that no worker has taken by then is worth a warning.
_WAITING_SECONDS = 60.0
# So long the server may start no run before the job fails.
_SERVER_AWAY_SECONDS = 900.0
# A worker that is up ends a run within this time; Prefect's own limit is 30 s.
_ENDING_SECONDS = 45.0
# How long a job that fails waits for its runs to end, so that none disturbs the next attempt.
_LAST_WAIT_SECONDS = 20.0
# A run whose chunks are all done needs a moment to report.
_REPORTING_SECONDS = 5.0
# So many runs that were at the same chunk may be lost, whatever `retries` says: a machine that is
# taken away is not the chunk's fault.
_LEAST_LOST = 2
_STOPPED = "its job was stopped"
_DONE_ELSEWHERE = "its chunks are done by another run"


@dataclass(eq=False)
class BatchRun:
    """A flow run, and the chunks that it has yet to render, in its order."""

    run: FlowRun
    chunks: list[Chunk]
    duplicated: bool = False  # another run has the same chunks
    replaced: bool = False  # its successor has been started beside it
    lost: str = ""  # why it was given up

    def __post_init__(self) -> None:
        self._asked_at = self._news_at = time.monotonic()
        self._ending_since: float | None = None
        self.start_seconds: float | None = None  # until its flow began

    @property
    def state(self) -> State[Any]:
        """What the server last said of the run."""
        return self.run.state or Scheduled()

    @property
    def begun(self) -> bool:
        """Whether a worker has taken the run."""
        started = self.run.start_time is not None
        return started or self.state.is_pending() or self.state.is_running()

    @property
    def silence(self) -> float:
        """Seconds since the run began, or since the last one of its chunks was done."""
        return time.monotonic() - self._news_at

    @property
    def frames_left(self) -> int:
        """Frames that the run has yet to render."""
        return sum(chunk.frame_count for chunk in self.chunks)

    def update(self, run: FlowRun | None, done: set[int]) -> None:
        """Take what the server says of the run, if it does, and the ids of chunks that are done."""
        run = run or self.run
        left = [chunk for chunk in self.chunks if chunk.id not in done]
        if run.state_type != self.run.state_type or len(left) < len(self.chunks):
            self._news_at = time.monotonic()
        self.run, self.chunks = run, left
        if self.start_seconds is None and self.state.is_running():
            self.start_seconds = time.monotonic() - self._asked_at

    def seconds_left(self, frame_seconds: float, at_once: int) -> float:
        """Return how long the run still renders; infinity if it does not yet, or is given up."""
        if not self.state.is_running() or self.duplicated or self.lost:
            return math.inf
        return frame_seconds * self.frames_left / at_once - self.silence

    def end(self, reason: str) -> None:
        """Have the run ended, if it is not; once."""
        if self._ending_since is None and not self.state.is_final():
            end_run(self.run.id, reason)
            self._ending_since = time.monotonic()

    def give_up(self, reason: str) -> None:
        """Take the run for lost: have it ended, and declare it crashed if nobody ends it."""
        self.lost = reason
        self.end(reason)
        if self._ending_since and time.monotonic() - self._ending_since > _ENDING_SECONDS:
            declare_crashed(self.run.id, reason)


@dataclass(eq=False)
class ChunkRuns:
    """Renders chunks of one job by flow runs, `width` at once, each with these attempts at a chunk.

    A storage that is not saved is refused with SetupError: other machines could not load it.
    """

    done: DoneChunks
    adapter: WorkPoolAdapter
    attempts: Attempts
    failures: Failures
    width: int

    def __post_init__(self) -> None:
        self.state, self.chunks, self.reused = self.done.state, self.done.chunks, self.done.reused
        state, adapter = self.state, self.adapter
        given: dict[str, Any] = {"inputs": state.inputs, "verify": self.done.rules.verify.value}
        given |= {"adapter": adapter.worker_adapter, "concurrency": adapter.chunks_at_once}
        if state.block is None:
            given |= {"job": str(state.job_file), "job_dir": str(state.path)}
        else:
            given |= {"job": state.job.key, "storage": reference(state.block, "storage") or ""}
        self._parameters = self.attempts.parameters() | given
        target = adapter.target_minutes * 60 * adapter.chunks_at_once
        self._queue = ChunkQueue(self.done.left, adapter.chunks_per_run, target, self.width)
        self.lost: Counter[int] = Counter()  # runs that were lost at each chunk
        self._runs: list[BatchRun] = []
        self._start_seconds = math.inf  # the shortest start of a run
        # Asks again for a run that the server was asked to start, and has not answered.
        self._ask: Callable[[], BatchRun] | None = None
        self._warned: set[str] = set()

    def eta(self) -> Eta:
        """Return how far the rendering is; from any thread."""
        done = dict(self.done.results)
        ages: dict[int, float] = {}
        for run in list(self._runs):
            if run.state.is_running():
                under_way = run.chunks[: self.adapter.chunks_at_once]
                ages |= {chunk.id: run.silence for chunk in under_way if chunk.id not in done}
        finished = [result.seconds for result in done.values()]
        return Eta(finished, list(ages.values()), len(self.chunks) - len(done) - len(ages))

    def render_all(self) -> list[ChunkResult]:
        """Render the chunks that are not done by runs of the deployment; return all in their order.

        When the last attempt at a chunk fails, the other runs are ended and its error raised.
        """
        with showing_progress(len(self.chunks), "chunks rendered") as show:
            try:
                self._look()
                while self.done.left:
                    self._give_out()
                    time.sleep(self.adapter.poll_seconds)
                    self._look()
                    show(len(self.done.results))
            except BaseException as error:
                self._end_all()
                if isinstance(error, Exception):
                    self._wait_for_ends()
                raise
        for run in self._runs:
            self._notes(run)
        _end([run for run in self._runs if run.duplicated], _DONE_ELSEWHERE)
        return [self._result(chunk.id) for chunk in self.chunks]

    def _result(self, chunk_id: int) -> ChunkResult:
        result = self.done.results[chunk_id]
        more = self.lost[chunk_id] + self.done.refused[chunk_id]
        # A manifest in a storage was written by a worker that knows of one attempt only.
        failed = sum(attempt.chunk == chunk_id for attempt in self.failures.all)
        return result.model_copy(update={"attempts": max(result.attempts, 1 + failed) + more})

    # What has happened

    def _look(self) -> None:
        """See how the runs are and what is done; take back what runs did not do."""
        states = self._states()
        # After the states: the last chunk of a run that has ended is among them.
        try:
            misfits = self.done.look()
        except StorageRefused:
            raise
        except StorageError as error:
            self._warn("the storage does not say what is done: %s", error)
            return
        done = {chunk.id for chunk in misfits} | self.done.results.keys()
        for run in self._runs:
            run.update(states.get(run.run.id), done)
            self._start_seconds = min(self._start_seconds, run.start_seconds or math.inf)
        self._queue.give_back(misfits)
        for run in [run for run in self._runs if run.state.is_final()]:
            self._runs.remove(run)
            notes = self._notes(run)
            if run.chunks:
                self.count_loss(run, notes)
                self.failures.check()
                others = {chunk.id for other in self._runs for chunk in other.chunks}
                self._queue.give_back([chunk for chunk in run.chunks if chunk.id not in others])
        for run in self._runs:
            self._watch(run)

    def _states(self) -> dict[UUID, FlowRun]:
        try:
            return read_runs(run.run.id for run in self._runs)
        except Exception as error:  # what is done is found without the server, too
            self._warn("the server does not say how the runs are: %s", error)
            return {}

    def _notes(self, run: BatchRun) -> RunNotes:
        """Return what a run has told, its failed attempts recorded; unread, it counts as lost."""
        try:
            notes = self.state.load_notes(str(run.run.id))
        except StorageRefused:
            raise
        except (StorageError, OSError) as error:
            self._warn("the storage does not say what failed in a run: %s", error)
            lost = WorkerLost(f"what it wrote of its failure cannot be read: {error}")
            return RunNotes(failure=WorkerFailure.of(lost))
        self.failures.take(notes.failed)
        return notes

    def count_loss(self, run: BatchRun, notes: RunNotes) -> None:
        """Count a run as lost that ended before its chunks were done; raise if it failed instead.

        It is lost, at its first chunk, if its process or machine is or it cannot reach the storage:
        another may do better. Else a chunk failed, and had its further attempts in the run.
        """
        state = run.state
        where = f"render-chunks run {run.run.name!r} on work pool {run.run.work_pool_name!r}"
        why = run.lost or f"ended as {state.name}: {state.message}"
        first = run.chunks[0].id
        if not run.lost:
            if state.is_completed():
                raise SetupError(
                    f"{where} says that it is done, but chunk {first} is not in the storage or "
                    "job folder that render-job sees: let both use the same"
                )
            if state.is_cancelled():
                raise WorkStopped(f"{where} was cancelled, and so its job ends")
            if state.is_failed():
                why = _reason_of_failure(notes, f"{where} {why}")
        self.lost[first] += 1
        if self.lost[first] > max(self.attempts.retries, _LEAST_LOST):
            raise WorkerLost(
                f"chunk {first}: {self.lost[first]} runs that were at it were lost; the last one, "
                f"{where}: {why}"
            )
        run_log().warning("%s was lost: %s; its unfinished chunks are given out again", where, why)

    def _watch(self, run: BatchRun) -> None:
        """Notice a run that no worker takes, or of which nothing is heard any more."""
        if not run.begun:
            if run.silence > _WAITING_SECONDS:
                name, pool = run.run.name, run.run.work_pool_name
                self._warn("no worker has taken run %r yet: is one of work pool %r up?", name, pool)
            return
        longest = max((result.seconds for result in self.done.results.values()), default=None)
        limit = self.adapter.lost_seconds(longest, starting=not run.state.is_running())
        try:
            if not run.chunks:  # it reports, or still renders what another run did, too
                if run.duplicated and run.silence > _REPORTING_SECONDS:
                    run.end(_DONE_ELSEWHERE)
            elif limit is not None and run.silence > limit:
                run.give_up(f"none of its chunks was done for {limit:.0f} s")
        except Exception as error:
            self._warn("a run cannot be ended: %s", error)

    # What to do next

    def _give_out(self) -> None:
        times = frame_times(self.done.results.values())
        alone = [run for run in self._runs if not run.replaced]
        ending = [run for run in alone if self._ends_soon(run, times)]
        ending = ending[: max(0, 2 * self.width - len(self._runs))]
        for before in [*ending, *[None] * (self.width - len(alone))]:
            if self._queue:
                frames = sum(run.frames_left for run in self._runs)
                own = before.frames_left if before else 0
                self._start(self._queue.next_batch(times, frames, own))
                if before:
                    before.replaced = True
            elif before is None and (slow := self._slow_run()):
                slow.duplicated = True
                run_log().info("run %r is slow: its chunks are given out once more", slow.run.name)
                self._start(slow.chunks, again=True)

    def _ends_soon(self, run: BatchRun, times: Sequence[float]) -> bool:
        """Return whether a run ends within the time that its successor takes to start."""
        if not times:
            return False
        left = run.seconds_left(median(times), self.adapter.chunks_at_once)
        return left < self._start_seconds < math.inf

    def _slow_run(self) -> BatchRun | None:
        """Return the run that is longest at a slow chunk, if slow chunks are duplicated."""
        if self.attempts.slow_chunks is not SlowChunks.DUPLICATE:
            return None
        times = frame_times(self.done.results.values(), but=self.reused)
        slow = [
            run
            for run in self._runs
            if run.state.is_running() and run.chunks and not run.duplicated and not run.lost
            and self.attempts.slowness(run.chunks[0].frame_count, run.silence, times)
        ]  # fmt: skip
        return max(slow, key=lambda run: run.silence, default=None)

    def _start(self, chunks: Sequence[Chunk], *, again: bool = False) -> None:
        """Have the server start a run, once, though its answers may be lost."""
        job, ids, key = self.state.job, [chunk.id for chunk in chunks], uuid4().hex
        given = self._parameters | {"chunk_ids": ids}

        def ask() -> BatchRun:
            run = start_run(
                self.adapter.deployment, given, name=batch_name(ids, job.title),
                tags=[job_tag(job)], job_variables=self.adapter.job_variables, idempotency_key=key,
            )  # fmt: skip
            return BatchRun(run, list(chunks), again)

        self._ask = ask
        self._runs.append(retry(ask, "a run of render-chunks", seconds=_SERVER_AWAY_SECONDS))
        self._ask = None

    def _end_all(self) -> None:
        """End all runs: first those that are known, for which less must be asked."""
        _end(self._runs, _STOPPED)
        if self._ask is not None:
            try:
                self._runs.append(self._ask())
            except Exception as error:
                run_log().warning("a run may be left of which nothing was heard: %s", error)
            else:
                _end(self._runs[-1:], _STOPPED)

    def _wait_for_ends(self) -> None:
        """Wait for a limited time; an error beside the one that ends the job would help nobody."""
        deadline = time.monotonic() + _LAST_WAIT_SECONDS
        runs = self._runs
        with suppress(Exception):
            while time.monotonic() < deadline and not all(run.state.is_final() for run in runs):
                time.sleep(0.25)
                states = read_runs(run.run.id for run in runs)
                for run in runs:
                    run.update(states.get(run.run.id), set())

    def _warn(self, message: str, *arguments: object) -> None:
        """Log a warning of each kind once."""
        if message not in self._warned:
            self._warned.add(message)
            run_log().warning(message, *arguments)


def _end(runs: Sequence[BatchRun], reason: str) -> None:
    """Have runs ended, whatever happens at one of them."""
    for run in runs:
        try:
            run.end(reason)
        except Exception as error:
            with suppress(Exception):
                run_log().warning("run %r cannot be ended: %s", run.run.name, error)


def _reason_of_failure(notes: RunNotes, instead: str) -> str:
    """Return why a run failed that counts as lost; raise the error of another one."""
    if notes.failure is None:
        raise SetupError(instead)
    error = notes.failure.as_error()
    if isinstance(error, StorageRefused) or not isinstance(error, WorkerLost | StorageError):
        raise error
    return str(error)
