"""How invocations of AWS Lambda fail, and how that is told."""

from __future__ import annotations

import base64
import threading
import time
from typing import Any

import pytest
from faulty_proxy import Answer, Fault
from lambda_server import MEMORY_MB, LambdaServer, refusal

from prefect_renderfarm.blocks import (
    AwsLambdaAdapter,
    CommandTimeout,
    FatalWorkerError,
    WorkerError,
    WorkerJob,
    WorkerLost,
    WorkerRefused,
    WorkStopped,
)
from prefect_renderfarm.blocks.adapters import aws_lambda as aws_lambda_adapter
from prefect_renderfarm.blocks.adapters.aws_lambda_errors import LogTail
from prefect_renderfarm.blocks.adapters.helios import parse_helios_answer

FAULTY = """
import os, signal, sys, time

def handler(event, context):
    word = event["command"]["command"]
    print("about to", word)
    if word == "raise":
        raise KeyError("no scene")
    if word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "exit":
        os._exit(3)
    if word == "sleep":
        time.sleep(60)
    return "nothing of ours"
"""


@pytest.fixture(scope="module")
def faulty(functions: LambdaServer) -> AwsLambdaAdapter:
    """Return an adapter for a function that does what its command says, all of it wrong."""
    return functions.adapter(functions.function("faulty", FAULTY, timeout=2), busy_wait=0)


@pytest.mark.parametrize(
    ("command", "used", "kind", "words"),
    [
        ("raise", 100, WorkerLost, r"KeyError: 'no scene'.*log: about to raise /.*no scene"),
        ("exit", 100, WorkerLost, r"Runtime\.ExitError.*exit status 3.*log: about to exit"),
        ("kill", 100, WorkerLost, r"signal: killed.*log: about to kill"),
        ("kill", MEMORY_MB, WorkerError, r"memory of 512 MB.*more memory.*log: about to kill"),
        ("sleep", 100, CommandTimeout, r"time limit.*fewer frames.*log: about to sleep"),
        ("answer", 100, WorkerLost, r"nothing of ours"),
    ],
)
def test_failures_of_functions(
    functions: LambdaServer,
    faulty: AwsLambdaAdapter,
    command: str,
    used: int,
    kind: type[WorkerError],
    words: str,
) -> None:
    """How a function failed is told by type, in its own words, with the end of its log."""
    functions.proxy.fail()
    functions.used_mb = used
    with pytest.raises(WorkerError, match=f"(?s)chunk 4.*{words}") as caught:
        faulty.execute(WorkerJob(command=command, name="chunk 4"))
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (refusal(429, "TooManyRequestsException", "Rate exceeded."), WorkerLost, "busy.*exceeded"),
        (refusal(503, "ServiceException", "Try again."), WorkerLost, "ServiceException: Try again"),
        (refusal(409, "ResourceConflictException", "Pending."), WorkerLost, "Pending"),
        (refusal(502, "InvalidRuntimeException", "Old."), WorkerRefused, "configuration"),
        (refusal(403, "AccessDeniedException", "No."), WorkerRefused, "lambda:InvokeFunction"),
        (refusal(413, "RequestTooLargeException", "Big."), FatalWorkerError, "too large"),
        (Answer(500, b"<html>"), WorkerLost, "500"),
        (Answer(200, b"<html>"), WorkerLost, "no JSON"),
        (
            Answer(
                200,
                b'{"errorType": "Function.ResponseSizeTooLarge", "errorMessage": "exceeded 6 MB"}',
                (("X-Amz-Function-Error", "Unhandled"),),
            ),
            FatalWorkerError,
            "last lines",
        ),
        (Fault.DROP_BEFORE, WorkerLost, "gave no answer"),
        (Fault.DROP_AFTER, WorkerLost, "gave no answer"),
    ],
    ids=str,
)
def test_failures_of_the_service(
    functions: LambdaServer,
    faulty: AwsLambdaAdapter,
    fault: Answer | Fault,
    kind: type[WorkerError],
    words: str,
) -> None:
    """What may pass is told from what will not, and nothing is asked twice unasked."""
    functions.proxy.fail(fault)
    with pytest.raises(WorkerError, match=f"(?s)chunk 4.*{words}") as caught:
        faulty.execute(WorkerJob(command="answer", name="chunk 4"))
    assert type(caught.value) is kind
    assert len(functions.proxy.requests) == 1


def test_no_answer_in_time(
    functions: LambdaServer, faulty: AwsLambdaAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function of which nothing is heard for longer than it may run is given up."""
    monkeypatch.setattr(aws_lambda_adapter, "_MARGIN_SECONDS", 0.2)
    impatient = functions.adapter(faulty.function_name, timeout=0.3)
    functions.proxy.fail()
    with pytest.raises(WorkerLost, match="Read timeout"):
        impatient.execute(WorkerJob(command="sleep"))


def test_endpoint_that_is_not_there(functions: LambdaServer, faulty: AwsLambdaAdapter) -> None:
    """A connection that is refused may be made another time."""
    credentials = functions.credentials()
    credentials.aws_client_parameters.endpoint_url = "http://127.0.0.1:9"
    with pytest.raises(WorkerLost, match="Could not connect"):
        functions.adapter(faulty.function_name, credentials=credentials).execute(
            WorkerJob(command="answer")
        )


def test_stop_ends_the_waiting(functions: LambdaServer, faulty: AwsLambdaAdapter) -> None:
    """A stopped job does not wait for its functions, and says what goes on."""
    functions.proxy.fail()
    job = WorkerJob(command="sleep", name="chunk 4")
    threading.Timer(0.5, job.stop.set).start()
    started = time.monotonic()
    with pytest.raises(WorkStopped, match=r"chunk 4.*runs to its end"):
        faulty.execute(job)
    assert time.monotonic() - started < 1.5


def test_check_outlives_a_short_trouble(functions: LambdaServer, faulty: AwsLambdaAdapter) -> None:
    """The check renders nothing, so it may be repeated."""
    functions.proxy.fail(Answer(500), Fault.DROP_BEFORE)
    faulty.check()
    assert len(functions.proxy.requests) == 3


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ({"statusCode": 503, "body": "busy"}, WorkerLost, "status 503: busy"),
        ({"statusCode": 429}, WorkerLost, "status 429"),
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
        "d\nSTART RequestId: 8f5 Version: $LATEST\n  frame 1\n\nframe 2\nEND RequestId: 8f5\n"
        "REPORT RequestId: 8f5\tDuration: 1233.51 ms\tBilled Duration: 2345 ms\t"
        "Memory Size: 1769 MB\tMax Memory Used: 1769 MB\tInit Duration: 1111.11 ms\t\n"
    )
    log = LogTail.decode(base64.b64encode(text.encode()).decode())
    assert log == LogTail(("d", "  frame 1", "frame 2"), 2.345, 1769, 1769)
    assert log.full
    for nothing in (None, "", "%", "a"):
        assert LogTail.decode(nothing) == LogTail()
    assert LogTail().full is None
