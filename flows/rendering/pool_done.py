"""Which chunks are done that flow runs render, by their manifests in the storage or job folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from prefect_renderfarm.blocks.errors import ChunkFileError
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.fields import Chunk
from prefect_renderfarm.flows.state.consistency import Consistency
from prefect_renderfarm.flows.state.job_state import JobState


class DoneChunks:
    """The chunks of a job that are done; others render them.

    Args:
        state: The job.
        chunks: The chunks to look for.
        rules: What the stitcher asks of chunks.
        retries: How often a chunk that does not fit the others may be rendered again.
        done: Chunks that are known to be done, by their ids.

    Attributes:
        results: The manifests of the chunks that are done, by their ids.
        refused: How often each chunk did not fit the others.
    """

    def __init__(
        self,
        state: JobState,
        chunks: Sequence[Chunk],
        rules: ChunkRules,
        retries: int,
        done: Mapping[int, ChunkResult],
    ) -> None:
        self.results = dict(done)
        self.refused: Counter[int] = Counter()
        self._odd: list[Chunk] = []
        self._state = state
        self._chunks = chunks
        self._consistency = Consistency(rules)
        self._retries = retries
        self._rendered: list[ChunkResult] = []
        for result in done.values():
            self._consistency.check(result)

    @property
    def left(self) -> list[Chunk]:
        """The chunks that are not done."""
        return [chunk for chunk in self._chunks if chunk.id not in self.results]

    def look(self) -> list[Chunk]:
        """Take note of the chunks that are done by now.

        Returns:
            Chunks that do not fit the others, and are to be rendered again.

        Raises:
            ChunkFileError: A chunk does not fit the others, however often it is rendered.
            StorageError: The storage did not answer; chunks that do not fit are returned next time.
        """
        left = self.left
        done = self._state.done(left)
        for chunk in left:
            if chunk.id in done:
                self._look_at(chunk)
        odd, self._odd = self._odd, []
        return odd

    def _look_at(self, chunk: Chunk) -> None:
        if (result := self._state.manifest(chunk)) is None:
            return
        try:
            self._consistency.check(result)
        except ChunkFileError as error:
            if chunk not in self._odd:  # before all else: it must be returned, if not now
                self._odd.append(chunk)
            self._state.forget_chunks([chunk])
            self.refused[chunk.id] += 1
            if self.refused[chunk.id] > self._retries:
                raise
            run_log().warning("%s; it is rendered again", error)
            return
        self.results[chunk.id] = result
        self._rendered.append(result)
        run_log().info(
            "chunk %s: frames %s-%s done in %.1f s by %s, %s bytes",
            chunk.id, chunk.start_frame, chunk.end_frame - 1, result.seconds, result.worker,
            f"{result.size:,}",
        )  # fmt: skip

    def frame_times(self) -> list[float]:
        """Return how many seconds a frame took, of each chunk that these runs rendered."""
        return [result.seconds / result.frame_count for result in self._rendered]

    def frame_seconds(self) -> float | None:
        """Return how many seconds a frame takes; None: no chunk is done yet."""
        rates = [result.seconds / result.frame_count for result in self.results.values()]
        return median(rates) if rates else None

    def longest(self) -> float | None:
        """Return how many seconds the longest chunk took; None: no chunk is done yet."""
        return max((result.seconds for result in self.results.values()), default=None)
