"""Chunks and commands as invocations of an AWS Lambda function.

The function speaks the protocol of `remote`, or that of Helios: it renders one chunk of a job spec,
and puts its file beside it.

    payload  {"jobPath": "s3://bucket/…/job.json", "chunkIndex": 0}
    answer   {"statusCode": 200, "body": {"exitCode": 0, "output": "…"}}

`body` may also be a string of JSON, as an API gateway wants it. Such a function writes no manifest:
after its answer, this side downloads the chunk's file from the storage, verifies and publishes it.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self

from botocore import exceptions as boto
from botocore.config import Config
from prefect.blocks.abstract import ObjectStorageBlock
from prefect_aws import AwsCredentials
from pydantic import Field, PrivateAttr

from prefect_renderfarm.blocks.adapters.remote import RemoteAdapter, parse_answer, payload_secrets
from prefect_renderfarm.blocks.chunks.render import (
    ChunkRequest,
    naming_chunk_and_worker,
    render_here,
)
from prefect_renderfarm.blocks.command import WorkerJob, WorkerResult
from prefect_renderfarm.blocks.errors import (
    ChunkFileError,
    CommandTimeout,
    FatalWorkerError,
    SetupError,
    StorageError,
    StorageRefused,
    WorkerBusy,
    WorkerError,
    WorkerLost,
    WorkerRefused,
)
from prefect_renderfarm.blocks.http.client import call_until_stopped
from prefect_renderfarm.blocks.processes.masking import NO_SECRETS, Mask
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.blocks.storage.job_store import JobStore

# A function that reaches its own time limit answers so; that answer takes a little longer.
_MARGIN_SECONDS = 30.0
_CONNECT_SECONDS = 10.0
_NAME = "adapter aws-lambda-adapter"
_LAST_LINES = 8
# A function that the kernel ends for lack of memory has often used a little less in the report.
_FULL = 0.95
# Errors with status 502 that only a person can fix begin so.
_LASTING = ("Invalid", "KMSAccessDenied", "KMSDisabled", "KMSNotFound")
_CREDENTIALS = "check the adapter's credentials"
_FIXES = {  # by status; Lambda API reference, "Common errors" and Invoke, "Errors"
    403: _CREDENTIALS,
    404: "check the function's name, qualifier and region",
}


class AwsLambdaAdapter(RemoteAdapter):
    """Render chunks in an AWS Lambda function, which publishes them in the storage.

    The function is the one of `deployments/lambda/`, or one that speaks Helios' protocol. The SDK
    never repeats an invocation: another attempt is the job's choice. AWS cannot cancel an
    invocation: a job that is stopped stops waiting at once, but what the function has begun runs,
    and is charged for, to its end or its time limit.

    Example:
        Load a saved adapter and render a job with it:
        ```python
        from prefect_aws.s3 import S3Bucket
        from prefect_renderfarm.blocks import AwsLambdaAdapter
        from prefect_renderfarm.flows import render_job

        adapter = AwsLambdaAdapter.load("BLOCK_NAME")
        render_job("s3://farm/film.json", adapter=adapter, storage=S3Bucket.load("farm"))
        ```
    """

    _block_type_name = "AWS Lambda Adapter"
    _block_type_slug = "aws-lambda-adapter"
    _description = "Render chunks in an AWS Lambda function."

    credentials: AwsCredentials = Field(default_factory=AwsCredentials, title="AWS credentials")
    """Credentials, region and endpoint for invoking the function. Empty: those of the machine that
    runs the flow."""
    function_name: str = Field(min_length=1, title="Function")
    """Name or ARN of the function."""
    qualifier: str | None = Field(default=None, title="Version or alias")
    """The version of the function to invoke. Empty: the latest one."""
    protocol: Literal["renderfarm", "helios"] = Field(default="renderfarm", title="Protocol")
    """The payload that the function understands: that of deployments/lambda, or that of a Helios
    function, which puts a chunk's file beside the job spec."""
    job_path: str = Field(default="s3://{bucket}/{key}", title="Path of the job")
    """The path of the job spec in the payload of a Helios function; {bucket} and {key} stand for
    its bucket and key in the storage."""
    timeout: float = Field(default=900.0, gt=0, title="Timeout")
    """The function's own time limit, in seconds; AWS allows up to 900."""

    _clients: dict[int, Any] = PrivateAttr(default_factory=dict)
    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    def check(self) -> None:
        """Ask AWS Lambda whether these credentials may invoke the function. See `WorkerAdapter`."""
        try:
            self._call("invoke", InvocationType="DryRun", Payload=b"{}")
        except WorkerError as error:
            raise SetupError(str(error)) from None

    def digest_inputs(self) -> dict[str, Any]:
        """Return the function's name and, if these credentials may read it, its code's hash."""
        try:
            code = self._call("get_function_configuration")["CodeSha256"]
        except WorkerRefused:  # lambda:GetFunctionConfiguration is not needed to render
            code = ""
        except WorkerError as error:
            raise SetupError(str(error)) from None
        return {"function": self.function, "code": code}

    @property
    def function(self) -> str:
        """The function's name, with its qualifier, for messages."""
        return f"{self.function_name}:{self.qualifier}" if self.qualifier else self.function_name

    @property
    def runs_commands(self) -> bool:  # type: ignore[override]
        """Whether it can run a single command: Helios' protocol knows chunks only."""
        return self.protocol == "renderfarm"

    def execute(self, job: WorkerJob) -> WorkerResult:
        """Run a command in the function, in an empty folder. See `WorkerAdapter`."""
        if self.protocol == "helios":
            raise WorkerRefused(
                f"{job.name}: function {self.function!r} speaks Helios' protocol and takes chunks "
                "of stored jobs only: give the job a storage, and a merge_adapter or a stitcher"
            )
        return super().execute(job)

    def render(
        self,
        request: ChunkRequest,
        storage: ObjectStorageBlock,
        stop: threading.Event,
        worker: str | None = None,
    ) -> WorkerResult:
        """Render a chunk in the function. See `WorkerAdapter`.

        The file of a Helios function is the object `output_file` beside the job spec; an older one
        is removed first. If the answer is lost, but the file is there, the chunk is done.
        """
        if self.protocol == "renderfarm":
            return super().render(request, storage, stop, worker)
        bucket = BucketStore(storage)
        folder = JobStore(bucket, request.key).root
        file_key, job_key = f"{folder}/{request.output_file}", bucket.absolute(f"{folder}/job.json")
        path = self.job_path.replace("{bucket}", bucket.bucket).replace("{key}", job_key)
        payload = {"jobPath": path, "chunkIndex": request.index}

        def invoke(job: WorkerJob) -> WorkerResult:
            bucket.delete([file_key])
            lost: WorkerError | None = None
            try:
                result = self.ask_until_free(payload, job.name, self.timeout, job.stop)
            except FatalWorkerError:
                raise
            except WorkerError as error:
                lost = error
                result = WorkerResult(exit_code=0, stdout=f"its answer was lost: {error}")
            try:
                if result.exit_code == 0:
                    bucket.download(file_key, job.cwd / request.output_file)
            except StorageRefused:
                raise
            except (StorageError, OSError) as error:
                raise lost or ChunkFileError(
                    f"{job.name}: its command succeeded, but its output file could not be "
                    f"downloaded: {error}; a Helios function has to put it beside the job spec"
                ) from None
            if lost is not None:
                run_log().warning("%s: done, but its answer was lost: %s", job.name, lost)
            return replace(result, worker=self.function)

        plain = request.model_copy(update={"assets": None})  # the function has them
        with naming_chunk_and_worker(request, worker):
            return render_here(plain, storage, invoke, stop, worker, stored_as=file_key)

    def ask(
        self, payload: dict[str, Any], name: str, timeout: float, stop: threading.Event
    ) -> WorkerResult:
        """Invoke the function, which keeps the time limit itself. See `RemoteAdapter`."""
        invoke = partial(
            self._call, "invoke", name, 1, InvocationType="RequestResponse", LogType="Tail",
            Payload=json.dumps(payload).encode(),
        )  # fmt: skip
        answer = call_until_stopped(invoke, stop, name)
        mask = Mask(payload_secrets(payload))  # errors quote what the function answers
        log = LogTail.decode(answer.get("LogResult"), mask)
        try:
            parsed = mask.parsed(json.loads(answer["Payload"]))
        except ValueError:
            shown = mask(answer["Payload"].decode(errors="replace"))[:200]
            raise WorkerLost(
                f"{name}: function {self.function!r} answered {shown!r}, which is no JSON{log}"
            ) from None
        if answer.get("FunctionError"):
            raise function_error(parsed, log, name, self.function)
        parse = parse_helios_answer if self.protocol == "helios" else parse_answer
        result = parse(parsed, name)
        return replace(result, billed_seconds=log.billed_seconds, memory_mb=log.memory_mb)

    def _call(self, operation: str, name: str = _NAME, attempts: int = 3, **parameters: Any) -> Any:
        """Call an operation on the function, a check up to 3 times. Raises: WorkerError."""
        if self.qualifier:
            parameters["Qualifier"] = self.qualifier
        try:
            call = getattr(self._client(attempts), operation)
            answer = call(FunctionName=self.function_name, **parameters)
            if "Payload" in answer:
                answer["Payload"] = answer["Payload"].read()
        except Exception as error:
            raise service_error(error, name, self.function) from None
        return answer

    def _client(self, attempts: int) -> Any:
        with self._lock:  # sessions of boto3 are not safe to use from several threads
            if attempts not in self._clients:
                config = Config(
                    connect_timeout=_CONNECT_SECONDS,
                    read_timeout=self.timeout + _MARGIN_SECONDS,
                    retries={"total_max_attempts": attempts, "mode": "standard"},
                    max_pool_connections=self.max_in_flight,
                    # Routers on the way forget a connection that is silent for minutes.
                    tcp_keepalive=True,
                )
                parameters = self.credentials.aws_client_parameters.get_params_override()
                parameters["config"] = parameters.get("config", Config()).merge(config)
                session = self.credentials.get_boto3_session()
                self._clients[attempts] = session.client("lambda", **parameters)
            return self._clients[attempts]


