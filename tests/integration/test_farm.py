"""The farm on this machine: started twice, stopped exactly."""

from __future__ import annotations

import json
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from farm_client import FarmClient, free_port
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient
from processes_here import gone, wait_for

from prefect_renderfarm.deployments.farm import Farm, ProcessFile

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
PARENT = [
    sys.executable,
    "-c",
    "import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', "
    "'import time; time.sleep(600)']).pid, flush=True); time.sleep(600)",
]


@pytest.mark.long
def test_up_again_changes_nothing(api: FarmClient) -> None:
    """`make up` on a running farm leaves its processes alone."""
    before = {
        name: api.farm.process(name).pid for name in ("server", "worker-cloud", "worker-local")
    }
    api.farm.up()
    assert {name: api.farm.process(name).pid for name in before} == before
    assert api.farm.running()


def test_environment_is_the_farms_own(api: FarmClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's Prefect settings do not reach the farm, and the farm keeps to its folder."""
    monkeypatch.setenv("PREFECT_API_URL", "http://example.invalid/api")
    monkeypatch.setenv("PREFECT_API_KEY", "secret")
    environment = api.farm.environment()
    assert environment["PREFECT_API_URL"] == api.farm.api_url
    assert "PREFECT_API_KEY" not in environment
    assert Path(environment["PREFECT_HOME"]).is_relative_to(api.farm.state)


@pytest.mark.long
def test_writes_at_the_same_time_wait_for_each_other(api: FarmClient) -> None:
    """The server refuses no write of several at once; that of `prefect server start` does."""
    with SyncPrefectClient(api.farm.api_url) as client:
        run = client.create_flow_run(Flow(lambda: None, name="writes"))
    url = f"{api.farm.api_url}/flow_runs/{run.id}/labels"

    def write(number: int) -> set[int]:
        with httpx.Client(timeout=60) as plain:  # Prefect's own client would ask again
            return {plain.patch(url, json={str(number): n}).status_code for n in range(20)}

    with ThreadPoolExecutor(8) as pool:
        assert set[int]().union(*pool.map(write, range(8))) == {204}


def test_a_server_of_ones_own(tmp_path: Path) -> None:
    """A server that does not answer is named, and nothing is started."""
    farm = Farm(tmp_path)
    with pytest.raises(SystemExit, match=r"127\.0\.0\.1:9/api"):
        farm.up(api_url="http://127.0.0.1:9/api")
    assert farm.down() == []


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    """A port that somebody listens on is not taken for the farm's server."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f"port {port} is in use"):
            Farm(tmp_path).up(port=port)


def test_stop_ends_the_whole_tree(tmp_path: Path) -> None:
    """What was started is ended with its children; what was not is left alone."""
    processes = ProcessFile(tmp_path / "processes.json")
    bystander = psutil.Popen(SLEEP)
    log = tmp_path / "tree.log"
    try:
        processes.start("tree", PARENT, tmp_path, dict(os.environ))
        wait_for(lambda: log.read_text().strip() != "")
        parent = processes.find("tree")
        assert parent is not None
        assert processes.stop_all() == ["tree"]
        assert gone(parent.pid)
        assert gone(int(log.read_text()))
        assert processes.find("tree") is None
        assert processes.stop_all() == []
        assert not gone(bystander.pid)
    finally:
        bystander.kill()
        bystander.wait()


def test_a_stale_file_ends_nobody(tmp_path: Path) -> None:
    """A process that has only got the same id since is not ours."""
    bystander = psutil.Popen(SLEEP)
    try:
        file = tmp_path / "processes.json"
        file.write_text(json.dumps({"server": [bystander.pid, bystander.create_time() - 60]}))
        assert ProcessFile(file).stop_all() == []
        assert not gone(bystander.pid)
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.long
def test_a_server_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log's end is told, and nothing waits for it any more."""
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "nonsense://")
    farm = Farm(tmp_path)
    with pytest.raises(SystemExit, match="server did not start; the end of"):
        farm.up(port=free_port())
    assert farm.down() == []
