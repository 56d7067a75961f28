"""What the Lambda adapter makes of answers, logs and errors, with a made-up client."""

from __future__ import annotations

import base64
import io
import json
import threading
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoRegionError,
    ReadTimeoutError,
)

from prefect_renderfarm.blocks import (
    AwsLambdaAdapter,
    CommandTimeout,
    FatalWorkerError,
    WorkerError,
    WorkerJob,
    WorkerLost,
    WorkerRefused,
)
from prefect_renderfarm.blocks.adapters.aws_lambda import (
    LogTail,
    function_error,
    parse_helios_answer,
    service_error,
)
from prefect_renderfarm.blocks.errors import WorkerBusy

SIGNATURE = "0123456789abcdef"
URL = f"https://assets.example.com/in.zip?X-Amz-Signature={SIGNATURE}"
PAYLOAD = {"order": {"assets": URL}}
REPORT = (
    "REPORT RequestId: 8f5\tDuration: 1233.51 ms\tBilled Duration: 2345 ms\t"
    "Memory Size: 1769 MB\tMax Memory Used: 512 MB\t\n"
)


class Client:
    """A client whose function answers what a test says."""

    def __init__(self, body: Any, log: str = "", error: str | None = None) -> None:
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.log = log
        self.error = error
        self.requests: list[dict[str, Any]] = []

    def invoke(self, **request: Any) -> dict[str, Any]:
        """Answer an invocation."""
        self.requests.append(request)
        answer = {"Payload": io.BytesIO(self.body), "LogResult": encoded(self.log)}
        return answer | ({"FunctionError": self.error} if self.error else {})


def encoded(log: str) -> str:
    """Return a log as it comes in an answer."""
    return base64.b64encode(log.encode()).decode()


def ask(client: Client, **fields: Any) -> Any:
    """Invoke a function that has been given the URL of input files, with a secret in it."""
    adapter = AwsLambdaAdapter(function_name="worker", **fields)
    adapter._clients = {1: client}
    return adapter.ask(PAYLOAD, "chunk 3", 60.0, threading.Event())


def test_secrets_in_lists_and_logs_are_masked() -> None:
    """A function that shows what it was sent, in whatever form, gets no secret into an error."""
    failed = {"errorMessage": ["a", [{"got": URL}]]}
    for client, shown in (
        (Client(failed, log=f"got {URL}\n", error="Unhandled"), "'got': 'https"),
        (Client([URL, {URL: 1}]), "not that of a worker"),
        (Client(URL.encode(), log=f"got {URL}\n"), "which is no JSON; the end of its log: got"),
    ):
        with pytest.raises(WorkerLost) as caught:
            ask(client)
        message = str(caught.value)
        assert shown in message
        assert SIGNATURE not in message
        assert "X-Amz-Signature=***" in message


def test_output_is_masked() -> None:
    """What a command prints of the secret is masked, on both streams and in the worker's name."""
    said = f"got {URL}"
    result = ask(Client({"exit_code": 1, "stdout": said, "stderr": said, "worker": said}, REPORT))
    masked = said.replace(SIGNATURE, "***")
    assert (result.stdout, result.stderr, result.worker) == (masked, masked, masked)
    assert (result.exit_code, result.billed_seconds, result.memory_mb) == (1, 2.345, 1769)


def test_request_of_an_invocation() -> None:
    """The function is waited for, its log asked for, and its version named if there is one."""
    client = Client({"exit_code": 0})
    ask(client)
    ask(client, qualifier="live")
    first, second = client.requests
    assert json.loads(first.pop("Payload")) == PAYLOAD
    assert first == {
        "FunctionName": "worker", "InvocationType": "RequestResponse", "LogType": "Tail",
    }  # fmt: skip
    assert second["Qualifier"] == "live"


def test_helios_functions_take_no_commands() -> None:
    """Their protocol knows chunks only."""
    adapter = AwsLambdaAdapter(function_name="worker", qualifier="live", protocol="helios")
    assert not adapter.runs_commands
    with pytest.raises(WorkerRefused, match="merge: function 'worker:live' speaks Helios"):
        adapter.execute(WorkerJob(command="x", name="merge"))
    result = ask(
        Client({"statusCode": 200, "body": '{"exitCode": 3, "output": "o"}'}), protocol="helios"
    )
    assert (result.exit_code, result.stdout) == (3, "o")


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ({"statusCode": 503, "body": "busy"}, WorkerLost, "status 503: busy"),
        ({"statusCode": 500}, WorkerLost, "status 500"),
        ({"statusCode": 499}, WorkerRefused, "status 499"),
        ({"statusCode": 429}, WorkerLost, "status 429"),
        ({"statusCode": 400}, WorkerRefused, "status 400"),
        ({"statusCode": 404, "body": "no such job"}, WorkerRefused, "404: no such job"),
        ({"statusCode": 200, "body": "done"}, WorkerLost, "none of Helios' protocol"),
        ({"exitCode": 0}, WorkerLost, "none of Helios' protocol"),
        ("fine", WorkerLost, "none of Helios' protocol"),
    ],
)
def test_answers_of_helios_functions(answer: Any, kind: type[WorkerError], words: str) -> None:
    """What is not a result is told apart by its status."""
    with pytest.raises(WorkerError, match=words) as caught:
        parse_helios_answer(answer, "chunk 1")
    assert type(caught.value) is kind


