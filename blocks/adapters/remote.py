"""What adapters share that reach their workers by requests: limits, and the way they ask."""

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
from prefect_renderfarm.blocks.adapters.protocol import command_payload, order_payload
from prefect_renderfarm.blocks.chunks.request import ChunkRequest
from prefect_renderfarm.blocks.command import WorkerJob, WorkerResult
from prefect_renderfarm.blocks.errors import WorkerBusy, WorkerLost, WorkStopped

_POLL_SECONDS = 0.1


class RateLimit:
    """Lets so many requests begin a second, and so many be under way at once.

    Args:
        a_second: Requests that may begin in a second; None: any number.
        in_flight: Requests that may be under way at once; None: any number.
    """

    def __init__(self, a_second: float | None = None, in_flight: int | None = None) -> None:
        self._gap = 0.0 if a_second is None else 1 / a_second
        self._places = None if in_flight is None else threading.BoundedSemaphore(in_flight)
        self._lock = threading.Lock()
        self._next = 0.0

    @contextmanager
    def slot(self, stop: threading.Event) -> Iterator[None]:
        """Wait for a place, and hold it inside the block.

        Raises:
            WorkStopped: `stop` was set meanwhile.
        """
        while self._places is not None and not self._places.acquire(timeout=_POLL_SECONDS):
            _raise_if(stop)
        try:
            self._wait_for_turn(stop)
            yield
        finally:
            if self._places is not None:
                self._places.release()

    def _wait_for_turn(self, stop: threading.Event) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        if stop.wait(turn - now) or stop.is_set():
            _raise_if(stop)


def _raise_if(stop: threading.Event) -> None:
    if stop.is_set():
        raise WorkStopped("a request was not sent, because its job was stopped")


_FIRST_PAUSE_SECONDS = 1.0
_SHORTEST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 30.0


class RemoteAdapter(WorkerAdapter, ABC):
    """An adapter whose workers take one request a command or chunk. A subclass implements `ask`."""

    max_in_flight: int = Field(
        default=50,
        ge=1,
        title="Most at once",
        description="Requests that a job may have under way at once.",
    )
    requests_per_second: float | None = Field(
        default=None,
        gt=0,
        title="Requests a second",
        description="Requests that a job may begin in a second. Empty: any number.",
    )
    concurrency_limit: str | None = Field(
        default=None,
        title="Concurrency limit",
        description=(
            "A Prefect global concurrency limit of which each job takes a slot while it renders, "
            "so that jobs share a provider. Empty: none."
        ),
    )
    busy_wait: float = Field(
        default=300.0,
        ge=0,
        title="Longest wait for a busy worker",
        description=(
            "How long a request is repeated in all that is answered with 429 (too many requests), "
            "in seconds. It costs no attempt: nothing has begun."
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
        self._limit = RateLimit(self.requests_per_second, self.max_in_flight)

    def default_concurrency(self) -> int:
        """Return as many as may be under way at once."""
        return self.max_in_flight

    def shared_limit(self) -> str | None:
        """Return the concurrency limit that jobs share."""
        return self.concurrency_limit

    def execute(self, job: WorkerJob) -> WorkerResult:
        """Have a worker run a command, in an empty folder of its own."""
        with self._limit.slot(job.stop):
            timeout = job.timeout or self.timeout
            payload = command_payload(job)
            return self.ask_until_free(payload, job.name, timeout, job.stop)

    def render(
        self,
        order: ChunkRequest,
        storage: ObjectStorageBlock,
        stop: threading.Event,
        worker: str | None = None,
    ) -> WorkerResult:
        """Have a worker do a chunk's round. See `WorkerAdapter`."""
        with self._limit.slot(stop):
            timeout = order.timeout or self.timeout
            name = f"chunk {order.chunk_id}"
            return self.ask_until_free(order_payload(order), name, timeout, stop)

    def ask_until_free(
        self, payload: dict[str, Any], name: str, timeout: float, stop: threading.Event
    ) -> WorkerResult:
        """Ask as `ask` does, again and again while workers have no room, as long as `busy_wait`."""
        pause, give_up = _FIRST_PAUSE_SECONDS, time.monotonic() + self.busy_wait
        while True:
            try:
                return self.ask(payload, name, timeout, stop)
            except WorkerBusy as busy:
                wait = max(pause if busy.after is None else busy.after, _SHORTEST_PAUSE_SECONDS)
                wait *= random.uniform(1, 1.25)  # noqa: S311 -- so that not all come back at once
                if time.monotonic() + wait > give_up:
                    raise WorkerLost(
                        f"{busy}, for longer than the {self.busy_wait:g} s that busy_wait allows"
                    ) from None
            if stop.wait(wait):
                raise WorkStopped(f"{name}: not asked for again, because its job was stopped")
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    @abstractmethod
    def ask(
        self, payload: dict[str, Any], name: str, timeout: float, stop: threading.Event
    ) -> WorkerResult:
        """Send a payload to a worker and wait for its answer.

        Args:
            payload: See `worker_protocol`.
            name: What is asked for, in errors.
            timeout: Longest time that it may take, in seconds.
            stop: Ends the waiting when set, within a second; then `WorkStopped` is raised.

        Raises:
            CommandTimeout: It took longer than allowed.
            WorkerBusy: No worker has room; nothing has begun.
            WorkerLost: There was no answer, or not of a worker of ours; another attempt may do.
            WorkerRefused: The worker takes no requests from us.
            WorkerError: What the worker says that failed.
        """
