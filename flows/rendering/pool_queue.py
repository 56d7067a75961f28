"""Chunks that wait for a flow run, and how many of them a run gets."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prefect_renderfarm.flows.jobs.fields import Chunk

# While nothing is known of how long chunks take, a first batch is this part of a fair share.
_FIRST_PART = 4
# What is left over is added to a batch if it is a smaller part of it than this: it is not worth
# another start.
_CRUMBS = 0.25


class ChunkQueue:
    """Chunks in the order in which they are given out: the longest first, else by their id.

    Args:
        chunks: The chunks.
        per_run: Number of chunks in a batch; None: by the time that they will take.
        target: Seconds that a batch is to take, all its chunks added up.
        width: Number of runs at once.
    """

    def __init__(
        self, chunks: Sequence[Chunk], per_run: int | None, target: float, width: int
    ) -> None:
        self._waiting = sorted(chunks, key=lambda chunk: -chunk.frame_count)
        self._total = len(chunks)
        self._per_run = per_run
        self._target = target
        self._width = width

    def __len__(self) -> int:
        return len(self._waiting)

    def give_back(self, chunks: Sequence[Chunk]) -> None:
        """Take chunks of a run that did not render them; they are the next to be given out."""
        known = {chunk.id for chunk in self._waiting}
        self._waiting[:0] = [chunk for chunk in chunks if chunk.id not in known]

    def next_batch(self, frame_seconds: float | None, frames_running: int) -> list[Chunk]:
        """Give out a batch, of one chunk at least.

        Args:
            frame_seconds: Seconds that a frame takes; None: not known yet.
            frames_running: Number of frames that all runs have yet to render.
        """
        if self._per_run or frame_seconds is None:
            count = self._per_run or math.ceil(self._total / (_FIRST_PART * self._width))
        else:
            count = self._count(frame_seconds, frames_running)
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    def _count(self, frame_seconds: float, frames_running: int) -> int:
        """Return how many chunks fill a batch up to the wanted time, or to a fair share."""
        waiting = sum(chunk.frame_count for chunk in self._waiting)
        share = (waiting + frames_running) / self._width
        wanted = min(self._target / max(frame_seconds, 1e-9), share)
        frames = count = 0
        for chunk in self._waiting:
            if count and frames + chunk.frame_count / 2 > wanted:
                break
            frames += chunk.frame_count
            count += 1
        return len(self._waiting) if waiting - frames < _CRUMBS * frames else count
