"""Tells in the log which chunks are done."""

from __future__ import annotations

import math
import time

from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.fields import Chunk

_SECONDS_BETWEEN_ENTRIES = 1.0


class DoneLog:
    """Takes the chunks that a task run renders one after the other.

    Those that are done within a second are told in one entry of several lines: of a chunk that
    takes a few milliseconds, an entry of its own in Prefect's log would cost a fifth more. So they
    are told with the next one, or at the end.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._told_at = -math.inf

    def add(self, chunk: Chunk, result: ChunkResult) -> None:
        """Take note of a chunk that is done."""
        self._lines.append(
            f"chunk {chunk.id}: frames {chunk.start_frame}-{chunk.end_frame - 1} done in "
            f"{result.seconds:.1f} s, {result.size:,} bytes"
        )
        if time.monotonic() - self._told_at >= _SECONDS_BETWEEN_ENTRIES:
            self.tell()

    def tell(self) -> None:
        """Tell of the chunks that were not told of yet."""
        if self._lines:
            run_log().info("%s", "\n".join(self._lines))
            self._lines.clear()
            self._told_at = time.monotonic()
