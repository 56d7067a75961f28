"""A real farm for the tests: one Prefect server, two pools, two workers, in their own processes."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from farm_client import FARM, PORT, FarmClient, free_port  # isort: skip -- before Prefect

from asset_samples import Travels, watched_travels
from faulty_proxy import FaultyProxy, faulty_proxy
from hostile_web import HostileWeb, hostile_web
from http_samples import HttpWorker, working
from lambda_server import LambdaServer, serving_functions
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect_aws.s3 import S3Bucket
from storage_samples import S3Server, serving

from prefect_renderfarm.deployments.farm import Farm


@pytest.fixture(scope="session", autouse=True)
def no_heartbeats() -> Iterator[None]:
    """Let no flow run of this process wait at its end for the thread of its heartbeats, up to 1 s.

    They come every 180 s, and no test is that long; runs of other processes have theirs.
    """
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


@pytest.fixture(scope="session")
def api() -> FarmClient:
    """Return the farm of all test processes, started by the first that wants it."""
    FARM.mkdir(exist_ok=True)
    with (FARM / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        farm = Farm(FARM)
        if not farm.running():
            farm.up(port=PORT)
    return FarmClient(farm)


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of a farm; put their files first, so that none is waited for at the end.

    Two files without a farm stand among the first: the second process tests them while the first
    one starts the farm.
    """
    for item in items:
        if {"api", "own_farm"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("farm")
    with_farm = {item.path for item in items if item.get_closest_marker("farm")}
    items.sort(key=lambda item: item.path not in with_farm)
    paths = list(dict.fromkeys(item.path for item in items))
    farm = [path for path in paths if path in with_farm]
    others = [path for path in paths if path not in with_farm]
    # Each of the two processes is given two files at first, in turn.
    order = [*farm[:1], *others[:1], *farm[1:2], *others[1:2]]
    items.sort(key=lambda item: order.index(item.path) if item.path in order else len(order))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the long tests for which a slow machine has no time: `.ci/run` says until when."""
    until = float(os.environ.get("RENDERFARM_TESTS_UNTIL", "inf"))
    if item.get_closest_marker("long") and time.time() > until:
        pytest.skip("no time is left (RENDERFARM_TESTS_UNTIL): run `make test-long`")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Stop the farm when all test processes have ended; what it wrote stays if a test failed."""
    if FARM.exists() and not hasattr(session.config, "workerinput"):
        Farm(FARM).down()
        if exitstatus == pytest.ExitCode.OK:
            shutil.rmtree(FARM)


@pytest.fixture
def own_farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarmClient]:
    """Start a farm of which a test may kill parts, or look for what is left over."""
    farm = Farm(tmp_path_factory.mktemp("own-farm"))
    try:
        farm.up(port=free_port())
        yield FarmClient(farm)
    finally:
        farm.down()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Start an S3 server in a process of its own, with an empty bucket; stop it after the tests."""
    pytest.importorskip("swift", reason="Swift, the tests' S3 server, is built for Linux only")
    with serving(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server) -> S3Bucket:
    """Make a bucket that nothing else uses, and return its storage block."""
    return s3.new_bucket()


@pytest.fixture(scope="session")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LambdaServer]:
    """Start AWS Lambda in processes of its own, with no functions; stop it after the tests."""
    pytest.importorskip("awslambdaric", reason="AWS's runtime is built for Linux only")
    with serving_functions(tmp_path_factory.mktemp("lambda")) as server:
        yield server


@pytest.fixture(scope="session")
def worker_function(functions: LambdaServer, s3: S3Server) -> str:
    """Make the function of `deployments/lambda`, whose role may use the S3 server."""
    return functions.function("renderfarm-worker", role=s3.environment())


@pytest.fixture(scope="session")
def contract_function(functions: LambdaServer) -> str:
    """Make the same function with a limit of 6 s: what it has begun ends then at the latest."""
    return functions.function("renderfarm-contract", timeout=6)


@pytest.fixture(scope="session")
def idle_worker(s3: S3Server) -> Iterator[HttpWorker]:
    """Start an HTTP worker that finds the S3 server; stop it after the tests."""
    with working(s3.environment()) as worker:
        yield worker.wait_until_ready()


@pytest.fixture
def http_worker(idle_worker: HttpWorker) -> HttpWorker:
    """Return the HTTP worker, with nothing running on it."""
    while idle_worker.health()["running"]:
        time.sleep(0.05)
    return idle_worker


@pytest.fixture
def proxy(http_worker: HttpWorker) -> Iterator[FaultyProxy]:
    """Start a faulty proxy in front of the HTTP worker."""
    with faulty_proxy(http_worker.url) as proxy:
        yield proxy


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileWeb]:
    """Start a web server that means no good, whose certificate is trusted."""
    with hostile_web(tmp_path) as web:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        yield web


@pytest.fixture
def without_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> str:
    """Take every folder that holds an ffmpeg off PATH."""
    folders = os.environ["PATH"].split(os.pathsep)
    path = os.pathsep.join(folder for folder in folders if not (Path(folder) / "ffmpeg").exists())
    monkeypatch.setenv("PATH", path)
    return path


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test a folder for temporary files of its own, and so a cold cache."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def travels(monkeypatch: pytest.MonkeyPatch) -> Travels:
    """Take down what travels."""
    return watched_travels(monkeypatch)
