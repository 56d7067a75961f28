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
from prefect_renderfarm.blocks.adapters.helios import helios_payload, helios_result, helios_round
from prefect_renderfarm.blocks.adapters.protocol import payload_secrets, result_of
from prefect_renderfarm.blocks.adapters.remote import RemoteAdapter
from prefect_renderfarm.blocks.chunks.request import ChunkRequest
from prefect_renderfarm.blocks.command import WorkerJob, WorkerResult
from prefect_renderfarm.blocks.errors import SetupError, WorkerLost, WorkerRefused
from prefect_renderfarm.blocks.http.client import call_until_stopped
from prefect_renderfarm.blocks.processes.masking import Mask

# A function that runs into its own time limit says so; for that we have to wait a little longer.
_MARGIN_SECONDS = 30.0
_CONNECT_SECONDS = 10.0
# For the check before a job, which renders nothing and may be repeated.
_CHECK_ATTEMPTS = 3


class AwsLambdaAdapter(RemoteAdapter):
    """Run chunks in an AWS Lambda function, whose files come home through the storage.

    The function is the one of `deployments/lambda/`, or one that speaks Helios' protocol. It is
    invoked and waited for, and never invoked again by the SDK: another attempt is the job's choice.
    AWS cannot take such an invocation back: a job that is stopped stops waiting at once, but what
    the function has begun runs, and is charged for, to its end or its time limit.

    Example:
        Load a saved adapter and have a job rendered:
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
            "Who invokes the function, in which region, at which endpoint. "
            "Empty: what the environment of the machine that runs the flow says."
        ),
    )
    function_name: str = Field(
        min_length=1,
        title="Function",
        description="Name or ARN of the function.",
    )
    qualifier: str | None = Field(
        default=None,
        title="Version or alias",
        description="Which version of the function to invoke. Empty: the latest one.",
    )
    protocol: Literal["renderfarm", "helios"] = Field(
        default="renderfarm",
        title="Protocol",
        description=(
            "What the function understands: the payload of deployments/lambda, or that of a Helios "
            "function, which puts a chunk's file beside the job spec."
        ),
    )
    job_path: str = Field(
        default="s3://{bucket}/{key}",
        title="Path of the job",
        description=(
            "How a Helios function is told where the job spec is; {bucket} and {key} stand for its "
            "place in the storage."
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
        """Ask AWS Lambda whether these credentials may invoke the function, without doing so.

        Raises:
            SetupError: They may not, there is no such function, or there is no answer.
        """
        request = self._request(InvocationType="DryRun", Payload=b"{}")
        try:
            with closing(self._new_client(_CHECK_ATTEMPTS)) as client:
                client.invoke(**request)
        except Exception as error:
            problem = service_error(error, f"adapter {self.get_block_type_slug()}", self.function)
            raise SetupError(str(problem)) from None

    def declared_environment(self) -> dict[str, Any]:
        """Return which code the function has, if these credentials may ask; else its name.

        Raises:
            SetupError: There is no answer; nobody can tell then which chunks are this code's.
        """
        try:
            with closing(self._new_client(_CHECK_ATTEMPTS)) as client:
                code = client.get_function_configuration(**self._request())["CodeSha256"]
        except Exception as error:
            problem = service_error(error, f"adapter {self.get_block_type_slug()}", self.function)
            if not isinstance(problem, WorkerRefused):
                raise SetupError(str(problem)) from None
            code = ""  # lambda:GetFunctionConfiguration is not needed to render
        return {"function": self.function, "code": code}

    @property
    def function(self) -> str:
        """The function's name, with its qualifier, for people."""
        return f"{self.function_name}:{self.qualifier}" if self.qualifier else self.function_name

    @property
    def runs_commands(self) -> bool:  # type: ignore[override]
        """Whether it can run a single command: Helios' protocol knows chunks only."""
        return self.protocol == "renderfarm"

    def execute(self, job: WorkerJob) -> WorkerResult:
        """Run a command in the function, in an empty folder of its own.

        Raises:
            WorkerRefused: The function speaks Helios' protocol, which knows chunks only.
        """
        if self.protocol == "helios":
            raise WorkerRefused(
                f"{job.name}: function {self.function!r} speaks Helios' protocol and takes chunks "
                "of stored jobs only: give the job a storage, and a merge_adapter or a stitcher"
            )
        return super().execute(job)

    def render(
        self,
        order: ChunkRequest,
        storage: ObjectStorageBlock,
        stop: threading.Event,
        worker: str | None = None,
    ) -> WorkerResult:
        """Have the function do a chunk's round. See `WorkerAdapter`."""
        if self.protocol == "renderfarm":
            return super().render(order, storage, stop, worker)

        def ask() -> WorkerResult:
            payload = helios_payload(order, storage, self.job_path)
            return self.ask_until_free(payload, f"chunk {order.chunk_id}", self.timeout, stop)

        with self._limit.slot(stop):
            return helios_round(order, storage, ask, worker or self.function)

    def ask(
        self, payload: dict[str, Any], name: str, timeout: float, stop: threading.Event
    ) -> WorkerResult:
        """Invoke the function and wait for its answer. See `RemoteAdapter`.

        Args:
            payload: See `worker_protocol` and `helios`.
            name: What is asked for, in errors.
            timeout: The function keeps it itself.
            stop: Ends the waiting when set, not the invocation.
        """
        request = self._request(
            InvocationType="RequestResponse", LogType="Tail", Payload=json.dumps(payload).encode()
        )

        def invoke() -> tuple[dict[str, Any], bytes]:
            try:
                answer = self._shared_client().invoke(**request)
                return answer, answer["Payload"].read()
            except Exception as error:
                raise service_error(error, name, self.function) from None

        answer, body = call_until_stopped(invoke, stop, name)
        mask = Mask(payload_secrets(payload))  # errors quote what the function says
        log = LogTail.of(answer.get("LogResult"), mask)
        try:
            said = mask.inside(json.loads(body))
        except ValueError:
            body = mask(body.decode(errors="replace")).encode()
            raise WorkerLost(
                f"{name}: function {self.function!r} answered {body[:200]!r}, which is no JSON{log}"
            ) from None
        if answer.get("FunctionError"):
            raise function_error(said, log, name, self.function)
        parse = helios_result if self.protocol == "helios" else result_of
        return dataclasses.replace(
            parse(said, name), billed_seconds=log.billed_seconds, memory_mb=log.memory_mb
        )

    def _request(self, **given: Any) -> dict[str, Any]:
        qualifier = {"Qualifier": self.qualifier} if self.qualifier else {}
        return {"FunctionName": self.function_name, **qualifier, **given}

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
            # Routers on the way forget a connection on which nothing is said for minutes.
            tcp_keepalive=True,
        )
        parameters["config"] = parameters.get("config", Config()).merge(config)
        session = self.credentials.get_boto3_session()
        return session.client("lambda", **parameters)
