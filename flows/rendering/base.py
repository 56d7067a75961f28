"""Chunks of one job while they are rendered: which are done, how far the others are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.errors import ChunkFileError, StorageError
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.runtime.repeat import retry
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.spec import Chunk
from prefect_renderfarm.flows.rendering.attempts import Attempts, Failures, Timings
from prefect_renderfarm.flows.runs.page import Snapshot
from prefect_renderfarm.flows.runs.report import about, showing_progress
from prefect_renderfarm.flows.state.finished import Consistency, Eta
from prefect_renderfarm.flows.state.job_lock import JobLock
from prefect_renderfarm.flows.state.job_state import JobState


@dataclass(eq=False)
class Rendering(ABC):
    """Renders chunks of one job, `width` at once, each with these attempts."""

    state: JobState
    adapter: WorkerAdapter
    rules: ChunkRules = ChunkRules()  # noqa: RUF009 -- frozen
    attempts: Attempts = Attempts()  # noqa: RUF009 -- frozen
    done: dict[int, ChunkResult] = field(default_factory=dict)  # at first those of earlier runs
    failures: Failures = field(default_factory=Failures)
    chunks: Sequence[Chunk] = ()
    width: int = 1
    lock: JobLock | None = None  # the job lock; None: the run that started this one holds it
    fresh: bool = False  # no other run can have rendered one of the chunks

    def __post_init__(self) -> None:
        self.reused = frozenset(self.done)
        self.times = Timings(self.done.values())
        self.own_times = Timings()  # those of this run
        self._slow: dict[int, str] = {}  # in what a chunk is, or was, slow
        self._begun: set[int] = set()  # ids of the chunks of which an attempt has begun
        self._consistency = Consistency(self.rules, self.done.values())

    @abstractmethod
    def render_all(self) -> list[ChunkResult]:
        """Render the chunks that are not done; return all in their order.

        When the last attempt at one fails, the rest is stopped and its error raised.
        """

    @abstractmethod
    def _ages(self) -> dict[int, float]:
        """Return the seconds since the chunks under way have begun, by id; from any thread."""

    @property
    def left(self) -> list[Chunk]:
        """The chunks that are not done."""
        return [chunk for chunk in self.chunks if chunk.id not in self.done]

    def eta(self) -> Eta:
        """Return when the rendering will be done; from any thread."""
        finished, running = self.times.chunks, self._ages()
        waiting = len(self.chunks) - len(finished) - len(running)
        return Eta(finished, list(running.values()), waiting)

    def snapshot(self) -> Snapshot:
        """Return how far the rendering is; from any thread."""
        done, running = dict(self.done), self._ages()
        return Snapshot(done, self.reused, running, self.failures.all, dict(self._slow))

    def _showing_progress(self) -> AbstractContextManager[Callable[..., None]]:
        """Show on the run's page how many chunks are done, run, and when all will be done."""

        def note() -> str:
            now = self.eta()
            left = now.seconds_left(self.width)
            running = f", {len(now.running):,} running" if now.running else ""
            return running + (f", about {about(left)} left" if left else "")

        return showing_progress(len(self.chunks), "chunks rendered", note)

    def _begin(self, chunk_ids: Collection[int]) -> bool:
        """Begin attempts at chunks; return whether nobody can have rendered one of them before."""
        first = self._begun.isdisjoint(chunk_ids)
        self._begun.update(chunk_ids)
        return self.fresh and first and (self.lock is None or self.lock.first)

    def _require_fit(self, chunk: Chunk, result: ChunkResult) -> None:
        """Refuse a chunk whose file does not fit the others; it no longer counts as done."""
        try:
            self._consistency.check(result)
        except ChunkFileError:
            try:
                retry(partial(self.state.forget_chunks, [chunk]), f"manifest of chunk {chunk.id}")
            except StorageError as error:
                run_log().warning("chunk %s: its manifest cannot be withdrawn: %s", chunk.id, error)
            raise

    def _count(self, result: ChunkResult) -> None:
        """Count a chunk as done."""
        self.done[result.id] = result = result.slim()
        self.times.add(result)
        self.own_times.add(result)


def done_line(chunk: Chunk, result: ChunkResult) -> str:
    """Return what the log says of a chunk that is done."""
    worker = f" by {result.worker}" if result.worker else ""
    return (
        f"chunk {chunk.id}: frames {chunk.start_frame}-{chunk.end_frame - 1} done in "
        f"{result.seconds:.1f} s{worker}, {result.size:,} bytes"
    )
