"""How one attempt at a chunk goes: in the folder that all share, or through a storage."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from datetime import UTC, datetime

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.chunks.render import ChunkReader, measure
from prefect_renderfarm.blocks.chunks.request import ChunkRequest, StorageAddress
from prefect_renderfarm.blocks.command import WorkerJob, WorkerResult
from prefect_renderfarm.blocks.errors import (
    ChunkFileError,
    FatalWorkerError,
    StorageError,
    WorkerError,
)
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.fields import Chunk
from prefect_renderfarm.flows.state.job_state import JobState


class ChunkExecutor(ABC):
    """Attempts at the chunks of one job; safe to use from several threads.

    Args:
        state: The job.
        adapter: Where commands run.
        rules: What the stitcher asks of chunks.
        timeout: Seconds that an attempt may take; None: the adapter's own limit.
    """

    def __init__(
        self, state: JobState, adapter: WorkerAdapter, rules: ChunkRules, timeout: float | None
    ) -> None:
        self._state = state
        self._adapter = adapter
        self._rules = rules
        self._timeout = timeout

    def published(self, chunk: Chunk) -> ChunkResult | None:
        """Return the manifest of a chunk that another run has done meanwhile, if it is whole."""
        return None  # a worker with a storage looks itself

    def begin(self, chunk: Chunk) -> None:  # noqa: B027 -- for a storage nothing is to be done
        """Make room for an attempt."""

    @abstractmethod
    def attempt(self, chunk: Chunk, stop: threading.Event) -> ChunkResult:
        """Have the chunk's command run and its file checked.

        Args:
            chunk: The chunk.
            stop: Ends it when set.

        Raises:
            WorkerError: The command failed, or its file is not what was planned.
            StorageError: The storage did not answer.
        """

    def publish(self, result: ChunkResult) -> ChunkResult:
        """Let the chunk count as done, unless it does so already; return its manifest."""
        return result

    def clear(self, chunk: Chunk) -> None:  # noqa: B027 -- as above
        """Leave nothing half-written of an attempt that failed."""

    @abstractmethod
    def withdraw(self, chunk: Chunk) -> None:
        """Let a chunk count as done no more whose file does not fit the others."""


class _FolderExecutor(ChunkExecutor):
    """Attempts in the job folder, which whoever renders and whoever assembles both see."""

    def __init__(
        self, state: JobState, adapter: WorkerAdapter, rules: ChunkRules, timeout: float | None
    ) -> None:
        super().__init__(state, adapter, rules, timeout)
        self._reader = ChunkReader(rules.verify)

    def published(self, chunk: Chunk) -> ChunkResult | None:
        found = self._state.manifest(chunk)
        return None if found is None or self._state.faults([found]) else found

    def begin(self, chunk: Chunk) -> None:
        self._state.drop_chunk(chunk)

    def attempt(self, chunk: Chunk, stop: threading.Event) -> ChunkResult:
        started = time.monotonic()
        name = f"chunk {chunk.id}"
        result = self._adapter.execute(
            WorkerJob(
                command=chunk.command,
                cwd=self._state.path,
                name=name,
                chunk_id=chunk.id,
                output_file=chunk.output_file,
                timeout=self._timeout,
                stop=stop,
            )
        )
        result.require_success(name)
        done = measure(
            self._state.chunk_file(chunk),
            chunk_id=chunk.id,
            identity=self._state.identity(chunk),
            start_frame=chunk.start_frame,
            frame_count=chunk.frame_count,
            output_file=chunk.output_file,
            fps=self._state.job.metadata.rate,
            reader=self._reader,
            worker=result.worker,
            started=started,
        )
        return _with_cost(done, result)

    def publish(self, result: ChunkResult) -> ChunkResult:
        return self._state.publish(result.model_copy(update={"published_at": datetime.now(UTC)}))

    def clear(self, chunk: Chunk) -> None:
        self._state.drop_chunk(chunk)

    def withdraw(self, chunk: Chunk) -> None:
        self._state.drop_chunk(chunk)


class _StorageExecutor(ChunkExecutor):
    """Attempts by workers that share a storage only: the manifest there tells what is done."""

    def __init__(
        self, state: JobState, adapter: WorkerAdapter, rules: ChunkRules, timeout: float | None
    ) -> None:
        super().__init__(state, adapter, rules, timeout)
        self._places = {chunk.id: place for place, chunk in enumerate(state.job.chunks)}

    def attempt(self, chunk: Chunk, stop: threading.Event) -> ChunkResult:
        name = f"chunk {chunk.id}"
        assert self._state.block is not None  # noqa: S101 -- see executor_for
        cost = WorkerResult(exit_code=0)
        try:
            cost = self._adapter.render(self._request(chunk), self._state.block, stop)
            cost.require_success(name)
        except (WorkerError, StorageError) as error:
            done = None if isinstance(error, FatalWorkerError) else self._state.manifest(chunk)
            if done is None:
                raise
            run_log().warning("%s: done, though its answer was lost: %s", name, error)
        else:
            done = self._state.manifest(chunk)
        if done is None:
            raise ChunkFileError(
                f"{name}: its worker says that it is done, but its manifest is not in the "
                f"{self._state.name}: does the worker write to the same bucket?"
            )
        return _with_cost(done, cost)

    def _request(self, chunk: Chunk) -> ChunkRequest:
        """Return what a worker needs to know of a chunk."""
        job, block = self._state.job, self._state.block
        assert block is not None  # noqa: S101 -- see executor_for
        return ChunkRequest(
            job=job.title,
            key=job.key,
            chunk_id=chunk.id,
            identity=self._state.identity(chunk),
            index=self._places[chunk.id],
            start_frame=chunk.start_frame,
            frame_count=chunk.frame_count,
            output_file=chunk.output_file,
            command=chunk.command,
            fps=str(job.metadata.rate),
            verify=self._rules.verify,
            timeout=self._timeout,
            storage=StorageAddress.of(block),
            assets=self._state.assets,
        )

    def withdraw(self, chunk: Chunk) -> None:
        try:
            self._state.forget_chunks([chunk])
        except StorageError as error:
            run_log().warning("chunk %s: its manifest cannot be withdrawn: %s", chunk.id, error)


def _with_cost(done: ChunkResult, result: WorkerResult) -> ChunkResult:
    return done.model_copy(
        update={"billed_seconds": result.billed_seconds, "memory_mb": result.memory_mb}
    )


def executor_for(
    state: JobState, adapter: WorkerAdapter, rules: ChunkRules, timeout: float | None
) -> ChunkExecutor:
    """Return how chunks are rendered: through the storage, if the job has one."""
    kind = _FolderExecutor if state.block is None else _StorageExecutor
    return kind(state, adapter, rules, timeout)