def parse_helios_answer(answer: Any, name: str) -> WorkerResult:
    """Return the result in a Helios function's answer, or raise the error that it stands for."""
    try:
        status = int(answer["statusCode"])
        body = answer.get("body")
        if status < 400:
            body = json.loads(body) if isinstance(body, str) else body
            output = str(body.get("output") or "")
            return WorkerResult(exit_code=int(body["exitCode"]), stdout=output)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise WorkerLost(
            f"{name}: the function's answer is none of Helios' protocol: {str(answer)[:200]!r}"
        ) from None
    kind = WorkerLost if status == 429 or status >= 500 else WorkerRefused
    raise kind(f"{name}: the function answered with status {status}: {str(body)[:500]}")


@dataclass(frozen=True)
class LogTail:
    """The last 4 KB of an invocation's log: the function's own lines, and what Lambda reports.

    Memory is in units of 1,048,576 bytes; `full` says whether nearly all of it was used. None means
    that the log does not say.
    """

    lines: tuple[str, ...] = ()
    billed_seconds: float | None = None
    memory_mb: int | None = None
    full: bool | None = None

    @classmethod
    def decode(cls, encoded: str | None, mask: Mask = NO_SECRETS) -> Self:
        """Return the log tail of an answer, which is Base64, without secrets; empty if none."""
        try:
            lines = mask(base64.b64decode(encoded or "").decode(errors="replace")).splitlines()
        except ValueError:
            return cls()
        report = next((line for line in reversed(lines) if line.startswith("REPORT ")), "")
        billed, memory, used = (
            int(found[1]) if (found := re.search(rf"{name}: (\d+)", report)) else None
            # Lambda Developer Guide, "Viewing CloudWatch logs for Python functions".
            for name in ("Billed Duration", "Memory Size", "Max Memory Used")
        )
        added = ("START ", "END ", "REPORT ", "INIT_")
        own = (line.rstrip() for line in lines if line.strip() and not line.startswith(added))
        full = None if memory is None or used is None else used >= _FULL * memory
        return cls(tuple(own), None if billed is None else billed / 1000, memory, full)

    def __str__(self) -> str:
        last = " / ".join(self.lines[-_LAST_LINES:])
        return f"; the end of its log: {last}" if last else ""


