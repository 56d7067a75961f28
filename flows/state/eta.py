"""How far a rendering is, and how long it will still take."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

# Beyond this the order in which chunks are given out makes no difference to the estimate.
_MANY = 1000


@dataclass(frozen=True)
class Eta:
    """How far a rendering is.

    Attributes:
        finished: Seconds that each finished chunk took.
        running: Seconds that each chunk under way has been so for.
        waiting: Number of chunks that have not begun.
    """

    finished: Sequence[float]
    running: Sequence[float]
    waiting: int

    def seconds_left(self, width: int) -> float | None:
        """Return how long it will take until the last chunk is done; None: nothing to go by.

        Every chunk is taken to last as long as the finished ones did on average.

        Args:
            width: Number of chunks that are rendered at once.
        """
        if not self.finished:
            return None
        each = fmean(self.finished)
        left = [max(each - age, 0.0) for age in self.running]
        if self.waiting > _MANY:
            return (sum(left) + self.waiting * each) / width
        ends = left + [0.0] * (width - len(left))
        heapq.heapify(ends)
        for _ in range(self.waiting):
            heapq.heapreplace(ends, ends[0] + each)
        return max(ends)
