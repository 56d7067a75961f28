"""Chunks in AWS Lambda: the deployed handler under AWS's own runtime, and what can go wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from faulty_proxy import Answer, Fault
from jobs import small_job
from lambda_server import MEMORY_MB, LambdaServer, refusal
from media_samples import Recipe, frame_hashes, write_clip
from prefect_aws.s3 import S3Bucket
from storage_jobs import render
from storage_samples import S3Server, keys

from prefect_renderfarm.blocks import (
    AwsLambdaAdapter,
    SetupError,
    WorkerError,
    WorkerJob,
    WorkerRefused,
)
from prefect_renderfarm.blocks.storage.bucket import BucketStore

INVOKE = "/invocations"


@pytest.fixture
def adapter(functions: LambdaServer, worker_function: str) -> AwsLambdaAdapter:
    """Return an adapter for the deployed function; nothing goes wrong until a test says so."""
    functions.proxy.fail()
    return functions.adapter(worker_function)


@pytest.mark.long
@pytest.mark.usefixtures("api")
def test_job_in_functions(
    functions: LambdaServer, adapter: AwsLambdaAdapter, bucket: S3Bucket, tmp_path: Path
) -> None:
    """Every chunk is rendered by the function, charged for, and comes home; the film is right."""
    report = render(bucket, tmp_path / "lambda", adapter=adapter)
    here = render(bucket.model_copy(update={"bucket_folder": "here"}), tmp_path / "here")
    assert frame_hashes(tmp_path / "lambda" / "film.mp4") == frame_hashes(
        tmp_path / "here" / "film.mp4"
    )
    assert here.frames == report.frames == 18
    for chunk in report.chunks:
        assert chunk.worker.startswith("renderfarm-worker/")
        assert chunk.memory_mb == MEMORY_MB
        assert chunk.billed_seconds is not None
        assert 0.05 < chunk.billed_seconds < 30
    assert len(functions.invocations()) == 3


HELIOS = """
import json, os, shlex, subprocess, tempfile
import boto3

