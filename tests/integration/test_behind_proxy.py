"""A Prefect server behind nginx: a sub-path, a user and password, a certificate of our own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from farm_client import FarmClient
from jobs import save_job, small_job, with_commands
from media_samples import frame_hashes
from nginx import USER, Proxy, proxying
from prefect.client.schemas.objects import FlowRun
from processes_here import wait_for
from run_checks import STITCH

from prefect_renderfarm.deployments.farm import POOLS, Farm

RENDERFARM = [sys.executable, "-m", "prefect_renderfarm.deployments.cli"]


@pytest.fixture
def proxy(api: FarmClient, tmp_path: Path) -> Iterator[Proxy]:
    """Run nginx in front of the farm's server."""
    (folder := tmp_path / "nginx").mkdir()
    with proxying(api.farm.api_url.removesuffix("/api"), folder) as proxy:
        yield proxy


def renderfarm(folder: Path, variables: dict[str, str], *words: str) -> str:
    """Type a command against a server; return what it prints."""
    kept = {name: value for name, value in os.environ.items() if "PREFECT_" not in name}
    home = {"PREFECT_HOME": os.environ["PREFECT_HOME"]}
    done = subprocess.run(
        [*RENDERFARM, *words], cwd=folder, env=kept | home | variables, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    return done.stdout


@pytest.mark.long
def test_user_and_authority(proxy: Proxy, tmp_path: Path) -> None:
    """Without a user or the authority the command says what to give; with both it renders."""
    address = {"PREFECT_API_URL": proxy.api_url}
    known = address | {"PREFECT_API_SSL_CERT_FILE": str(proxy.authority)}
    reached = known | {"PREFECT_API_AUTH_STRING": USER}
    for words in (["jobs"], ["up", "--api-url", proxy.api_url]):
        told = renderfarm(tmp_path, address, *words)
        assert "its certificate is of no known authority: give PREFECT_API_SSL_CERT_FILE" in told
        told = renderfarm(tmp_path, known, *words)
        assert "it answers 401: give PREFECT_API_AUTH_STRING (user:password)" in told
    wrong = reached | {"PREFECT_API_URL": proxy.api_url.replace("/render", "/rendr")}
    assert "it answers 404: the address ends with /api" in renderfarm(tmp_path, wrong, "jobs")
    save_job(tmp_path, small_job(id="behind"))
    told = renderfarm(tmp_path, reached, "render", "job.json", "-o", "film.mp4")
    assert told.splitlines()[-1].startswith(f"film: {tmp_path / 'film.mp4'} (18 frames")
    assert len(frame_hashes(tmp_path / "film.mp4")) == 18


@pytest.mark.long
def test_requests_a_minute(
    own_farm: FarmClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four jobs that wait and two workers stay far below what Prefect Cloud's free plan takes."""
    (folder := tmp_path / "nginx").mkdir()
    with proxying(own_farm.farm.api_url.removesuffix("/api"), folder) as proxy:
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", USER)
        monkeypatch.setenv("PREFECT_API_SSL_CERT_FILE", str(proxy.authority))
        farm = Farm(tmp_path / "farm")
        try:
            for pool in POOLS:
                own_farm.farm.process(f"worker-{pool}").kill()
            farm.up(api_url=proxy.api_url)
            runs = [start_waiting(own_farm, tmp_path / f"job-{number}") for number in range(4)]
            wait_for(lambda: all(is_waiting(own_farm, run) for run in runs), 180)
            time.sleep(60)  # the page of an older job is sent less often
            requests = requests_in_a_minute(proxy)
        finally:
            farm.down()
    print(f"two workers and four jobs: {requests.total()} requests a minute")
    print("\n".join(f"{count:4} {name}" for name, count in requests.most_common()))
    assert requests.total() < 625
    # A worker alone asks once a second. The rest is of the jobs: render-job, and the merge run that
    # waits for its chunks.
    own = sum(count for name, count in requests.items() if "/work_pools/" not in name)
    assert own <= 4 * 10


def requests_in_a_minute(proxy: Proxy) -> Counter[str]:
    """Count the requests of the next minute, by method and path without ids."""
    before = len(proxy.requests())
    time.sleep(60)
    return Counter(re.sub(r"[0-9a-f-]{36}", "ID", line) for line in proxy.requests()[before:])


def start_waiting(api: FarmClient, folder: Path) -> FlowRun:
    """Start a job whose last chunk never ends, and whose merge run begins at once."""
    job = with_commands(small_job(id=folder.name), {2: "sleep 1000"})
    return api.submit(
        "render-job/cloud", job=save_job(folder, job), watch=False,
        merge_deployment="merge-job/local", merge_lead=600, **STITCH,
    )  # fmt: skip


def is_waiting(api: FarmClient, run: FlowRun) -> bool:
    """Return whether a job's merge run waits for its last chunk."""
    return any(child.state_name == "Running" for child in api.children(run))
