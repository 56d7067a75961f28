"""Rendering by flow runs of `render-chunks`: hand out batches, see what is done, replace the lost.

What is done is told by the chunks' manifests, in the storage or the job folder: a run that ends
well tells them all in its notes, of others they are looked for. The server tells only how the runs
are.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Scheduled

from prefect_renderfarm.blocks.adapters.remote import WorkerFailure
from prefect_renderfarm.blocks.adapters.work_pool import WorkPoolAdapter
from prefect_renderfarm.blocks.errors import (
    ChunkFileError,
    SetupError,
    StorageError,
    StorageRefused,
    WorkerLost,
    WorkStopped,
)
from prefect_renderfarm.blocks.runtime.prefect_api import (
    container_of,
    declare_crashed,
    end_run,
    read_runs,
    run_log,
    start_run,
)
from prefect_renderfarm.blocks.runtime.repeat import SERVER_AWAY_SECONDS, retry
from prefect_renderfarm.blocks.runtime.run_events import run_events
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.spec import Chunk
from prefect_renderfarm.flows.parameters import reference
from prefect_renderfarm.flows.rendering.attempts import SlowChunks
from prefect_renderfarm.flows.rendering.base import Rendering, done_line
from prefect_renderfarm.flows.rendering.chunk_queue import ChunkQueue
from prefect_renderfarm.flows.runs.failure import failure_of
from prefect_renderfarm.flows.runs.names import batch_name, job_tag
from prefect_renderfarm.flows.runs.waiting import telling_why_runs_wait
from prefect_renderfarm.flows.state.job_state import RunNotes

# How often the server is asked how the runs are, where it does not tell by itself.
_ASK_SECONDS = 10.0
# A worker that is up ends a run within this time; Prefect's own limit is 30 s.
_ENDING_SECONDS = 45.0
# How long a job that fails waits for its runs to end, so that none disturbs the next attempt.
_LAST_WAIT_SECONDS = 20.0
# A run whose chunks are all done needs a moment to report.
_REPORTING_SECONDS = 5.0
# So many runs that were at the same chunk may be lost, whatever `retries` says: a machine that is
# taken away is not the chunk's fault.
_LEAST_LOST = 2
# For each chunk that is done, so many requests may be spent on news of runs that go on ...
_NEWS_REQUESTS = 0.3
# ... and so many in any case; a run of which nothing new was found is left alone until it has been
# silent for so many times as long.
_FIRST_REQUESTS = 20
_PATIENCE_FACTOR = 1.5
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
        self.frames_left = sum(chunk.frame_count for chunk in self.chunks)
        self.start_seconds: float | None = None  # until its flow began
        self.next_look = 0.0  # the silence after which its manifests are looked for

    @property
    def state(self) -> State[Any]:
        """What the server last said of the run."""
        return self.run.state or Scheduled()

    @property
    def silence(self) -> float:
        """Seconds since the run began, or since the last one of its chunks was done."""
        return time.monotonic() - self._news_at

    def update(self, run: FlowRun | None, done: Collection[int] = ()) -> None:
        """Take what the server says of the run, if it does, and the ids of chunks that are done."""
        run = run or self.run
        left = [chunk for chunk in self.chunks if chunk.id not in done] if done else self.chunks
        if run.state_type != self.run.state_type or len(left) < len(self.chunks):
            self._news_at = time.monotonic()
            self.next_look = 0.0
            self.frames_left = sum(chunk.frame_count for chunk in left)
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


class ChunkRuns(Rendering):
    """Renders chunks by flow runs on a work pool.

    A storage that is not saved is refused with SetupError: other machines could not load it.
    """

    adapter: WorkPoolAdapter

    def __post_init__(self) -> None:
        super().__post_init__()
        state, adapter = self.state, self.adapter
        self._parameters = self.attempts.parameters() | {
            "inputs": state.inputs, "verify": self.rules.verify.value,
            "adapter": adapter.worker_adapter, "concurrency": adapter.chunks_at_once,
        }  # fmt: skip
        if state.block is None:
            self._parameters |= {"job": str(state.job_file), "job_dir": str(state.path)}
        else:
            storage = reference(state.block, "storage")
            self._parameters |= {"job": state.job.key, "storage": storage}
        self._most = min(adapter.max_runs, math.ceil(self.width / adapter.chunks_at_once))
        self.width = self._most * adapter.chunks_at_once
        target = adapter.target_minutes * 60 * adapter.chunks_at_once
        self._queue = ChunkQueue(self.left, adapter.chunks_per_run, target, self._most)
        self.lost: Counter[int] = Counter()  # runs that were lost at each chunk
        self._misfits: Counter[int] = Counter()  # files of each chunk that did not fit the others
        self._runs: list[BatchRun] = []
        self._copied: set[int] = set()  # chunks that were given out while a slow run had them
        self._requests = 0  # for news of runs that go on
        self._start_seconds = math.inf  # the shortest start of a run
        # Asks again for a run that the server was asked to start, and has not answered.
        self._ask: Callable[[], BatchRun] | None = None
        self._warned: set[str] = set()
        self._tell_why_runs_wait = telling_why_runs_wait()
        self._wait_for_event: Callable[[float], bool] = lambda _: False
        self._ask_at = 0.0

    def _ages(self) -> dict[int, float]:
        ages: dict[int, float] = {}
        for run in list(self._runs):
            if run.state.is_running():
                under_way = run.chunks[: self.adapter.chunks_at_once]
                ages |= dict.fromkeys((chunk.id for chunk in under_way), run.silence)
        return ages

    def render_all(self) -> list[ChunkResult]:
        """See `Rendering`."""
        progress, events = self._showing_progress(), run_events(tag=job_tag(self.state.job))
        with progress as show, events as self._wait_for_event:
            try:
                self._look()
                while len(self.done) < len(self.chunks):
                    self._give_out()
                    time.sleep(self.adapter.poll_seconds)
                    self._look()
                    show(len(self.done))
            except BaseException as error:
                self._end_all()
                if isinstance(error, Exception):
                    self._wait_for_ends()
                raise
        for run in self._runs:
            self.failures.take(self._notes(run).failed)
        _end([run for run in self._runs if run.duplicated], _DONE_ELSEWHERE)
        # A manifest in a storage was written by a worker that knows of one attempt only.
        failed = Counter(attempt.chunk for attempt in self.failures.all)
        results = []
        for number, result in ((chunk.id, self.done[chunk.id]) for chunk in self.chunks):
            attempts = max(result.attempts, 1 + failed[number]) + self.lost[number]
            if attempts != result.attempts:
                result = result.model_copy(update={"attempts": attempts})
            results.append(result)
        return results

    # What has happened

    def _look(self) -> None:
        """See how the runs are and what is done; take back what runs did not do."""
        if self._wait_for_event(0) or time.monotonic() >= self._ask_at:
            self._ask_at = time.monotonic() + _ASK_SECONDS
            try:
                self._update_runs()
            except Exception as error:  # what is done is found without the server, too
                self._warn("the server does not say how the runs are: %s", error)
        notes = {run: self._notes(run) for run in self._runs if run.state.is_final()}
        # After the states: the last chunk of a run that has ended is among them.
        told = [result for each in notes.values() for result in each.done]
        if not self._see([*notes, *self._due()], told):
            return
        for run, each in notes.items():
            self._runs.remove(run)
            self.failures.take(each.failed)
            if run.chunks:
                self.count_loss(run, each)
                self.failures.check()
                own = {chunk.id: chunk for chunk in run.chunks}
                for other in self._runs:  # at the same chunks; another may be given them again
                    for chunk in other.chunks:
                        if own.pop(chunk.id, None) is not None:
                            other.duplicated = False
                self._queue.give_back(list(own.values()))
        for run in self._runs:
            self._watch(run)
        try:
            self._tell_why_runs_wait(run.run for run in self._runs)
        except Exception as error:
            self._warn("the server does not say why runs wait: %s", error)

    def _due(self) -> list[BatchRun]:
        """Return runs that go on and may have done a chunk, as many as requests may be spent on."""
        most = _FIRST_REQUESTS + _NEWS_REQUESTS * len(self.done) - self._requests
        usual = self.times.frame if self.times.chunks else 0.0
        due = [
            run
            for run in self._runs
            if run.state.is_running() and run.chunks
            and run.silence >= max(run.next_look, usual * run.chunks[0].frame_count)
        ]  # fmt: skip
        due.sort(key=lambda run: -run.silence)
        del due[max(0, int(most)) :]
        self._requests += len(due)
        return due

    def _see(self, runs: Sequence[BatchRun], told: Sequence[ChunkResult] = ()) -> bool:
        """See which chunks of some runs are done; return False if the storage does not say.

        What a run has told of them is not read again.
        """
        chunks = [chunk for run in runs for chunk in run.chunks]
        left = {chunk.id: chunk for chunk in chunks if chunk.id not in self.done}
        new = [one for one in told if one.id in left]
        known = {one.id: one for one in new if one.identity == self.state.identity(left[one.id])}
        before = len(self.done)
        lines: list[str] = []
        settled: set[int] = set()
        try:
            there = self.state.done(left[number] for number in left.keys() - known.keys())
            for chunk in left.values():
                result = known.get(chunk.id)
                if chunk.id in there:
                    result = self.state.manifest(chunk)
                if result is None:
                    continue
                try:
                    self._require_fit(chunk, result)
                except ChunkFileError as error:
                    settled.add(chunk.id)
                    self._queue.give_back([chunk])
                    self._count_misfit(result, error)
                else:
                    settled.add(chunk.id)
                    self._count(result)
                    lines.append(done_line(chunk, result))
        except StorageRefused:
            raise
        except StorageError as error:
            self._warn("the storage does not say what is done: %s", error)
            return False
        finally:
            if lines:  # one entry: the server needs longer for many than short chunks take
                run_log().info("%s", "\n".join(lines))
            if settled:
                for run in self._runs:
                    run.update(None, settled)
        self._requests += max(0, len(self.done) - before - len(told))
        self._consistency.check_film()
        for run in runs:
            run.next_look = _PATIENCE_FACTOR * run.silence
        return True

    def _count_misfit(self, result: ChunkResult, error: ChunkFileError) -> None:
        """Count an attempt whose file does not fit the others; raise if it was the last one."""
        error.worker = result.worker
        number = 1 + sum(failed.chunk == result.id for failed in self.failures.all)
        self.failures.add(result.id, number, result.seconds, error)
        self._misfits[result.id] += 1
        if self._misfits[result.id] > self.attempts.retries:
            raise error
        run_log().warning("%s; it is rendered again", error)

    def _update_runs(self) -> None:
        """Ask the server how the runs are."""
        states = read_runs(run.run.id for run in self._runs)
        for run in self._runs:
            run.update(states.get(run.run.id))
            self._start_seconds = min(self._start_seconds, run.start_seconds or math.inf)

    def _notes(self, run: BatchRun) -> RunNotes:
        """Return what a run has told; if that cannot be read, it counts as lost."""
        try:
            return self.state.load_notes(str(run.run.id))
        except StorageRefused:
            raise
        except (StorageError, OSError) as error:
            self._warn("the storage does not say what failed in a run: %s", error)
            lost = WorkerLost(f"what it wrote of its failure cannot be read: {error}")
            return RunNotes(failure=WorkerFailure.of(lost))

    def count_loss(self, run: BatchRun, notes: RunNotes) -> None:
        """Count a run as lost that ended before its chunks were done; raise if it failed instead.

        It is lost, at its first chunk, if its process or machine is, or if it cannot reach the
        storage: another may do better. Else a chunk failed, and had its further attempts in the
        run, or the storage refuses what would be refused to another run, too.
        """
        state = run.state
        place = container_of(run.run)
        where = f"render-chunks run {run.run.name!r} on work pool {run.run.work_pool_name!r}" + (
            f" (container {place})" if place else ""
        )
        why = run.lost or f"ended as {state.name}: {state.message}"
        if state.is_crashed() and run.run.start_time is None:
            why += " (it never began: what it printed is in the log of its pool's worker)"
        first = run.chunks[0].id
        if not run.lost:
            if state.is_completed():
                raise SetupError(
                    f"{where} says that it is done, but chunk {first} is not in the storage or "
                    "job folder that render-job sees: let both use the same"
                )
            if state.is_cancelled():
                raise WorkStopped(f"{where} was cancelled, and so its job ends")
            # A run that the storage refuses can write no notes; the server has a label.
            if state.is_failed() and (failure := notes.failure or failure_of(run.run)):
                why = _reason_of_failure(failure)
        self.lost[first] += 1
        if self.lost[first] > max(self.attempts.retries, _LEAST_LOST):
            raise WorkerLost(
                f"chunk {first}: {self.lost[first]} runs that were at it were lost; the last one, "
                f"{where}: {why}"
            )
        run_log().warning("%s was lost: %s; its unfinished chunks are given out again", where, why)

    def _watch(self, run: BatchRun) -> None:
        """Notice a run of which nothing is heard any more."""
        running = run.state.is_running()
        if run.run.start_time is None and not running and not run.state.is_pending():
            return  # no worker has taken it
        limit = self.adapter.lost_seconds(self.times.longest or None, starting=not running)
        if limit is not None and run.silence > limit and not run.lost:
            self._see([run])
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
        times = None
        if len(self.times.chunks) >= self._most:  # else the quick ones are most of them
            times = self.times.frame
        alone = [run for run in self._runs if not run.replaced]
        ending = [
            run
            for run in alone
            if times is not None
            and run.seconds_left(times, self.adapter.chunks_at_once)
            < self._start_seconds
            < math.inf
        ]  # that end before their successors have started
        ending = ending[: max(0, 2 * self._most - len(self._runs))]
        frames = sum(run.frames_left for run in self._runs)
        for before in [*ending, *[None] * (self._most - len(alone))]:
            if before is None and not self._queue and (slow := self._slow_run()):
                slow.duplicated = True
                run_log().info("run %r is slow: its chunks are given out once more", slow.run.name)
                self._queue.give_back(slow.chunks)
                self._copied.update(chunk.id for chunk in slow.chunks)
            if self._queue:
                own = before.frames_left if before else 0
                batch = self._queue.next_batch(times, frames, own)
                if left := [chunk for chunk in batch if chunk.id not in self.done]:
                    self._start(left)
                    frames += sum(chunk.frame_count for chunk in left)
                    if before:
                        before.replaced = True

    def _slow_run(self) -> BatchRun | None:
        """Return the run that is longest at a slow chunk, if slow chunks are duplicated."""
        how = self.attempts.slow_chunks
        if how is not SlowChunks.DUPLICATE and (how is not SlowChunks.AUTO or not self.state.block):
            return None

        def is_slow(run: BatchRun) -> bool:
            if not (run.state.is_running() and run.chunks) or run.duplicated or run.lost:
                return False
            frames, times = run.chunks[0].frame_count, self.own_times
            return self.attempts.slowness(frames, run.silence, times) is not None

        for run in sorted(filter(is_slow, self._runs), key=lambda run: -run.silence):
            self._see([run])
            if is_slow(run):
                return run
        return None

    def _start(self, chunks: Sequence[Chunk]) -> None:
        """Have the server start a run, once, though its answers may be lost."""
        job, ids, key = self.state.job, [chunk.id for chunk in chunks], uuid4().hex
        given = self._parameters | {"chunk_ids": ids, "fresh": self._begin(ids)}

        def ask() -> BatchRun:
            run = start_run(
                self.adapter.deployment, given, name=batch_name(ids, job.title),
                tags=[job_tag(job)], job_variables=self.adapter.job_variables, idempotency_key=key,
            )  # fmt: skip
            return BatchRun(run, list(chunks), not self._copied.isdisjoint(ids))

        self._ask = ask
        self._runs.append(retry(ask, "a run of render-chunks", seconds=SERVER_AWAY_SECONDS))
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
        with suppress(Exception):
            while time.monotonic() < deadline:
                if all(run.state.is_final() for run in self._runs):
                    return
                self._wait_for_event(_ASK_SECONDS / 2)
                self._update_runs()

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


def _reason_of_failure(failure: WorkerFailure) -> str:
    """Return why a run failed that counts as lost; raise the error of another one."""
    error = failure.as_error()
    if isinstance(error, StorageRefused) or not isinstance(error, WorkerLost | StorageError):
        raise error
    return str(error)
