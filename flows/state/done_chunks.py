"""Which chunks are done, by their manifests in the storage or the job folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from types import MappingProxyType

from prefect_renderfarm.blocks.errors import ChunkFileError
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.fields import Chunk
from prefect_renderfarm.flows.state.consistency import Likeness
from prefect_renderfarm.flows.state.job_folder import JobFolder


class DoneChunks:
    """The chunks of a job that are done; others render them.

    Args:
        folder: The job's folder.
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
        folder: JobFolder,
        chunks: Sequence[Chunk],
        rules: ChunkRules,
        retries: int,
        done: Mapping[int, ChunkResult] = MappingProxyType({}),
    ) -> None:
        self.results: dict[int, ChunkResult] = {}
        self.refused: Counter[int] = Counter()
        self._odd: list[Chunk] = []
        self._folder = folder
        self._chunks = chunks
        self._likeness = Likeness(rules)
        self._retries = retries
        self.add(done)

    def add(self, done: Mapping[int, ChunkResult]) -> None:
        """Take note of chunks that are known to be done, by their ids.

        Raises:
            ChunkFileError: One does not fit the others.
        """
        for result in done.values():
            self._likeness.check(result)
        self.results |= done

    def add_fitting(self, done: Mapping[int, ChunkResult]) -> set[int]:
        """Take note of chunks that others have done and that fit; return which these are."""
        fitting = set()
        for number, result in done.items():
            try:
                self._likeness.check(result)
            except ChunkFileError as error:
                run_log().warning("%s; it is rendered again", error)
            else:
                self.results[number] = result
                fitting.add(number)
        return fitting

    def look(self, chunks: Sequence[Chunk] | None = None, *, theirs: bool = False) -> list[Chunk]:
        """Take note of the chunks that are done by now.

        Args:
            chunks: The chunks to look for; None: all.
            theirs: Whether other runs render them, who may well need one that does not fit here.

        Returns:
            Chunks that do not fit the others, and are to be rendered again.

        Raises:
            ChunkFileError: A chunk does not fit the others, however often it is rendered.
            StorageError: The storage did not answer; chunks that do not fit are told the next time.
        """
        looked_for = self._chunks if chunks is None else chunks
        unknown = [chunk for chunk in looked_for if chunk.id not in self.results]
        done = self._folder.done(unknown)
        for chunk in unknown:
            if chunk.id in done:
                self._look_at(chunk, theirs)
        odd, self._odd = self._odd, []
        return odd

    def _look_at(self, chunk: Chunk, theirs: bool) -> None:
        if (result := self._folder.manifest(chunk)) is None:
            return
        try:
            self._likeness.check(result)
        except ChunkFileError as error:
            if theirs:
                return
            if chunk not in self._odd:  # before all else: who asks must hear of it, if not now
                self._odd.append(chunk)
            self._folder.forget_chunks([chunk])
            self.refused[chunk.id] += 1
            if self.refused[chunk.id] > self._retries:
                raise
            run_log().warning("%s; it is rendered again", error)
            return
        self.results[chunk.id] = result
        run_log().info(
            "chunk %s: frames %s-%s done in %.1f s by %s, %s bytes",
            chunk.id, chunk.start_frame, chunk.end_frame - 1, result.seconds, result.worker,
            f"{result.size:,}",
        )  # fmt: skip

    def frame_seconds(self) -> float | None:
        """Return how many seconds a frame takes; None: no chunk is done yet."""
        rates = [result.seconds / result.frame_count for result in self.results.values()]
        return median(rates) if rates else None

    def longest(self) -> float | None:
        """Return how many seconds the longest chunk took; None: no chunk is done yet."""
        return max((result.seconds for result in self.results.values()), default=None)
