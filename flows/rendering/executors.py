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
    CommandFailed,
    CommandNotRunnable,
    FatalWorkerError,
    StorageError,
    WorkerError,
)
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.fields import Chunk
from prefect_renderfarm.flows.state.job_folder import JobFolder
from prefect_renderfarm.flows.state.stored_folder import StoredFolder


class ChunkExecutor(ABC):
    """Attempts at the chunks of one job; safe to use from several threads.

    Args:
        folder: The job's folder.
        adapter: Where commands run.
        rules: What the stitcher asks of chunks.
        timeout: Seconds that an attempt may take; None: the adapter's own limit.
    """

    def __init__(
        self,
        folder: JobFolder,
        adapter: WorkerAdapter,
        rules: ChunkRules,
        timeout: float | None,
    ) -> None:
        self._folder = folder
        self._adapter = adapter
        self._rules = rules
        self._timeout = timeout
        self._reader = ChunkReader(rules.verify)

    def published(self, chunk: Chunk) -> ChunkResult | None:
        """Return the manifest of a chunk that another run has done meanwhile, if it is whole."""
        return None  # a worker's round looks for itself

    @abstractmethod
    def begin(self, chunk: Chunk) -> None:
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

    @abstractmethod
    def publish(self, chunk: Chunk, result: ChunkResult) -> ChunkResult:
        """Let the chunk count as done, unless it does so already; return its manifest."""

    @abstractmethod
    def clear(self, chunk: Chunk) -> None:
        """Leave nothing half-written of an attempt that failed."""

    @abstractmethod
    def withdraw(self, chunk: Chunk) -> None:
        """Let a chunk count as done no more whose file does not fit the others."""


class _FolderExecutor(ChunkExecutor):
    """Attempts in the job folder, which whoever renders and whoever assembles both see."""

    def published(self, chunk: Chunk) -> ChunkResult | None:
        found = self._folder.manifest(chunk)
        return None if found is None or self._folder.faults([found]) else found

    def begin(self, chunk: Chunk) -> None:
        self._folder.drop_chunk(chunk)

    def attempt(self, chunk: Chunk, stop: threading.Event) -> ChunkResult:
        started = time.monotonic()
        name = f"chunk {chunk.id}"
        result = self._adapter.execute(
            WorkerJob(
                command=chunk.command,
                cwd=self._folder.path,
                name=name,
                chunk_id=chunk.id,
                output_file=chunk.output_file,
                timeout=self._timeout,
                stop=stop,
            )
        )
        require_success(result, name)
        done = measure(
            self._folder.chunk_file(chunk),
            chunk_id=chunk.id,
            identity=self._folder.identity(chunk),
            start_frame=chunk.start_frame,
            frame_count=chunk.frame_count,
            output_file=chunk.output_file,
            fps=self._folder.job.metadata.rate,
            reader=self._reader,
            worker=result.worker,
            started=started,
        )
        return _with_cost(done, result)

    def publish(self, chunk: Chunk, result: ChunkResult) -> ChunkResult:
        result = result.model_copy(update={"published_at": datetime.now(UTC)})
        self._folder.publish_chunk(chunk, result)
        return result

    def clear(self, chunk: Chunk) -> None:
        self._folder.drop_chunk(chunk)

    def withdraw(self, chunk: Chunk) -> None:
        self._folder.drop_chunk(chunk)


class _StorageExecutor(ChunkExecutor):
    """Attempts by workers that share a storage only: the manifest there tells what is done."""

    def __init__(
        self,
        folder: StoredFolder,
        adapter: WorkerAdapter,
        rules: ChunkRules,
        timeout: float | None,
    ) -> None:
        super().__init__(folder, adapter, rules, timeout)
        self._stored = folder
        self._places = {chunk.id: place for place, chunk in enumerate(folder.job.chunks)}

    def begin(self, chunk: Chunk) -> None:
        return

    def attempt(self, chunk: Chunk, stop: threading.Event) -> ChunkResult:
        name = f"chunk {chunk.id}"
        order, storage = self.order(chunk), self._stored.store.store.block
        cost = WorkerResult(exit_code=0)
        try:
            cost = self._adapter.render(order, storage, stop)
            require_success(cost, name)
        except (WorkerError, StorageError) as error:
            done = None if isinstance(error, FatalWorkerError) else self._manifest(chunk)
            if done is None:
                raise
            run_log().warning("%s: done, though its answer was lost: %s", name, error)
        else:
            done = self._manifest(chunk)
        if done is None:
            raise ChunkFileError(
                f"{name}: its worker says that it is done, but its manifest is not in the "
                f"{self._stored.store.store.name}: does the worker write to the same bucket?"
            )
        return _with_cost(done, cost)

    def order(self, chunk: Chunk) -> ChunkRequest:
        """Return what a worker is told of a chunk."""
        job = self._folder.job
        return ChunkRequest(
            job=job.title,
            key=job.key,
            chunk_id=chunk.id,
            identity=self._folder.identity(chunk),
            index=self._places[chunk.id],
            start_frame=chunk.start_frame,
            frame_count=chunk.frame_count,
            output_file=chunk.output_file,
            command=chunk.command,
            fps=str(job.metadata.rate),
            verify=self._rules.verify,
            timeout=self._timeout,
            storage=StorageAddress.of(self._stored.store.store.block),
            assets=self._folder.assets,
        )

    def publish(self, chunk: Chunk, result: ChunkResult) -> ChunkResult:
        return result

    def clear(self, chunk: Chunk) -> None:
        return  # if it was done and only its answer was lost, its manifest is worth keeping

    def withdraw(self, chunk: Chunk) -> None:
        try:
            self._folder.forget_chunks([chunk])
        except StorageError as error:
            run_log().warning("chunk %s: its manifest cannot be withdrawn: %s", chunk.id, error)

    def _manifest(self, chunk: Chunk) -> ChunkResult | None:
        return self._folder.manifest(chunk)


def _with_cost(done: ChunkResult, result: WorkerResult) -> ChunkResult:
    return done.model_copy(
        update={"billed_seconds": result.billed_seconds, "memory_mb": result.memory_mb}
    )


def executor_for(
    folder: JobFolder, adapter: WorkerAdapter, rules: ChunkRules, timeout: float | None
) -> ChunkExecutor:
    """Return how chunks are rendered: through the storage, if the job has one."""
    if isinstance(folder, StoredFolder):
        return _StorageExecutor(folder, adapter, rules, timeout)
    return _FolderExecutor(folder, adapter, rules, timeout)


def require_success(result: WorkerResult, name: str) -> None:
    """Raise unless a command ended with exit code 0.

    Raises:
        CommandNotRunnable: Its program is missing or cannot be executed.
        CommandFailed: It ended with any other code.
    """
    if result.exit_code == 0:
        return
    kind = CommandNotRunnable if result.exit_code in (126, 127) else CommandFailed
    words = result.last_lines()
    raise kind(
        f"{name}: its command ended with exit code {result.exit_code}"
        + (f": {' / '.join(words.splitlines())}" if words else "")
    )