def test_log_of_an_invocation() -> None:
    """The REPORT line tells the cost; a log that is cut or missing tells nothing."""
    text = (
        "d\nINIT_START x\nSTART RequestId: 8f5 Version: $LATEST\n  frame 1\n\nframe 2  \n"
        f"END RequestId: 8f5\n{REPORT}"
    )
    log = LogTail.decode(encoded(text))
    assert log == LogTail(("d", "  frame 1", "frame 2"), 2.345, 1769, full=False)
    assert str(log) == "; the end of its log: d /   frame 1 / frame 2"
    for nothing in (None, "", "%", "a"):
        assert LogTail.decode(nothing) == LogTail()
    assert str(LogTail()) == ""
    assert str(LogTail(tuple("abcdefghij"))).endswith(": c / d / e / f / g / h / i / j")


@pytest.mark.parametrize(
    ("memory", "used", "full"),
    [(100, 95, True), (100, 94, False), (100, None, None), (None, 94, None), (None, None, None)],
)
def test_full_memory(memory: int | None, used: int | None, full: bool | None) -> None:
    """A function that used nearly all its memory has most likely been ended for it."""
    parts = {"Memory Size": memory, "Max Memory Used": used}
    told = "\t".join(f"{name}: {value} MB" for name, value in parts.items() if value is not None)
    assert LogTail.decode(encoded(f"REPORT RequestId: 8f5\t{told}\n")).full is full


KILLED = "RequestId: 1 Error: Runtime exited with error: signal: killed"
EXITED = "RequestId: 1 Error: Runtime exited with error: exit status 3"


@pytest.mark.parametrize(
    ("payload", "log", "kind", "words"),
    [
        ({"errorType": "Sandbox.Timedout"}, LogTail(), CommandTimeout, "fewer frames"),
        ({"errorMessage": "Task timed out after 3 s"}, LogTail(), CommandTimeout, "time limit"),
        ({"errorType": "Runtime.OutOfMemory"}, LogTail(), WorkerError, "memory that it has"),
        ({"errorType": "Runtime.ExitError", "errorMessage": KILLED}, LogTail(), WorkerError,
         "more memory"),
        ({"errorType": "Runtime.ExitError", "errorMessage": KILLED},
         LogTail((), 1.0, 1769, full=False), WorkerLost, "signal: killed"),
        ({"errorType": "Runtime.ExitError", "errorMessage": EXITED},
         LogTail((), 1.0, 1769, full=True), WorkerError, "memory of 1,769 MB"),
        ({"errorType": "Runtime.ExitError", "errorMessage": EXITED}, LogTail(), WorkerLost,
         "Runtime.ExitError"),
        ({"errorType": "KeyError", "errorMessage": KILLED}, LogTail(("x",)), WorkerLost,
         "KeyError: .*; the end of its log: x"),
        ({"errorType": "Function.ResponseSizeTooLarge"}, LogTail(), FatalWorkerError, "6 MB"),
        ("no scene", LogTail(), WorkerLost, "failed with an error: no scene"),
    ],
)  # fmt: skip
def test_failures_of_functions(
    payload: Any, log: LogTail, kind: type[WorkerError], words: str
) -> None:
    """How a function failed is told by type, in its own words."""
    error = function_error(payload, log, "chunk 3", "worker:live")
    assert type(error) is kind
    assert str(error).startswith("chunk 3: function 'worker:live' ")
    with pytest.raises(kind, match=words):
        raise error


def refusal(status: int, code: str) -> ClientError:
    """Return an error of the service."""
    answer = {
        "Error": {"Code": code, "Message": "why"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(answer, "Invoke")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (refusal(429, "TooManyRequestsException"), WorkerBusy, "is busy .*why"),
        (refusal(409, "ResourceConflictException"), WorkerLost, "no answer .*why"),
        (refusal(500, "ServiceException"), WorkerLost, "no answer"),
        (refusal(502, "EC2ThrottledException"), WorkerLost, "no answer"),
        (refusal(502, "InvalidRuntimeException"), WorkerRefused, "check the function's config"),
        (refusal(404, "ResourceNotFoundException"), WorkerRefused, "check the function's name"),
        (refusal(403, "AccessDeniedException"), WorkerRefused, "lambda:InvokeFunction"),
        (refusal(403, "ExpiredTokenException"), WorkerRefused, "check the adapter's credentials"),
        (refusal(413, "Other"), FatalWorkerError, "too large"),
        (refusal(400, "RequestTooLargeException"), FatalWorkerError, "too large"),
        (ClientError({}, "Invoke"), WorkerRefused, "HTTP status 0"),
        (ReadTimeoutError(endpoint_url="x"), WorkerLost, "gave no answer: Read timeout"),
        (EndpointConnectionError(endpoint_url="x"), WorkerLost, "gave no answer: Could not"),
        (NoRegionError(), WorkerRefused, "cannot be invoked: .*check the adapter's credentials"),
        (OSError("broken"), WorkerLost, "gave no answer: OSError: broken"),
    ],
    ids=str,
)
def test_failures_of_the_service(error: Exception, kind: type[WorkerError], words: str) -> None:
    """What may pass is told from what will not."""
    told = service_error(error, "chunk 3", "worker")
    assert type(told) is kind
    with pytest.raises(kind, match=f"^chunk 3: function 'worker' .*{words}"):
        raise told
