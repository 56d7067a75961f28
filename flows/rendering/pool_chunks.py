"""Chunks that flow runs render: which ones are done, and which ones wait for a run."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prefect_renderfarm.blocks.errors import ChunkFileError
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.spec import Chunk
from prefect_renderfarm.flows.rendering.attempts import Timings
from prefect_renderfarm.flows.state.finished import Consistency
from prefect_renderfarm.flows.state.job_state import JobState

# While nothing is known of how long chunks take, a first batch is this part of a fair share.
_FIRST_PART = 4
# A batch is at most this part of a fair share of what is left, so that the last batches are short
# and no run is at a long one when the others are done: "factoring" of Hummel, Schonberg and Flynn
# (1992).
_LAST_ROUNDS = 2
# What is left over is added to a batch if it is a smaller part of it than this: it is not worth
# another start.
_SMALL_REST = 0.25


@dataclass(eq=False)
class DoneChunks:
    """The chunks that are done, by their manifests in the storage or job folder."""

    state: JobState
    chunks: Sequence[Chunk]
    rules: ChunkRules
    retries: int  # how often each chunk may not fit the others
    results: dict[int, ChunkResult]  # by the chunks' ids: at first those of earlier runs

    def __post_init__(self) -> None:
        self.refused: Counter[int] = Counter()  # how often each chunk did not fit the others
        self.reused = frozenset(self.results)
        self.times = Timings(self.results.values())
        self.own_times = Timings()  # those of this run
        self._misfits: list[Chunk] = []
        self._consistency = Consistency(self.rules, self.results.values())

    @property
    def left(self) -> list[Chunk]:
        """The chunks that are not done."""
        return [chunk for chunk in self.chunks if chunk.id not in self.results]

    def look(self, chunks: Iterable[Chunk], told: Iterable[ChunkResult] = ()) -> list[Chunk]:
        """See which of some chunks are done; return those that are to be rendered again.

        What a run has told of them is not read again.

        Raises:
            ChunkFileError: A chunk does not fit the others, however often it is rendered.
            StorageError: The storage did not answer; chunks that do not fit are returned next time.
        """
        left = {chunk.id: chunk for chunk in chunks if chunk.id not in self.results}
        known = {one.id: one for one in told if one.id in left and self._is_of(one, left[one.id])}
        unknown = left.keys() - known.keys()
        there = self.state.done([left[number] for number in unknown]) if unknown else set()
        lines: list[str] = []
        try:
            for chunk in left.values():
                result = known.get(chunk.id)
                if chunk.id in there:
                    result = self.state.manifest(chunk)
                if result is None:
                    continue
                try:
                    self._consistency.check(result)
                except ChunkFileError as error:
                    if chunk not in self._misfits:  # it must be returned, if not now
                        self._misfits.append(chunk)
                    self.state.forget_chunks([chunk])
                    self.refused[chunk.id] += 1
                    if self.refused[chunk.id] > self.retries:
                        raise
                    run_log().warning("%s; it is rendered again", error)
                    continue
                self.results[chunk.id] = result = result.slim()
                self.times.add(result)
                self.own_times.add(result)
                lines.append(
                    f"chunk {chunk.id}: frames {chunk.start_frame}-{chunk.end_frame - 1} done in "
                    f"{result.seconds:.1f} s by {result.worker}, {result.size:,} bytes"
                )
        finally:
            if lines:  # one entry: the server needs longer for many than short chunks take
                run_log().info("%s", "\n".join(lines))
        self._consistency.check_film()
        misfits, self._misfits = self._misfits, []
        return misfits

    def _is_of(self, result: ChunkResult, chunk: Chunk) -> bool:
        return result.identity == self.state.identity(chunk)


@dataclass(eq=False)
class ChunkQueue:
    """Chunks in the order in which they are given out: the longest first, else by their id."""

    chunks: Sequence[Chunk]
    per_run: int | None  # chunks of a batch; None: as many as take `target` seconds one by one
    target: float
    width: int  # runs at once

    def __post_init__(self) -> None:
        self._waiting = deque(sorted(self.chunks, key=lambda chunk: -chunk.frame_count))
        self._ids = {chunk.id for chunk in self._waiting}
        self._frames = sum(chunk.frame_count for chunk in self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def give_back(self, chunks: Sequence[Chunk]) -> None:
        """Take chunks of a run that did not render them; they are the next to be given out."""
        new = [chunk for chunk in chunks if chunk.id not in self._ids]
        self._waiting.extendleft(reversed(new))
        self._ids.update(chunk.id for chunk in new)
        self._frames += sum(chunk.frame_count for chunk in new)

    def next_batch(
        self, frame_seconds: float | None, frames_running: int, frames_before: int = 0
    ) -> list[Chunk]:
        """Give out a batch of one chunk at least.

        `frame_seconds` is what a frame takes, None if that is not known. `frames_running` are what
        all runs have yet to do, `frames_before` what one of them has, if the batch is for its
        successor.
        """
        if self.per_run:
            count = self.per_run
        elif frame_seconds is not None:
            share = (self._frames + frames_running) / (_LAST_ROUNDS * self.width)
            fair = share - frames_before
            count = self._count(min(fair, self.target / max(frame_seconds, 1e-9)))
        else:
            count = math.ceil(len(self.chunks) / (_FIRST_PART * self.width))
        batch = [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]
        self._ids.difference_update(chunk.id for chunk in batch)
        self._frames -= sum(chunk.frame_count for chunk in batch)
        return batch

    def _count(self, wanted: float) -> int:
        """Return how many chunks have so many frames, one at least; a small rest goes with them."""
        frames = count = 0
        for chunk in self._waiting:
            if count and frames + chunk.frame_count / 2 > wanted:
                break
            frames += chunk.frame_count
            count += 1
        return len(self._waiting) if self._frames - frames < _SMALL_REST * frames else count
