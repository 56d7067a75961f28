"""The rendering of a job that other runs may render at the same time: each chunk by one of them."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from typing import Self

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.errors import AssemblyError, StorageError, StorageRefused
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.fields import Chunk
from prefect_renderfarm.flows.rendering.attempts import Attempts, Failures
from prefect_renderfarm.flows.rendering.dispatch import Rendering, rendering
from prefect_renderfarm.flows.runs.names import batch_name
from prefect_renderfarm.flows.state.done_chunks import DoneChunks
from prefect_renderfarm.flows.state.eta import Pace
from prefect_renderfarm.flows.state.finished import finished_chunks
from prefect_renderfarm.flows.state.job_folder import JobFolder
from prefect_renderfarm.flows.state.lease import SILENT_SECONDS, Lease

_POLL_SECONDS = 1.0
_TRIES = 5


class SharedRendering:
    """Renders chunks that no other run has, then waits for those that another is at.

    A context: entering takes the chunks that no other run has, and finds out which of them are done
    already; only of its own ones may a run say that they are not. What another run does not do,
    because it fails, is ended or dies, this one does.

    Args:
        folder: The job's folder, which knows what the chunks are known by.
        chunks: The chunks.
        adapter: Where commands run.
        rules: What the stitcher asks of chunks.
        attempts: How chunks are tried.
        width: Number of chunks to render at once.
        failures: Takes the attempts that fail.
        force: Whether to render chunks anew that are done.
        family: See `Lease`.

    Attributes:
        reused: The ids of the chunks that other runs have rendered.

    Raises:
        SetupError: The storage is not saved, so that other machines could not load it.
    """

    def __init__(
        self,
        folder: JobFolder,
        chunks: Sequence[Chunk],
        adapter: WorkerAdapter,
        rules: ChunkRules,
        attempts: Attempts,
        *,
        width: int,
        failures: Failures,
        force: bool = False,
        family: str | None = None,
    ) -> None:
        self.reused: set[int] = set()
        self._folder = folder
        self._chunks = chunks
        self._adapter = adapter
        self._rules = rules
        self._attempts = attempts
        self._width = width
        self._failures = failures
        self._force = force
        self._done = DoneChunks(folder, chunks, rules, attempts.retries)
        self._seen: set[int] = set()
        self._warned = False
        self._lease = Lease(folder, [chunk.id for chunk in chunks], family=family)
        self._rendering = self._rendering_of(chunks)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._lease)
            self._find_finished(self._lease.mine)
            self._rendering = self._rendering_of(self._left())
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._lease.release()

    def pace(self) -> Pace:
        """Return how far the rendering is; may be called from another thread."""
        return self._rendering.pace()

    def render(self, *, kept: bool = False) -> list[ChunkResult]:
        """Render the chunks; when one fails for good, stop the others.

        Args:
            kept: Whether no other run may render them anew before this context is left.

        Returns:
            The results, in the order of the chunks.

        Raises:
            WorkerError: That of the first chunk that failed for good.
            StorageError: The storage did not answer.
            AssemblyError: Another run has put other chunks in their place.
        """
        self._render_what_is_left()
        while kept and (lost := self._lost()):
            names = batch_name(sorted(lost), self._folder.job.title)
            run_log().info("%s: taken away by another run, and done again", names)
            self._lease.let_go([chunk.id for chunk in self._chunks])
            for number in lost:
                del self._done.results[number]
            self._seen -= lost
            self.reused -= lost
            self._render_what_is_left()
        return [self._done.results[chunk.id] for chunk in self._chunks]

    def take_all(self) -> bool:
        """Have all chunks for this run alone, so that they can be deleted; return whether it is so.

        Raises:
            StorageError: The storage did not answer.
            OSError: The job folder cannot be read or written.
        """
        ids = {chunk.id for chunk in self._chunks}
        self._lease.let_go(ids)
        for _ in range(_TRIES):
            mine = self._lease.take(ids)
            if company := self._lease.company():
                who = "; ".join(company)
                run_log().info("the chunks stay: other runs are at this job: %s", who)
                return False
            if mine == ids:
                return True
            time.sleep(_POLL_SECONDS)
        run_log().info("the chunks stay: some were taken by another run")
        return False

    def _render_what_is_left(self) -> None:
        told = False
        while left := self._left():
            ids = [chunk.id for chunk in left]
            if mine := self._take(ids, waiting=told):
                self._find_finished(mine)
                self._render([chunk for chunk in self._left() if chunk.id in mine])
                continue
            # Others may wait for what this run has, and it for what they have.
            self._lease.let_go(chunk.id for chunk in self._chunks)
            if not told:
                told = True
                who = self._lease.waiting_for(ids)
                run_log().info("%d chunks are with other runs: %s", len(ids), who)
            time.sleep(_POLL_SECONDS)
            if not self._force:
                self._look_for(left)

    def _lost(self) -> set[int]:
        """Keep what is done as it is; return the chunks that other runs took away before that.

        Raises:
            AssemblyError: Another run has put others in their place.
        """
        ids = {chunk.id for chunk in self._chunks}
        unbroken = ids <= self._lease.mine
        deadline = time.monotonic() + SILENT_SECONDS
        told = False
        try:
            while True:
                kept = self._lease.use(ids)
                if unbroken:
                    return set()  # held since they were done
                # Whoever renders anew what it holds has removed the manifests long before the end.
                if kept == ids or time.monotonic() > deadline:
                    return self._gone()
                if gone := ids - self._folder.done(self._chunks):
                    return gone
                if not told:
                    told = True
                    who = self._lease.waiting_for(ids - kept)
                    run_log().info("waiting for other runs: %s", who)
                time.sleep(_POLL_SECONDS)
        except (StorageError, OSError) as error:
            self._warn_once(error)  # and goes on: the assembly looks at every chunk
            self._lease.let_go(ids)
            return set()

    def _gone(self) -> set[int]:
        manifests = self._folder.manifests(self._chunks)
        others = [
            number
            for number, result in manifests.items()
            if result.identity != self._done.results[number].identity
        ]
        if others:
            raise AssemblyError(
                f"{batch_name(others, self._folder.job.title)}: another run has rendered them "
                "meanwhile, from other input or in another environment: run the job again when "
                "that one is over"
            )
        return self._done.results.keys() - manifests.keys()

    def _take(self, ids: Collection[int], *, waiting: bool) -> Collection[int]:
        """Take the chunks that nobody has; one who waits in any case waits for the storage, too."""
        try:
            return self._lease.take(ids)
        except StorageRefused:
            raise
        except (StorageError, OSError) as error:
            if not waiting:
                raise
            self._warn_once(error)
            return ()

    def _warn_once(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            run_log().warning("the storage does not say what is done: %s", error)

    def _left(self) -> list[Chunk]:
        return [chunk for chunk in self._chunks if chunk.id not in self._done.results]

    def _find_finished(self, mine: Collection[int]) -> None:
        """Find out which of its own chunks need no rendering, as soon as they are its own."""
        new = [chunk for chunk in self._left() if chunk.id in mine and chunk.id not in self._seen]
        if new:
            found = finished_chunks(self._folder, new, self._rules, force=self._force)
            self._seen |= {chunk.id for chunk in new}
            fitting = self._done.add_fitting(found)
            self._folder.forget_chunks(c for c in new if c.id in found.keys() - fitting)
            self.reused |= fitting

    def _look_for(self, chunks: Sequence[Chunk]) -> None:
        """Take note of the chunks that other runs have done meanwhile."""
        before = set(self._done.results)
        try:
            self._done.look(chunks, theirs=True)
        except StorageRefused:
            raise
        except StorageError as error:
            self._warn_once(error)
        self.reused |= self._done.results.keys() - before

    def _render(self, chunks: Sequence[Chunk]) -> None:
        self._rendering = self._rendering_of(chunks)
        results = self._rendering.render()
        self._done.results.update((result.id, result) for result in results)

    def _rendering_of(self, chunks: Sequence[Chunk]) -> Rendering:
        return rendering(
            self._folder, chunks, self._adapter, self._rules, self._attempts, self._done.results,
            width=self._width, failures=self._failures, lease=self._lease,
        )  # fmt: skip
