"""How invocations of AWS Lambda fail, and how that is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from faulty_proxy import Answer, Fault
from lambda_server import MEMORY_MB, LambdaServer, refusal
from prefect_aws.s3 import S3Bucket

from prefect_renderfarm.blocks import (
    AwsLambdaAdapter,
    ChunkFileError,
    CommandTimeout,
    FatalWorkerError,
    WorkerError,
    WorkerJob,
    WorkerLost,
    WorkerRefused,
    WorkStopped,
)
from prefect_renderfarm.blocks.adapters import aws_lambda as aws_lambda_adapter
from prefect_renderfarm.blocks.chunks.render import ChunkRequest, StorageAddress
from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.blocks.storage.job_store import JobStore

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


@pytest.fixture(autouse=True)
def no_faults(functions: LambdaServer) -> Iterator[None]:
    """Let nothing go wrong but what a test says, in this test and in the next one."""
    functions.proxy.fail()
    yield
    functions.proxy.fail()
    functions.used_mb = 100


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


FULL_HELIOS = """
def handler(event, context):
    body = {"exitCode": event["chunkIndex"], "output": "0.mp4: No space left on device"}
    return {"statusCode": 200, "body": body}
"""


def test_full_disk_of_a_helios_function_is_not_ours(
    functions: LambdaServer, bucket: S3Bucket
) -> None:
    """A failed command is a result that blames no disk here; a missing file is told by chunk."""
    adapter = functions.adapter(functions.function("full", FULL_HELIOS), protocol="helios")
    store = JobStore(BucketStore(bucket), "film-0123456789ab")
    store.write("job.json", b"{}")
    request = ChunkRequest(
        job="film", key="film-0123456789ab", chunk_id=3, start_frame=0, frame_count=2, index=1,
        output_file="c/0.mp4", command="render", fps="24/1", storage=StorageAddress.of(bucket),
    )  # fmt: skip
    result = adapter.render(request, bucket, threading.Event())
    assert (result.exit_code, result.worker) == (1, "full")
    assert "No space left" in result.stdout
    asked = request.model_copy(update={"index": 0})
    with pytest.raises(ChunkFileError, match=r"^chunk 3: .*beside the job spec"):
        adapter.render(asked, bucket, threading.Event())
