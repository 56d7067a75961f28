"""What travels between an adapter and a remote worker: a payload, and its answer.

    {"order": {…}}      a `ChunkRequest`: render a chunk, files through the storage
    {"command": {…}}    a `CommandRequest`: run a command in an empty folder

The answer is a `WorkerAnswer`, also for a failed command.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

import prefect_renderfarm.blocks.errors as errors
from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.chunks.render import ChunkRequest, naming_chunk_and_worker
from prefect_renderfarm.blocks.command import WorkerJob, WorkerResult
from prefect_renderfarm.blocks.errors import RenderFarmError, WorkerLost
from prefect_renderfarm.blocks.processes.masking import query_secrets

# AWS Lambda takes answers of up to 6 MB; people read less.
_TAIL_CHARACTERS = 16_000


class WorkerFailure(BaseModel):
    """Why a worker failed, though its command may have succeeded."""

    model_config = ConfigDict(frozen=True)

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


class WorkerAnswer(BaseModel):
    """How a command or a chunk's rendering ended."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    exit_code: int
    stdout: str = ""
    stderr: str = ""
    duration: float = 0.0
    worker: str = ""
    failure: WorkerFailure | None = None


class CommandRequest(BaseModel):
    """A command to run in an empty folder."""

    model_config = ConfigDict(frozen=True)

    command: str
    name: str = "command"
    environment: dict[str, str] = {}
    timeout: float | None = None


def chunk_payload(request: ChunkRequest) -> dict[str, Any]:
    """Return the payload that asks for a chunk."""
    return {"order": request.model_dump(mode="json")}


def command_payload(job: WorkerJob) -> dict[str, Any]:
    """Return the payload that asks for a command; the worker does not see the command's folder."""
    request = CommandRequest.model_validate(job, from_attributes=True)
    return {"command": request.model_dump(mode="json")}


def payload_secrets(payload: Mapping[str, Any]) -> list[str]:
    """Return what may be secret in a payload: the signature of a presigned URL of input files."""
    return query_secrets(str(payload.get("order", {}).get("assets") or ""))


def answer_payload(
    payload: Mapping[str, Any],
    adapter: WorkerAdapter,
    worker: str,
    stop: threading.Event | None = None,
) -> WorkerAnswer:
    """Do what a payload asks for, on this machine, and answer; workers call this.

    Args:
        payload: The payload.
        adapter: Runs commands here.
        worker: Name of this worker in reports.
        stop: Ends the command when set.

    Raises:
        ValueError: The payload is not valid.
    """
    stop = stop or threading.Event()
    try:
        if "order" in payload:
            request = ChunkRequest.model_validate(payload["order"])
            with naming_chunk_and_worker(request, worker):
                result = adapter.render(request, request.storage.open(), stop, worker)
        elif "command" in payload:
            result = _run(CommandRequest.model_validate(payload["command"]), adapter, stop)
        else:
            raise ValueError("the payload has neither an order nor a command")
    except ValidationError as error:
        # Without the values: they may be secret, and callers see the message.
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise ValueError(f"the payload does not fit this version: {'; '.join(faults)}") from None
    except RenderFarmError as error:
        return WorkerAnswer(exit_code=1, worker=worker, failure=WorkerFailure.of(error))
    return WorkerAnswer(
        exit_code=result.exit_code,
        stdout=result.stdout[-_TAIL_CHARACTERS:],
        stderr=result.stderr[-_TAIL_CHARACTERS:],
        duration=result.duration,
        worker=worker,
    )


def _run(request: CommandRequest, adapter: WorkerAdapter, stop: threading.Event) -> WorkerResult:
    with TemporaryDirectory(prefix="renderfarm-", ignore_cleanup_errors=True) as folder:
        return adapter.execute(WorkerJob(cwd=Path(folder), stop=stop, **request.model_dump()))


def parse_answer(answer: Any, name: str) -> WorkerResult:
    """Return the result in the parsed JSON of a worker's answer; `name` is for errors.

    Raises:
        WorkerError: What failed, of the class that it had on the worker.
        WorkerLost: It is not an answer of this protocol.
    """
    try:
        parsed = WorkerAnswer.model_validate(answer)
    except ValidationError:
        raise WorkerLost(
            f"{name}: the answer is not that of a worker: {str(answer)[:200]!r}"
        ) from None
    if parsed.failure is not None:
        raise parsed.failure.as_error()
    return WorkerResult(**parsed.model_dump(exclude={"failure"}))
