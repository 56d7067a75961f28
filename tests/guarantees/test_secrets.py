"""Secrets stay secret: marks in their places, good and failing jobs, and a search for marks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import lambda_server
import pytest
from farm_client import FarmClient
from http_samples import HttpWorker
from http_samples import working as http_working
from jobs import save_job, with_commands
from lambda_server import LambdaServer
from pool_samples import make_pool
from pool_samples import working as pool_working
from prefect.logging.handlers import APILogHandler
from prefect_aws.s3 import S3Bucket
from pydantic import SecretStr
from secret_samples import (
    CONTROL,
    TELLER,
    Evidence,
    Marks,
    all_logs,
    columns_with,
    environments,
    files_below,
    objects_of,
    telling,
)
from storage_samples import S3Server, serving

from prefect_renderfarm.blocks import (
    AwsLambdaAdapter,
    HttpAdapter,
    LocalAdapter,
    RemuxStitcher,
    WorkerAdapter,
    WorkerJob,
    WorkPoolAdapter,
)

PLACES = (
    "flow-run logs", "artifacts", "states and runs", "database", "exceptions", "logs here",
    "farm's output", "HTTP worker's output", "function's log", "objects in the storage",
    "job folders", "blocks as text",
)  # fmt: skip


@pytest.fixture(scope="module")
def own_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Start an S3 server whose secret no other test has given to the farm on purpose."""
    with serving(tmp_path_factory.mktemp("s3"), f"s3cret-{uuid4().hex}") as server:
        yield server


