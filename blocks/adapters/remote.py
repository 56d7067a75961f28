"""What adapters share that reach their workers by requests: limits, and the wait for a worker."""

from __future__ import annotations

import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from prefect.blocks.abstract import ObjectStorageBlock
from pydantic import Field, PrivateAttr

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.adapters.protocol import chunk_payload, command_payload
from prefect_renderfarm.blocks.chunks.render import ChunkRequest
from prefect_renderfarm.blocks.command import WorkerJob, WorkerResult
from prefect_renderfarm.blocks.errors import WorkerBusy, WorkerLost, WorkStopped

_POLL_SECONDS = 0.1
_FIRST_PAUSE_SECONDS = 1.0
_MIN_PAUSE_SECONDS = 0.1
_MAX_PAUSE_SECONDS = 30.0


class RateLimit:
    """Limits how many requests run at once and, unless None, how many begin per second."""

    def __init__(self, in_flight: int, per_second: float | None = None) -> None:
        self._slots = threading.BoundedSemaphore(in_flight)
        self._gap = 0.0 if per_second is None else 1 / per_second
        self._lock = threading.Lock()
        self._next = 0.0

    @contextmanager
    def slot(self, stop: threading.Event) -> Iterator[None]:
        """Wait for a slot, and hold it inside the block. Raises: WorkStopped, if `stop` is set."""
        stopped = WorkStopped("a request was not sent, because its job was stopped")
        while not self._slots.acquire(timeout=_POLL_SECONDS):
            if stop.is_set():
                raise stopped
        try:
            with self._lock:
                now = time.monotonic()
                begin = max(now, self._next)
                self._next = begin + self._gap
            if stop.wait(begin - now):
                raise stopped
            yield
        finally:
            self._slots.release()


class RemoteAdapter(WorkerAdapter, ABC):
    """An adapter that sends its workers one request per command or chunk, with `ask`."""

    max_in_flight: int = Field(
        default=50,
        ge=1,
        title="Most at once",
        description="Number of requests that a job may have in flight at once.",
    )
    requests_per_second: float | None = Field(
        default=None,
        gt=0,
        title="Requests per second",
        description="Number of requests that a job may begin in a second. Empty: unlimited.",
    )
    concurrency_limit: str | None = Field(
        default=None,
        title="Concurrency limit",
        description=(
            "A Prefect global concurrency limit of which each job holds a slot while it renders, "
            "so that jobs share a provider. Empty: none."
        ),
    )
    busy_wait: float = Field(
        default=300.0,
        ge=0,
        title="Longest wait for a busy worker",
        description=(
            "Seconds for which a request is repeated that is answered with 429 (too many "
            "requests). Such a request costs no attempt: nothing has begun."
        ),
    )
    timeout: float = Field(
        default=900.0,
        gt=0,
        title="Timeout",
        description="Longest time that a worker may take for a chunk, in seconds.",
    )

    needs_storage: ClassVar[bool] = True

    _limit: RateLimit = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Set up the limits."""
        super().model_post_init(context)
        self._limit = RateLimit(self.max_in_flight, self.requests_per_second)

    def default_concurrency(self) -> int:
        """Return how many requests may be in flight at once."""
        return self.max_in_flight

    def shared_limit(self) -> str | None:
        """Return the concurrency limit that jobs share."""
        return self.concurrency_limit

    def execute(self, job: WorkerJob) -> WorkerResult:
        """Run a command on a worker, in an empty folder."""
        with self._limit.slot(job.stop):
            timeout = job.timeout or self.timeout
            return self.ask_until_free(command_payload(job), job.name, timeout, job.stop)

    def render(
        self,
        request: ChunkRequest,
        storage: ObjectStorageBlock,
        stop: threading.Event,
        worker: str | None = None,
    ) -> WorkerResult:
        """Render a chunk on a worker. See `WorkerAdapter`."""
        with self._limit.slot(stop):
            name, timeout = f"chunk {request.chunk_id}", request.timeout or self.timeout
            return self.ask_until_free(chunk_payload(request), name, timeout, stop)

    def ask_until_free(
        self, payload: dict[str, Any], name: str, timeout: float, stop: threading.Event
    ) -> WorkerResult:
        """Call `ask` until a worker has room, for `busy_wait` seconds at most."""
        pause, give_up = _FIRST_PAUSE_SECONDS, time.monotonic() + self.busy_wait
        while True:
            try:
                return self.ask(payload, name, timeout, stop)
            except WorkerBusy as busy:
                wait = max(pause if busy.after is None else busy.after, _MIN_PAUSE_SECONDS)
                wait *= random.uniform(1, 1.25)  # noqa: S311 -- so that requests spread out
                if time.monotonic() + wait > give_up:
                    raise WorkerLost(
                        f"{busy}, for longer than the {self.busy_wait:g} s that busy_wait allows"
                    ) from None
            if stop.wait(wait):
                raise WorkStopped(f"{name}: not requested again, because its job was stopped")
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    @abstractmethod
    def ask(
        self, payload: dict[str, Any], name: str, timeout: float, stop: threading.Event
    ) -> WorkerResult:
        """Send a payload of `protocol` to a worker and wait for its answer.

        Args:
            payload: The payload.
            name: What the request is for, in errors.
            timeout: Longest time that it may take, in seconds.
            stop: Ends the waiting when set, within a second; then `WorkStopped` is raised.

        Raises:
            CommandTimeout: It took longer than allowed.
            WorkerBusy: No worker has room; nothing has begun.
            WorkerLost: There was no valid answer; another attempt may succeed.
            WorkerRefused: The worker does not accept our requests.
            WorkerError: The error in the worker's answer.
        """
