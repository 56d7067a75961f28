"""Chunks that flow runs render: which ones are done, and which ones wait for a run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from prefect_renderfarm.blocks.errors import ChunkFileError
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.spec import Chunk
from prefect_renderfarm.flows.state.finished import Consistency
from prefect_renderfarm.flows.state.job_state import JobState

# While nothing is known of how long chunks take, a first batch is this part of a fair share.
_FIRST_PART = 4
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
        self._misfits: list[Chunk] = []
        self._consistency = Consistency(self.rules, self.results.values())

    @property
    def left(self) -> list[Chunk]:
        """The chunks that are not done."""
        return [chunk for chunk in self.chunks if chunk.id not in self.results]

    def look(self) -> list[Chunk]:
        """Read the manifests that are new; return chunks that are to be rendered again.

        Raises:
            ChunkFileError: A chunk does not fit the others, however often it is rendered.
            StorageError: The storage did not answer; chunks that do not fit are returned next time.
        """
        done = self.state.done(left := self.left)
        lines: list[str] = []
        try:
            for chunk in left:
                if chunk.id not in done or (result := self.state.manifest(chunk)) is None:
                    continue
                try:
                    self._consistency.check(result)
                except ChunkFileError as error:
                    if (
                        chunk not in self._misfits
                    ):  # before all else: it must be returned, if not now
                        self._misfits.append(chunk)
                    self.state.forget_chunks([chunk])
                    self.refused[chunk.id] += 1
                    if self.refused[chunk.id] > self.retries:
                        raise
                    run_log().warning("%s; it is rendered again", error)
                    continue
                self.results[chunk.id] = result
                lines.append(
                    f"chunk {chunk.id}: frames {chunk.start_frame}-{chunk.end_frame - 1} done in "
                    f"{result.seconds:.1f} s by {result.worker}, {result.size:,} bytes"
                )
        finally:
            if lines:  # one entry: the server needs longer for many than short chunks take
                run_log().info("%s", "\n".join(lines))
        misfits, self._misfits = self._misfits, []
        return misfits


@dataclass(eq=False)
class ChunkQueue:
    """Chunks in the order in which they are given out: the longest first, else by their id."""

    chunks: Sequence[Chunk]
    per_run: int | None  # chunks of a batch; None: as many as take `target` seconds one by one
    target: float
    width: int  # runs at once

    def __post_init__(self) -> None:
        self._waiting = sorted(self.chunks, key=lambda chunk: -chunk.frame_count)

    def __len__(self) -> int:
        return len(self._waiting)

    def give_back(self, chunks: Sequence[Chunk]) -> None:
        """Take chunks of a run that did not render them; they are the next to be given out."""
        known = {chunk.id for chunk in self._waiting}
        self._waiting[:0] = [chunk for chunk in chunks if chunk.id not in known]

    def next_batch(
        self, frame_times: Sequence[float], frames_running: int, frames_before: int = 0
    ) -> list[Chunk]:
        """Give out a batch of one chunk at least.

        `frames_running` are what all runs have yet to do, `frames_before` what one of them has, if
        the batch is for its successor.
        """
        if self.per_run:
            count = self.per_run
        elif frame_times:
            share = sum(chunk.frame_count for chunk in self._waiting) + frames_running
            fair = share / self.width - frames_before
            count = self._count(min(fair, self.target / max(median(frame_times), 1e-9)))
        else:
            count = math.ceil(len(self.chunks) / (_FIRST_PART * self.width))
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    def _count(self, wanted: float) -> int:
        """Return how many chunks have so many frames, one at least; a small rest goes with them."""
        waiting = sum(chunk.frame_count for chunk in self._waiting)
        frames = count = 0
        for chunk in self._waiting:
            if count and frames + chunk.frame_count / 2 > wanted:
                break
            frames += chunk.frame_count
            count += 1
        return len(self._waiting) if waiting - frames < _SMALL_REST * frames else count