@pytest.fixture(scope="module")
def evidence(
    api: FarmClient,
    own_s3: S3Server,
    functions: LambdaServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Evidence]:
    """Run good and failing jobs with marks in all places that take secrets."""
    folder, s3 = tmp_path_factory.mktemp("secrets"), own_s3
    marks = Marks(storage=s3.secret, function=lambda_server.SECRET)
    for name in ("told", "jobs"):
        (folder / name).mkdir()
    (folder / "teller.py").write_text(TELLER)
    found = Evidence(marks, folder)
    bucket = s3.new_bucket()
    with (
        pytest.MonkeyPatch.context() as patch,
        telling() as http,
        telling(folder / "certificate.pem") as https,
        (folder / "http.log").open("wb") as log,
    ):
        fetching = {
            "SSL_CERT_FILE": str(folder / "certificate.pem"),
            "RENDERFARM_URL_HOSTS": "localhost",
        }
        environment = fetching | {
            name: marks[f"{name} here"]
            for name in ("AWS_SECRET_ACCESS_KEY", "PREFECT_API_KEY", "MY_TOKEN", "RENDERFARM_TOKEN")
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        theirs = {name: marks[f"{name} of the pool"] for name in ("MY_TOKEN", "PREFECT_API_KEY")}
        role = s3.environment() | fetching | {"MY_TOKEN": marks["MY_TOKEN of the role"]}
        token = {"RENDERFARM_TOKEN": marks["token"], "MY_TOKEN": marks["MY_TOKEN of the worker"]}
        make_pool(api.farm, "process", "secrets")
        with (
            all_logs() as logs,
            http_working(s3.environment() | fetching | token, log) as worker,
            pool_working(api.farm, "process", "secrets", environment=theirs),
        ):
            url = f"{worker.url}/?code={marks['code in the URL']}"
            with ThreadPoolExecutor() as threads:
                for done in [
                    threads.submit(run_in_pool, found, bucket),
                    threads.submit(run_locally, found, bucket, s3, https),
                    threads.submit(run_functions, found, bucket, functions, role, https),
                    threads.submit(run_by_http, found, bucket, url, http, https, worker),
                ]:
                    done.result()
            read_server(found, api)
        found.places |= {
            "logs here": "\n".join(logs.lines).encode(),
            "farm's output": b"".join(log.read_bytes() for log in api.farm.state.glob("*.log")),
            "HTTP worker's output": (folder / "http.log").read_bytes(),
            "function's log": (functions.folder / "secrets.log").read_bytes(),
            "objects in the storage": objects_of(bucket, but="job.json"),
            "job folders": files_below(folder / "jobs", but="job.json"),
            "exceptions": "\n".join(found.errors).encode(),
            "job.json": files_below(folder / "jobs") + objects_of(bucket),
        }
        yield found


def local(marks: Marks) -> LocalAdapter:
    """Return an adapter with a secret for commands."""
    secret = {"LICENCE": marks["secret_environment"]}
    return LocalAdapter(environment={"SHOWN": CONTROL}, secret_environment=secret)


def run_locally(found: Evidence, bucket: S3Bucket, s3: S3Server, https: str) -> None:
    """Run jobs on this machine, with and without a storage."""
    adapter, marks = local(found.marks), found.marks
    found.render(found.job("good"), adapter)
    found.render(found.job("fails", code=3), adapter, fails=True)
    found.render(found.job("short", frames=3), adapter, fails=True)
    missing = with_commands(found.job("missing"), {0: "no-such-program"})
    found.render(missing, adapter, fails=True)
    found.render(found.job("stored"), adapter, storage=bucket)
    found.render(found.job("stored-fails", code=3), adapter, storage=bucket, fails=True)
    closed = bucket.model_copy(update={"credentials": s3.credentials(marks["wrong key"])})
    found.render(found.job("refused"), adapter, storage=closed, fails=True)
    url = f"{https}/404/{CONTROL}.json?X-Amz-Signature={marks['job URL']}"
    found.render(url, adapter, fails=True)
    assets = f"{https}/404/{CONTROL}.zip?X-Amz-Signature={marks['assetsUrl']}"
    found.render(found.job("assets", assets=assets), adapter, storage=bucket, fails=True)
    save_job(found.folder, found.job("odd", assets=assets), f"{CONTROL}.json")
    odd = found.folder / f"{CONTROL}.json"
    odd.write_text(odd.read_text().replace(assets, f"{assets}\\u200b"))
    found.render(str(odd), adapter, fails=True)
    found.fails(lambda: LocalAdapter(secret_environment=marks["secret of a wrong block"]))
    key = marks["key of a wrong block"]
    found.fails(lambda: AwsLambdaAdapter(function_name=CONTROL, credentials=key))


def run_by_http(
    found: Evidence, bucket: S3Bucket, url: str, http: str, https: str, worker: HttpWorker
) -> None:
    """Run jobs on an HTTP worker, and ask servers that show what they were sent."""
    marks = found.marks
    worker.wait_until_ready()
    adapter = HttpAdapter(url=url, token=SecretStr(marks["token"]))
    options = {"stitcher": RemuxStitcher(), "merge": True}
    film = found.folder / "jobs" / "film.mp4"
    found.render(found.job("http"), adapter, storage=bucket, output_file=film, **options)
    found.render(found.job("http-fails", code=3), adapter, storage=bucket, fails=True)
    assets = f"{https}/404/{CONTROL}.zip?X-Amz-Signature={marks['assetsUrl']}"
    job = found.job("http-assets", assets=assets)
    found.render(job, adapter, storage=bucket, fails=True)
    fields = {
        "header_name": "x-functions-key",
        "header_value": SecretStr(marks["header_value"]),
        "token": SecretStr(marks["token"]),
    }
    blocks: list[WorkerAdapter] = [adapter, local(marks)]
    for status in (200, 401, 500):
        address = f"{http}/{status}/{CONTROL}?code={marks['code in the URL']}"
        tells = HttpAdapter(url=address, health_path="", busy_wait=0, **fields)
        command = WorkerJob(command="true", name=CONTROL)
        found.fails(lambda tells=tells, command=command: tells.execute(command))
        blocks.append(tells)
    found.render(found.job("http-200", assets=assets), blocks[2], storage=bucket, fails=True)
    found.fails(lambda: HttpAdapter(url="ftp://worker", **fields))
    shown = [f"{block!r} {block} {block.model_dump()} {block.model_dump_json()}"
             for block in blocks]  # fmt: skip
    found.places["blocks as text"] = "\n".join(shown).encode()


def run_functions(
    found: Evidence, bucket: S3Bucket, functions: LambdaServer, role: dict[str, str], https: str
) -> None:
    """Run jobs in a function, and in one that fails and shows what it was sent."""
    adapter = functions.adapter(functions.function("secrets", role=role))
    found.render(found.job("lambda"), adapter, storage=bucket)
    found.render(found.job("lambda-fails", code=3), adapter, storage=bucket, fails=True)
    code = "def handler(event, context):\n    print(event)\n    raise OSError(str(event))\n"
    tells = functions.adapter(functions.function("telling", code=code))
    assets = f"{https}/404/{CONTROL}.zip?X-Amz-Signature={found.marks['assetsUrl']}"
    job = found.job("lambda-tells", assets=assets)
    found.render(job, tells, storage=bucket, fails=True)
    closed = functions.adapter("secrets", credentials=functions.credentials(found.marks["wrong"]))
    found.render(found.job("lambda-refused"), closed, storage=bucket, fails=True)


def run_in_pool(found: Evidence, bucket: S3Bucket) -> None:
    """Run jobs as flow runs on the farm, with saved blocks."""
    bucket.save("of-the-secrets", overwrite=True)
    local(found.marks).save("of-the-secrets", overwrite=True)
    adapter = WorkPoolAdapter(
        deployment="render-chunks/secrets",
        worker_adapter="local-adapter/of-the-secrets",
        poll_seconds=0.2,
    )
    job = found.job("pool", code=3)
    found.render(job, adapter, storage=bucket, fails=True)


def read_server(found: Evidence, api: FarmClient) -> None:
    """Read what the server's API shows of the runs, and its database."""
    names = {"flow_runs": {"name": {"like_": CONTROL}}, "limit": 200}
    runs = api._post("/flow_runs/filter", names)
    ids = {"flow_run_id": {"any_": [run["id"] for run in runs]}}

    def logs() -> list[Any]:
        found: list[Any] = []
        while page := api._post("/logs/filter", {"logs": ids, "offset": len(found), "limit": 200}):
            found += page
        return found

    APILogHandler().flush()
    without = [{key: value for key, value in run.items() if key != "parameters"} for run in runs]
    tasks = api._post("/task_runs/filter", {"task_runs": ids, "limit": 200})
    found.places |= {
        "flow-run logs": json.dumps(logs()).encode(),
        "artifacts": json.dumps(api._post("/artifacts/filter", {"artifacts": ids})).encode(),
        "states and runs": json.dumps([without, tasks]).encode(),
        "parameters": json.dumps([run["parameters"] for run in runs]).encode(),
    }
    found.database = api.farm.state / "prefect" / "prefect.db"
    files = found.database.parent.glob("prefect.db*")  # with what is not yet merged into it
    found.places["database"] = b"".join(file.read_bytes() for file in files)


# What Prefect stores because a person gave it as a parameter: the job's URL, and the job spec.
TYPED = {"job URL", "assetsUrl"}


@pytest.mark.parametrize("place", PLACES)
def test_no_secret_is_found(evidence: Evidence, place: str) -> None:
    """A mark that is no secret is found in a place, and no secret is."""
    text = evidence.places[place]
    assert CONTROL.encode() in text
    allowed = TYPED if place == "database" else set()
    assert evidence.marks.inside(text) - allowed == set()


def test_parameters_hold_what_was_typed(evidence: Evidence) -> None:
    """Prefect stores a job's URL, and a job spec, as the parameters that they are; nowhere else."""
    assert evidence.marks.inside(evidence.places["parameters"]) == TYPED
    for name in TYPED:
        columns = columns_with(evidence.database, evidence.marks[name])
        assert columns == {"flow_run.parameters"}, name
    assert evidence.marks.inside(evidence.places["job.json"]) == {"assetsUrl"}


def test_commands_see_only_their_own_secrets(evidence: Evidence) -> None:
    """A command sees what its adapter's secret_environment gives it, and no other secret."""
    told = environments(evidence.folder / "told")
    here = {"good", "fails", "short", "stored", "stored-fails", "pool"}
    remote = {"http", "http-fails", "lambda", "lambda-fails"}
    assert set(told) == here | remote
    for name, environment in told.items():
        seen = evidence.marks.inside(json.dumps(environment))
        assert seen == ({"secret_environment"} if name in here else set()), name
        assert (environment.get("SHOWN") == CONTROL) == (name in here), name
        assert environment["PATH"], name
