"""Chunks and commands as invocations of an AWS Lambda function."""

from __future__ import annotations

import dataclasses
import json
import threading
from contextlib import closing
from typing import Any, ClassVar, Literal

from botocore.config import Config
from prefect.blocks.abstract import ObjectStorageBlock
from prefect_aws import AwsCredentials
from pydantic import Field, PrivateAttr

from prefect_renderfarm.blocks.adapters.aws_lambda_errors import (
    LogTail,
    function_error,
    service_error,
)
from prefect_renderfarm.blocks.adapters.helios import (
    helios_payload,
    parse_helios_answer,
    render_by_helios,
)
from prefect_renderfarm.blocks.adapters.protocol import parse_answer, payload_secrets
from prefect_renderfarm.blocks.adapters.remote import RemoteAdapter
from prefect_renderfarm.blocks.chunks.render import ChunkRequest
from prefect_renderfarm.blocks.command import WorkerJob, WorkerResult
from prefect_renderfarm.blocks.errors import SetupError, WorkerError, WorkerLost, WorkerRefused
from prefect_renderfarm.blocks.http.client import call_until_stopped
from prefect_renderfarm.blocks.processes.masking import Mask

# A function that reaches its own time limit answers so; that answer takes a little longer.
_MARGIN_SECONDS = 30.0
_CONNECT_SECONDS = 10.0
# For checks before a job, which render nothing and may be repeated.
_CHECK_ATTEMPTS = 3


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

    _block_type_name: ClassVar[str | None] = "AWS Lambda Adapter"
    _block_type_slug: ClassVar[str | None] = "aws-lambda-adapter"
    _description: ClassVar[str | None] = "Render chunks in an AWS Lambda function."

    credentials: AwsCredentials = Field(
        default_factory=AwsCredentials,
        title="AWS credentials",
        description=(
            "Credentials, region and endpoint for invoking the function. Empty: those of the "
            "machine that runs the flow."
        ),
    )
    function_name: str = Field(
        min_length=1, title="Function", description="Name or ARN of the function."
    )
    qualifier: str | None = Field(
        default=None,
        title="Version or alias",
        description="The version of the function to invoke. Empty: the latest one.",
    )
    protocol: Literal["renderfarm", "helios"] = Field(
        default="renderfarm",
        title="Protocol",
        description=(
            "The payload that the function understands: that of deployments/lambda, or that of a "
            "Helios function, which puts a chunk's file beside the job spec."
        ),
    )
    job_path: str = Field(
        default="s3://{bucket}/{key}",
        title="Path of the job",
        description=(
            "The path of the job spec in the payload of a Helios function; {bucket} and {key} "
            "stand for its bucket and key in the storage."
        ),
    )
    timeout: float = Field(
        default=900.0,
        gt=0,
        title="Timeout",
        # AWS Lambda quotas, "Function timeout".
        description="The function's own time limit, in seconds; AWS allows up to 900.",
    )

    _client: Any = PrivateAttr(default=None)
    _client_lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    def check(self) -> None:
        """Ask AWS Lambda whether these credentials may invoke the function. See `WorkerAdapter`."""
        try:
            self._ask_service("invoke", InvocationType="DryRun", Payload=b"{}")
        except WorkerError as error:
            raise SetupError(str(error)) from None

    def digest_inputs(self) -> dict[str, Any]:
        """Return the function's name and, if these credentials may read it, its code's hash."""
        try:
            code = self._ask_service("get_function_configuration")["CodeSha256"]
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
        """Render a chunk in the function. See `WorkerAdapter`."""
        if self.protocol == "renderfarm":
            return super().render(request, storage, stop, worker)

        def ask() -> WorkerResult:
            payload = helios_payload(request, storage, self.job_path)
            return self.ask_until_free(payload, f"chunk {request.chunk_id}", self.timeout, stop)

        with self._limit.slot(stop):
            return render_by_helios(request, storage, ask, worker or self.function)

    def ask(
        self, payload: dict[str, Any], name: str, timeout: float, stop: threading.Event
    ) -> WorkerResult:
        """Invoke the function and wait for its answer. See `RemoteAdapter`.

        The function keeps the time limit itself; `stop` ends the waiting, not the invocation.
        """

        def invoke() -> tuple[dict[str, Any], bytes]:
            try:
                answer = self._shared_client().invoke(
                    **self._function_parameters,
                    InvocationType="RequestResponse",
                    LogType="Tail",
                    Payload=json.dumps(payload).encode(),
                )
                return answer, answer["Payload"].read()
            except Exception as error:
                raise service_error(error, name, self.function) from None

        answer, body = call_until_stopped(invoke, stop, name)
        mask = Mask(payload_secrets(payload))  # errors quote what the function answers
        log = LogTail.decode(answer.get("LogResult"), mask)
        try:
            parsed = mask.parsed(json.loads(body))
        except ValueError:
            shown = mask(body.decode(errors="replace"))[:200]
            raise WorkerLost(
                f"{name}: function {self.function!r} answered {shown!r}, which is no JSON{log}"
            ) from None
        if answer.get("FunctionError"):
            raise function_error(parsed, log, name, self.function)
        parse = parse_helios_answer if self.protocol == "helios" else parse_answer
        return dataclasses.replace(
            parse(parsed, name), billed_seconds=log.billed_seconds, memory_mb=log.memory_mb
        )

    @property
    def _function_parameters(self) -> dict[str, str]:
        qualifier = {"Qualifier": self.qualifier} if self.qualifier else {}
        return {"FunctionName": self.function_name, **qualifier}

    def _ask_service(self, operation: str, **parameters: Any) -> Any:
        """Call an operation of AWS Lambda that may be repeated. Raises: WorkerError."""
        try:
            with closing(self._new_client(_CHECK_ATTEMPTS)) as client:
                return getattr(client, operation)(**self._function_parameters, **parameters)
        except Exception as error:
            name = f"adapter {self.get_block_type_slug()}"
            raise service_error(error, name, self.function) from None

    def _shared_client(self) -> Any:
        with self._client_lock:
            if self._client is None:
                self._client = self._new_client(1)
            return self._client

    def _new_client(self, attempts: int) -> Any:
        parameters = self.credentials.aws_client_parameters.get_params_override()
        config = Config(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=self.timeout + _MARGIN_SECONDS,
            retries={"total_max_attempts": attempts, "mode": "standard"},
            max_pool_connections=self.max_in_flight,
            # Routers on the way forget a connection that is silent for minutes.
            tcp_keepalive=True,
        )
        parameters["config"] = parameters.get("config", Config()).merge(config)
        session = self.credentials.get_boto3_session()
        return session.client("lambda", **parameters)
