"""The farm of the tests, as a user speaks to it; importing this sets where its server will be."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4


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

from prefect.client.orchestration import SyncPrefectClient  # noqa: E402
from prefect.client.schemas.objects import FlowRun  # noqa: E402

from prefect_renderfarm.blocks.runtime.repeat import retry  # noqa: E402
from prefect_renderfarm.deployments.farm import PREFECT, Farm  # noqa: E402


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
        if deployment.startswith("render-job/") and "output_file" not in given:
            given = {"stitcher": None} | given  # only the job's merge command, if it has one
        with SyncPrefectClient(self.farm.api_url) as client:
            found = client.read_deployment_by_name(deployment)
            # What is not given comes from the deployment, as on the command line.
            # A server whose SQLite database is locked answers 503.
            create = partial(
                client.create_flow_run_from_deployment,
                found.id,
                parameters=found.parameters | given,
                idempotency_key=uuid4().hex,
            )
            run = retry(create, "a flow run", seconds=60)
            while watch and not (run.state and run.state.is_final()):
                time.sleep(0.25)
                run = client.read_flow_run(run.id)
        return run

    def type_and_watch(self, deployment: str, **parameters: Any) -> FlowRun:
        """Run a deployment as a user types it, with `--watch`, and return its flow run."""
        given = {
            name: json.dumps(value) if isinstance(value, bool) else value
            for name, value in parameters.items()
        }
        words = [word for name, value in given.items() for word in ("-p", f"{name}={value}")]
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
