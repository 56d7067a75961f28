"""What adapters and remote workers share: payloads and answers, limits, the wait for a worker.

    {"order": {…}}      a `ChunkRequest`: render a chunk, files through the storage
    {"command": {…}}    a `CommandRequest`: run a command in an empty folder

The answer to such a payload is a `WorkerAnswer`, also for a failed command.
"""

from __future__ import annotations

import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

from prefect.blocks.abstract import ObjectStorageBlock
from pydantic import BaseModel, Field, PrivateAttr, ValidationError

import prefect_renderfarm.blocks.errors as errors
from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.chunks.render import ChunkRequest, naming_chunk_and_worker
from prefect_renderfarm.blocks.command import WorkerJob, WorkerResult
from prefect_renderfarm.blocks.errors import RenderFarmError, WorkerBusy, WorkerLost, WorkStopped
from prefect_renderfarm.blocks.processes.masking import query_secrets
from prefect_renderfarm.blocks.runtime.prefect_api import run_log

# AWS Lambda takes answers of up to 6 MB; people read less.
_TAIL_CHARACTERS = 16_000
_POLL_SECONDS = 0.1
_FIRST_PAUSE_SECONDS = 1.0
_MIN_PAUSE_SECONDS = 0.1
_MAX_PAUSE_SECONDS = 30.0


class WorkerFailure(BaseModel, frozen=True):
    """Why a worker failed, though its command may have succeeded."""

    kind: str
    message: str

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Return the failure that an error stands for."""
        return cls(kind=type(error).__name__, message=str(error))

    def as_error(self) -> RenderFarmError:
        """Return the error, of its class in `errors`; of any other class as a `WorkerLost`."""
        kind = getattr(errors, self.kind, None)
        if not (isinstance(kind, type) and issubclass(kind, RenderFarmError)):
            kind = WorkerLost
        return kind(self.message)


class WorkerAnswer(BaseModel, frozen=True):
    """How a command or a chunk's rendering ended."""

    exit_code: int
    stdout: str = ""
    stderr: str = ""
    duration: float = 0.0
    worker: str = ""
    manifest: str = ""
    failure: WorkerFailure | None = None


class CommandRequest(BaseModel, frozen=True):
    """A command to run in an empty folder."""

    command: str
    name: str = "command"
    environment: dict[str, str] = {}
    timeout: float | None = None


def payload_secrets(payload: Mapping[str, Any]) -> list[str]:
    """Return what may be secret in a payload: the signature of a presigned URL of input files."""
    return query_secrets(str(payload.get("order", {}).get("assets") or ""))


def answer_payload(
    payload: Mapping[str, Any],
    adapter: WorkerAdapter,
    worker: str,
    stop: threading.Event | None = None,
) -> WorkerAnswer:
    """Do on this machine, the worker's, what a payload asks for. Raises ValueError if it is none.

    The adapter runs commands; `worker` is this worker's name in reports.
    """
    stop = stop or threading.Event()
    try:
        if "order" in payload:
            request = ChunkRequest.model_validate(payload["order"])
            with naming_chunk_and_worker(request, worker):
                result = adapter.render(request, request.storage.open(), stop, worker)
        elif "command" in payload:
            command = CommandRequest.model_validate(payload["command"])
            with TemporaryDirectory(prefix="renderfarm-", ignore_cleanup_errors=True) as folder:
                job = WorkerJob(cwd=Path(folder), stop=stop, **command.model_dump())
                result = adapter.execute(job)
        else:
            raise ValueError("the payload has neither an order nor a command")
    except ValidationError as error:
        # Without the values: they may be secret, and callers see the message.
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise ValueError(f"the payload does not fit this version: {'; '.join(faults)}") from None
    except RenderFarmError as error:
        return WorkerAnswer(exit_code=1, worker=worker, failure=WorkerFailure.of(error))
    out, err = (text[-_TAIL_CHARACTERS:] for text in (result.stdout, result.stderr))
    told = replace(result, stdout=out, stderr=err, worker=worker)
    return WorkerAnswer.model_validate(told, from_attributes=True)


