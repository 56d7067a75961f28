"""What adapters share that reach their workers by requests: limits, and the way they ask."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from prefect.blocks.abstract import ObjectStorageBlock
from pydantic import Field, PrivateAttr

from prefect_renderfarm.blocks.chunk_order import ChunkOrder
from prefect_renderfarm.blocks.rate_limit import RateLimit
from prefect_renderfarm.blocks.worker_adapter import WorkerAdapter
from prefect_renderfarm.blocks.worker_job import WorkerJob, WorkerResult
from prefect_renderfarm.blocks.worker_protocol import command_payload, order_payload


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
            return self.ask(command_payload(job), job.name, timeout, job.stop)

    def render(
        self,
        order: ChunkOrder,
        storage: ObjectStorageBlock,
        stop: threading.Event,
        worker: str | None = None,
    ) -> WorkerResult:
        """Have a worker do a chunk's round. See `WorkerAdapter`."""
        with self._limit.slot(stop):
            return self.ask(order_payload(order), f"chunk {order.chunk_id}", self.timeout, stop)

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
            WorkerLost: There was no answer, or not of a worker of ours; another attempt may do.
            WorkerRefused: The worker takes no requests from us.
            WorkerError: What the worker says that failed.
        """
