"""A real farm for the tests: one Prefect server, two pools, two workers, in their own processes."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


def free_port() -> int:
    """Return a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def said_first(name: str, value: object) -> str:
    """Return what the first of the test processes said, which starts the others."""
    return os.environ.setdefault(f"TESTS_OF_RENDERFARM_{name}", str(value))


# Prefect reads its settings when it is imported, and its threads know no later ones.
PORT = int(said_first("PORT", free_port()))
FARM = Path(said_first("FARM", Path(tempfile.gettempdir(), f"renderfarm-tests-farm-{PORT}")))
os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{PORT}/api"
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="renderfarm-tests-")
atexit.register(shutil.rmtree, os.environ["PREFECT_HOME"], ignore_errors=True)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "deployments"))

from asset_samples import Travels, watched_travels  # noqa: E402
from farm import PREFECT, Farm  # noqa: E402
from faulty_proxy import FaultyProxy, faulty_proxy  # noqa: E402
from hostile_web import HostileWeb, hostile_web  # noqa: E402
from http_samples import HttpWorker, working  # noqa: E402
from lambda_server import LambdaServer, serving_functions  # noqa: E402
from prefect.client.orchestration import SyncPrefectClient  # noqa: E402
from prefect.client.schemas.objects import FlowRun  # noqa: E402
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings  # noqa: E402
from prefect_aws.s3 import S3Bucket  # noqa: E402
from storage_samples import S3Server, serving  # noqa: E402


@dataclass(frozen=True)
class FarmClient:
    """Speaks to the farm as a user does, on the command line, and looks at what came of it."""

    farm: Farm

    def command(self, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a `prefect` command."""
        return subprocess.run(
            [*PREFECT, *words],
            env=self.farm.environment(),
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )

    def submit(self, deployment: str, *, watch: bool = True, **parameters: Any) -> FlowRun:
        """Run a deployment by the server's API, and return its flow run when it has ended."""
        given = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in parameters.items()
        }
        with SyncPrefectClient(self.farm.api_url) as client:
            found = client.read_deployment_by_name(deployment)
            # What is not given comes from the deployment, as on the command line.
            run = client.create_flow_run_from_deployment(
                found.id, parameters=found.parameters | given
            )
            while watch and not (run.state and run.state.is_final()):
                time.sleep(0.25)
                run = client.read_flow_run(run.id)
        return run

    def type_and_watch(self, deployment: str, **parameters: Any) -> FlowRun:
        """Run a deployment as a user types it, with `--watch`, and return its flow run."""
        words = [word for name, value in parameters.items() for word in ("-p", f"{name}={value}")]
        done = self.command("deployment", "run", deployment, *words, "--watch")
        line = next((line for line in done.stdout.splitlines() if "UUID: " in line), None)
        assert line is not None, done.stdout + done.stderr
        return self.flow_run(line.split("UUID: ")[1].strip())

    def flow_run(self, flow_run_id: Any) -> FlowRun:
        """Return a flow run as the server knows it now."""
        with SyncPrefectClient(self.farm.api_url) as client:
            return client.read_flow_run(flow_run_id)

    def children(self, run: FlowRun) -> list[FlowRun]:
        """Return the flow runs that a flow run started."""
        body = {"flow_runs": {"parent_flow_run_id": {"any_": [str(run.id)]}}}
        return [FlowRun.model_validate(item) for item in self._post("/flow_runs/filter", body)]

    def task_runs(self, run: FlowRun) -> list[dict[str, Any]]:
        """Return the task runs of a flow run that rendered chunks."""
        body = {"task_runs": {"flow_run_id": {"any_": [str(run.id)]}}}
        return [
            item
            for item in self._post("/task_runs/filter", body)
            if item["task_key"].startswith("render_chunk")
        ]

    def artifacts(self, run: FlowRun) -> list[dict[str, Any]]:
        """Return the artifacts of a flow run."""
        body = {"artifacts": {"flow_run_id": {"any_": [str(run.id)]}}}
        found: list[dict[str, Any]] = self._post("/artifacts/filter", body)
        return found

    def logs(self, run: FlowRun) -> list[str]:
        """Return the log lines of a flow run."""
        body = {"logs": {"flow_run_id": {"any_": [str(run.id)]}}, "sort": "TIMESTAMP_ASC"}
        return [item["message"] for item in self._post("/logs/filter", body)]

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        with SyncPrefectClient(self.farm.api_url) as client:
            answer = client._client.post(path, json=body)
            answer.raise_for_status()
            return answer.json()


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
    """Mark the tests of a farm; put their files first, so that none is waited for at the end."""
    for item in items:
        if {"api", "own_farm"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("farm")
    with_farm = {item.path for item in items if item.get_closest_marker("farm")}
    items.sort(key=lambda item: item.path not in with_farm)


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