def parse_answer(answer: Any, name: str) -> WorkerResult:
    """Return the result in a worker's answer; raise the `WorkerError` in it, or WorkerLost."""
    try:
        parsed = WorkerAnswer.model_validate(answer)
    except ValidationError:
        raise WorkerLost(
            f"{name}: the answer is not that of a worker: {str(answer)[:200]!r}"
        ) from None
    if parsed.failure is not None:
        raise parsed.failure.as_error()
    return WorkerResult(**parsed.model_dump(exclude={"failure"}))


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

    max_in_flight: int = Field(default=50, ge=1, title="Most at once")
    """Number of requests that a job may have in flight at once."""
    requests_per_second: float | None = Field(default=None, gt=0, title="Requests per second")
    """Number of requests that a job may begin in a second. Empty: unlimited."""
    concurrency_limit: str | None = Field(default=None, title="Concurrency limit")
    """A Prefect global concurrency limit of which each job holds a slot while it renders, so that
    jobs share a provider. Empty: none."""
    busy_wait: float = Field(default=300.0, ge=0, title="Longest wait for a busy worker")
    """Seconds for which a request is repeated that is answered with 429 (too many requests), or for
    which no worker is there, such as one that is started again. It costs no attempt: nothing has
    begun."""
    timeout: float = Field(default=900.0, gt=0, title="Timeout")
    """Longest time that a worker may take for a chunk, in seconds."""

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
        command = CommandRequest.model_validate(job, from_attributes=True)
        payload, timeout = {"command": command.model_dump()}, job.timeout or self.timeout
        return self.ask_until_free(payload, job.name, timeout, job.stop)

    def render(
        self,
        request: ChunkRequest,
        storage: ObjectStorageBlock,
        stop: threading.Event,
        worker: str | None = None,
    ) -> WorkerResult:
        """Render a chunk on a worker. See `WorkerAdapter`."""
        payload, name = {"order": request.model_dump(mode="json")}, f"chunk {request.chunk_id}"
        return self.ask_until_free(payload, name, request.timeout or self.timeout, stop)

    def ask_until_free(
        self, payload: dict[str, Any], name: str, timeout: float, stop: threading.Event
    ) -> WorkerResult:
        """Call `ask` in a slot until a worker has room, for `busy_wait` seconds at most."""
        with self._limit.slot(stop):
            pause, give_up = _FIRST_PAUSE_SECONDS, time.monotonic() + self.busy_wait
            while True:
                try:
                    return self.ask(payload, name, timeout, stop)
                except WorkerBusy as busy:
                    wait = max(pause if busy.after is None else busy.after, _MIN_PAUSE_SECONDS)
                    wait *= random.uniform(1, 1.25)  # noqa: S311 -- so that requests spread out
                    if time.monotonic() + wait > give_up:
                        limit = f"the {self.busy_wait:g} s that busy_wait allows"
                        raise WorkerLost(f"{busy}, for longer than {limit}") from None
                    if pause < _MAX_PAUSE_SECONDS <= 2 * pause:  # once, after 15 s
                        run_log().warning("%s; it is asked for up to %g s", busy, self.busy_wait)
                if stop.wait(wait):
                    raise WorkStopped(f"{name}: not requested again, because its job was stopped")
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    @abstractmethod
    def ask(
        self, payload: dict[str, Any], name: str, timeout: float, stop: threading.Event
    ) -> WorkerResult:
        """Send a payload to a worker and wait for its answer.

        Raises the error in the answer, else CommandTimeout after `timeout` seconds, WorkStopped
        within a second of a `stop`, WorkerBusy if nothing has begun, WorkerLost or WorkerRefused if
        there is no valid answer. Errors name the request by `name`.
        """
