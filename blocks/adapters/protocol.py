"""What travels between us and a worker that is reached by a request: a payload, and its answer.

A payload is JSON with one of two keys:

    {"order": {…}}      a `ChunkRequest`: do a chunk's round, files through the storage
    {"command": {…}}    a command line, with its name, variables and time limit: run it

The answer is a `WorkerAnswer`. A failed command is an answer, too; only a worker that could not
answer at all answers with an error of its own.
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
from prefect_renderfarm.blocks.chunks.render import naming_chunk_and_worker
from prefect_renderfarm.blocks.chunks.request import ChunkRequest
from prefect_renderfarm.blocks.command import WorkerJob, WorkerResult
from prefect_renderfarm.blocks.errors import RenderFarmError, WorkerLost
from prefect_renderfarm.blocks.processes.masking import query_secrets

# AWS Lambda takes answers of up to 6 MB; people read less.
_TAIL_CHARACTERS = 16_000


class WorkerFailure(BaseModel):
    """Why a worker's round failed, though its command may have ended well."""

    model_config = ConfigDict(frozen=True)

    kind: str
    message: str

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Return what there is to say of an error."""
        return cls(kind=type(error).__name__, message=str(error))

    def as_error(self) -> RenderFarmError:
        """Return the error, of the class that it had; a `WorkerLost` if that is none of ours."""
        kind = getattr(errors, self.kind, WorkerLost)
        if not (isinstance(kind, type) and issubclass(kind, RenderFarmError)):
            kind = WorkerLost
        return kind(self.message)


class WorkerAnswer(BaseModel):
    """How a command or a round ended."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    exit_code: int
    stdout: str = ""
    stderr: str = ""
    duration: float = 0.0
    worker: str = ""
    failure: WorkerFailure | None = None


class CommandOrder(BaseModel):
    """A command to run in an empty folder."""

    model_config = ConfigDict(frozen=True)

    command: str
    name: str = "command"
    environment: dict[str, str] = {}
    timeout: float | None = None


def order_payload(order: ChunkRequest) -> dict[str, Any]:
    """Return the payload that asks for a chunk's round."""
    return {"order": order.model_dump(mode="json")}


def command_payload(job: WorkerJob) -> dict[str, Any]:
    """Return the payload that asks for a command; the worker does not see its folder."""
    order = CommandOrder(
        command=job.command,
        name=job.name,
        environment=dict(job.environment),
        timeout=job.timeout,
    )
    return {"command": order.model_dump(mode="json")}


def payload_secrets(payload: Mapping[str, Any]) -> list[str]:
    """Return what may be secret in a payload: the signature of a presigned URL of input files."""
    return query_secrets(str(payload.get("order", {}).get("assets") or ""))


def answer_payload(
    payload: Mapping[str, Any],
    adapter: WorkerAdapter,
    worker: str,
    stop: threading.Event | None = None,
) -> WorkerAnswer:
    """Do what a payload asks for, on this machine; this is what a worker runs.

    Args:
        payload: See above.
        adapter: Runs commands here.
        worker: What this worker is called in reports.
        stop: Ends the command when set.

    Returns:
        The answer: errors of this project are part of it.

    Raises:
        ValueError: The payload is none of ours.
    """
    stop = stop or threading.Event()
    try:
        if "order" in payload:
            order = ChunkRequest.model_validate(payload["order"])
            with naming_chunk_and_worker(order, worker):
                result = adapter.render(order, order.storage.open(), stop, worker)
        elif "command" in payload:
            result = _run(CommandOrder.model_validate(payload["command"]), adapter, stop)
        else:
            raise ValueError("the payload has neither an order nor a command")
    except ValidationError as error:
        # Without the values: they may be secret, and callers see the message.
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise ValueError(f"the payload is none of this version's: {'; '.join(faults)}") from None
    except RenderFarmError as error:
        return WorkerAnswer(exit_code=1, worker=worker, failure=WorkerFailure.of(error))
    return WorkerAnswer(
        exit_code=result.exit_code,
        stdout=result.stdout[-_TAIL_CHARACTERS:],
        stderr=result.stderr[-_TAIL_CHARACTERS:],
        duration=result.duration,
        worker=worker,
    )


def result_of(answer: Any, name: str) -> WorkerResult:
    """Return what a worker answered.

    Args:
        answer: The parsed JSON of the answer.
        name: What was asked for, in errors.

    Raises:
        WorkerError: What failed, of the class that it had on the worker.
        WorkerLost: It is no answer of ours.
    """
    try:
        parsed = WorkerAnswer.model_validate(answer)
    except ValidationError:
        raise WorkerLost(f"{name}: the worker's answer is none: {str(answer)[:200]!r}") from None
    if parsed.failure is not None:
        raise parsed.failure.as_error()
    return WorkerResult(**parsed.model_dump(exclude={"failure"}))


def _run(order: CommandOrder, adapter: WorkerAdapter, stop: threading.Event) -> WorkerResult:
    with TemporaryDirectory(prefix="renderfarm-", ignore_cleanup_errors=True) as folder:
        return adapter.execute(
            WorkerJob(
                command=order.command,
                cwd=Path(folder),
                name=order.name,
                environment=order.environment,
                timeout=order.timeout,
                stop=stop,
            )
        )