def handler(event, context):
    bucket, _, key = event["jobPath"].removeprefix("s3://").partition("/")
    s3 = boto3.client("s3")
    job = json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    chunk = job["chunks"][event["chunkIndex"]]
    with tempfile.TemporaryDirectory() as folder:
        output = os.path.join(folder, chunk["outputFile"])
        os.makedirs(os.path.dirname(output))
        done = subprocess.run(
            shlex.split(chunk["command"]), cwd=folder, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        if done.returncode == 0:
            s3.upload_file(output, bucket, key.rpartition("/")[0] + "/" + chunk["outputFile"])
    body = {"exitCode": done.returncode, "output": done.stdout}
    return {"statusCode": 200, "body": json.dumps(body) if event["chunkIndex"] else body}
"""


@pytest.fixture(scope="module")
def helios_function(functions: LambdaServer, s3: S3Server) -> str:
    """Make a function that knows Helios' protocol and nothing of this project."""
    return functions.function("helios-worker", HELIOS, s3.environment())


@pytest.mark.long
@pytest.mark.usefixtures("api")
def test_job_in_helios_functions(
    functions: LambdaServer, helios_function: str, s3: S3Server, tmp_path: Path
) -> None:
    """A Helios function's chunks come home, also if an answer is lost, and none is made twice."""
    block = s3.new_bucket("team/films")
    adapter = functions.adapter(helios_function, protocol="helios")
    functions.proxy.fail(None, Fault.DROP_AFTER, matching=INVOKE)
    report = render(block, tmp_path, adapter=adapter, concurrency=1)
    assert len(frame_hashes(tmp_path / "film.mp4")) == 18
    assert [chunk.worker for chunk in report.chunks] == ["helios-worker"] * 3
    assert [chunk.billed_seconds is None for chunk in report.chunks].count(True) == 1
    key = f"team/films/renderfarm/{report.key}/job.json"
    path = f"s3://{block.bucket_name}/{key}"
    asked = functions.invocations()
    assert {json.dumps(payload, sort_keys=True) for payload in asked} == {
        json.dumps({"chunkIndex": place, "jobPath": path}) for place in range(3)
    }
    assert len(asked) == 3
    assert all(f"team/films/{chunk.stored_as}" in keys(block) for chunk in report.chunks)


@pytest.mark.long
@pytest.mark.usefixtures("api")
def test_helios_function_that_fails(
    functions: LambdaServer, helios_function: str, bucket: S3Bucket, tmp_path: Path
) -> None:
    """A failed command's output is told; what an earlier run left is not taken for its file."""
    adapter = functions.adapter(helios_function, protocol="helios")
    functions.proxy.fail()
    job = small_job("--fail")
    left = f"renderfarm/{job.key}/{job.chunks[0].output_file}"
    good = write_clip(tmp_path / "good.mp4", 0, 6, Recipe())
    BucketStore(bucket).upload(good, left)
    with pytest.raises(WorkerError, match=r"exit code 1.*asked to fail"):
        render(bucket, tmp_path / "job", "--fail", adapter=adapter, concurrency=1)
    assert left not in keys(bucket)
    with pytest.raises(WorkerRefused, match=r"Helios' protocol.*storage"):
        adapter.execute(WorkerJob(command="true"))


@pytest.mark.long
@pytest.mark.usefixtures("api")
def test_job_in_spite_of_faults(
    functions: LambdaServer, adapter: AwsLambdaAdapter, bucket: S3Bucket, tmp_path: Path
) -> None:
    """Throttled twice, error 500, connection lost before and after the work: no chunk made twice.

    Throttling costs no attempt, and neither does the answer that is lost after the work: the
    manifest is found.
    """
    throttled = refusal(429, "TooManyRequestsException", "Rate exceeded.")
    faults = [throttled, throttled, Answer(500), Fault.DROP_BEFORE, Fault.DROP_AFTER]
    functions.proxy.fail(None, *faults, matching=INVOKE)  # first comes the check
    report = render(bucket, tmp_path, adapter=adapter, concurrency=1, retries=2, retry_delay=0)
    assert len(frame_hashes(tmp_path / "film.mp4")) == 18
    assert [chunk.attempts for chunk in report.chunks] == [3, 1, 1]
    assert [chunk.billed_seconds is None for chunk in report.chunks] == [True, False, False]
    assert len(functions.invocations()) == 7
    assert rendered(bucket) == 3


def test_code_of_a_function_is_its_environment(functions: LambdaServer) -> None:
    """Chunks of other code are other chunks; who may not ask for the code goes by the name."""
    adapters = [
        functions.adapter(functions.function(f"code-{number}", f"def handler(*_): {number}"))
        for number in (1, 2)
    ]
    codes = [adapter.digest_inputs()["code"] for adapter in adapters]
    assert all(codes)
    assert len(set(codes)) == 2
    refused = functions.credentials("wr0ng")
    stranger = functions.adapter("code-1", credentials=refused)
    assert stranger.digest_inputs() == {"function": "code-1", "code": ""}
    gone = functions.credentials()
    gone.aws_client_parameters.endpoint_url = "http://127.0.0.1:9"
    with pytest.raises(SetupError, match="Could not connect"):
        functions.adapter("code-1", credentials=gone).digest_inputs()


def rendered(block: S3Bucket) -> int:
    """Return how often a command ran: each leaves a log."""
    return len([key for key in keys(block) if key.endswith("/log.txt")])


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("trouble", ["credentials", "function", "permission", "region"])
def test_setup_is_checked_before_any_chunk(
    functions: LambdaServer,
    adapter: AwsLambdaAdapter,
    bucket: S3Bucket,
    tmp_path: Path,
    trouble: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wrong credentials, function, permission or no region: one line, and nothing is invoked."""
    words = {
        "credentials": "InvalidSignatureException.*check the adapter's credentials",
        "function": "'no-such:live' cannot be .*ResourceNotFound.*check the function's name",
        "permission": "AccessDenied.*lack the permission",
        "region": "You must specify a region.*check the adapter's credentials",
    }
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    changed = {
        "credentials": {"credentials": functions.credentials("wr0ng")},
        "function": {"function_name": "no-such", "qualifier": "live"},
        "permission": {},
        "region": {"credentials": functions.credentials().model_copy(update={"region_name": None})},
    }
    adapter = AwsLambdaAdapter.model_validate(dict(adapter) | changed[trouble])
    functions.proxy.fail(
        *([refusal(403, "AccessDeniedException", "No.")] if trouble == "permission" else [])
    )
    with pytest.raises(SetupError, match=words[trouble]) as caught:
        render(bucket, tmp_path / "job", adapter=adapter)
    assert "\n" not in str(caught.value)
    assert "wr0ng" not in str(caught.value)
    assert functions.invocations() == []


@pytest.mark.usefixtures("api")
def test_saved_adapter_works(functions: LambdaServer, adapter: AwsLambdaAdapter) -> None:
    """An adapter that was saved, with its credentials, invokes the function as before."""
    adapter.save("cloud", overwrite=True)
    loaded = AwsLambdaAdapter.load("cloud")
    assert isinstance(loaded, AwsLambdaAdapter)
    result = loaded.execute(WorkerJob(command="echo 'made there'", name="chunk 4"))
    assert (result.exit_code, result.stdout, result.memory_mb) == (0, "made there", MEMORY_MB)
    assert "s3cret" not in repr(loaded)
