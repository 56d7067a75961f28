"""How the chunks of a job are shared out among flow runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prefect_renderfarm.flows.jobs.spec import Chunk

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
class ChunkQueue:
    """Chunks in the order in which they are given out: the longest first, else by their id."""

    chunks: Sequence[Chunk]
    per_run: int | None  # chunks of a batch; None: as many as take `target` seconds one by one
    target: float
    width: int  # runs at once

    def __post_init__(self) -> None:
        self._waiting: dict[int, Chunk] = {}  # by their ids; the last one is the next
        self._frames = 0
        self.give_back(sorted(self.chunks, key=lambda chunk: -chunk.frame_count))

    def __len__(self) -> int:
        return len(self._waiting)

    def give_back(self, chunks: Sequence[Chunk]) -> None:
        """Take chunks of a run that did not render them; they are the next to be given out."""
        for chunk in reversed(chunks):
            if chunk.id not in self._waiting:
                self._waiting[chunk.id] = chunk
                self._frames += chunk.frame_count

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
        batch = [self._waiting.popitem()[1] for _ in range(min(count, len(self._waiting)))]
        self._frames -= sum(chunk.frame_count for chunk in batch)
        return batch

    def _count(self, wanted: float) -> int:
        """Return how many chunks have so many frames, one at least; a small rest goes with them."""
        frames = count = 0
        for chunk in reversed(self._waiting.values()):
            if count and frames + chunk.frame_count / 2 > wanted:
                break
            frames += chunk.frame_count
            count += 1
        return len(self._waiting) if self._frames - frames < _SMALL_REST * frames else count