def function_error(payload: Any, log: LogTail, name: str, function: str) -> WorkerError:
    """Return the error for an invocation whose function failed, by its parsed answer and log."""
    given = payload if isinstance(payload, dict) else {"errorMessage": str(payload)}
    kind, message = str(given.get("errorType") or ""), str(given.get("errorMessage") or "")
    what = f"{name}: function {function!r}"
    if kind == "Sandbox.Timedout" or "timed out after" in message:
        return CommandTimeout(
            f"{what} ran into its time limit ({message}): give chunks fewer frames, or the "
            f"function a higher limit, up to 900 s{log}"
        )
    killed = "signal: killed" in message and log.full is not False
    if kind == "Runtime.OutOfMemory" or (kind == "Runtime.ExitError" and (killed or log.full)):
        size = f"of {log.memory_mb:,} MB" if log.memory_mb else "that it has"
        return WorkerError(
            f"{what} was ended, most likely because it used all the memory {size} ({message}): "
            f"give the function more memory{log}"
        )
    if kind == "Function.ResponseSizeTooLarge":
        return FatalWorkerError(
            f"{what} answered with more than the 6 MB that AWS Lambda takes ({message}): let it "
            "answer with the last lines of its output only"
        )
    return WorkerLost(f"{what} failed with {kind or 'an error'}: {message}{log}")


def service_error(error: Exception, name: str, function: str) -> WorkerError:
    """Return the error for what boto3 raised; fatal unless another attempt may succeed."""
    what = f"{name}: function {function!r}"
    if isinstance(error, boto.ClientError):
        answer: Any = error.response
        given = answer.get("Error", {})
        code = str(given.get("Code", ""))
        status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        shown = f"{code}: {given.get('Message') or f'HTTP status {status}'}"
        if status == 413 or code == "RequestTooLargeException":
            return FatalWorkerError(f"{what} cannot be asked, the request is too large ({shown})")
        if status == 429:  # AWS Lambda developer guide, "Invoke errors"
            return WorkerBusy(f"{what} is busy ({shown})")
        # 409: the function is being changed; Lambda API reference, Invoke, "Errors".
        if (status == 409 or status >= 500) and not code.startswith(_LASTING):
            return WorkerLost(f"{what} gave no answer ({shown})")
        fix = _FIXES.get(status, "check the function's configuration")
        if code.startswith("AccessDenied"):
            fix = "the credentials lack the permission lambda:InvokeFunction for it"
        return WorkerRefused(f"{what} cannot be invoked ({shown}): {fix}")
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError):
        return WorkerLost(f"{what} gave no answer: {error}")
    if isinstance(error, boto.BotoCoreError):
        return WorkerRefused(f"{what} cannot be invoked: {error}; {_CREDENTIALS}")
    return WorkerLost(f"{what} gave no answer: {type(error).__name__}: {error}")
