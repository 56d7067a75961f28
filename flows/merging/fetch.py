"""The finished chunks of a job, one after the other, as they come."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from prefect_renderfarm.blocks.errors import (
    AssemblyError,
    RenderStopped,
    StorageError,
    StorageRefused,
)
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.runtime.repeat import retry
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.spec import Chunk
from prefect_renderfarm.flows.state.job_state import JobState

_SECONDS_BETWEEN_QUESTIONS = 2.0
_POLL_SECONDS = 0.05  # of a job folder
_STORAGE_POLL_SECONDS = 0.3
_PARALLEL_FETCHES = 4  # from a storage; in a job folder files are only read


class ChunkFetcher:
    """Waits for the manifests of a job's chunks, and checks each file against its own.

    What is done is told by the manifests alone, so that whoever waits and whoever renders may both
    be stopped and started again at any moment. With a `timeout` of 0 s all chunks must be there;
    else `why_not` is asked every other second why no more will come.
    """

    def __init__(self, state: JobState, timeout: float, why_not: Callable[[], str | None]) -> None:
        self._state = state
        self._timeout = timeout
        self._why_not = why_not
        self._checked: dict[int, ChunkResult] = {}

    def all_here(self) -> bool:
        """Return whether every chunk counts as done; False if the storage does not say for now."""
        ask = partial(self._state.done, self._state.job.chunks)
        try:
            return len(retry(ask, "which chunks are done")) == len(self._state.job.chunks)
        except StorageError as error:
            if isinstance(error, StorageRefused) or not self._timeout:
                raise
            return False

    def __iter__(self) -> Iterator[ChunkResult]:
        """Give the chunks in the order of the film; the next are fetched and checked meanwhile.

        Raises: AssemblyError, if a file is not what was rendered; RenderStopped, if the next chunk
        will not come, or did not come for too long.
        """
        width = 1 if self._state.block is None else _PARALLEL_FETCHES
        stop = threading.Event()
        with ThreadPoolExecutor(width, thread_name_prefix="fetch") as ahead:
            left = (ahead.submit(self._next, chunk, stop) for chunk in self._state.job.chunks)
            try:
                coming = deque(itertools.islice(left, width))
                while coming:
                    result = coming.popleft().result()
                    coming.extend(itertools.islice(left, 1))
                    yield result
            finally:
                stop.set()

    def _next(self, chunk: Chunk, stop: threading.Event) -> ChunkResult:
        def sleep(seconds: float) -> None:
            if stop.wait(seconds):
                raise RenderStopped("the assembly was stopped")

        if chunk.id not in self._checked:
            self._wait(chunk, sleep)
            fetch = partial(self._state.fetch_chunk, chunk)
            try:
                self._checked[chunk.id] = retry(fetch, f"chunk {chunk.id}", sleep=sleep)
            except StorageError as error:
                raise AssemblyError(f"chunk {chunk.id}: {error}") from None
        return self._checked[chunk.id]

    def _wait(self, chunk: Chunk, sleep: Callable[[float], None]) -> None:
        poll_seconds = _POLL_SECONDS if self._state.block is None else _STORAGE_POLL_SECONDS
        since = asked = time.monotonic()
        while self._timeout and not self._is_there(chunk):
            now = time.monotonic()
            if now - asked > _SECONDS_BETWEEN_QUESTIONS:
                asked = now
                if reason := self._why_not():
                    raise RenderStopped(f"chunk {chunk.id} will not come: {reason}")
            if now - since > self._timeout:
                raise RenderStopped(f"chunk {chunk.id} did not come within {self._timeout:g} s")
            sleep(poll_seconds)

    def _is_there(self, chunk: Chunk) -> bool:
        try:
            return self._state.manifest(chunk) is not None
        except StorageError as error:  # who waits for a chunk waits for the storage, too
            if isinstance(error, StorageRefused):
                raise
            run_log().info("the storage does not say whether chunk %s is done: %s", chunk.id, error)
            return False
