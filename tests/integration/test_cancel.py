"""Runs that no process worker watches, as in containers: a cancel ends them in good order."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from farm_client import FarmClient
from jobs import save_job, small_job, with_commands
from pool_samples import batches, in_background, job_of, make_pool, rendered, two_runs
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Cancelling
from processes_here import gone, python, wait_for
from run_checks import STITCH, is_final

from prefect_renderfarm.blocks import CommandFailed
from prefect_renderfarm.flows import merge_job, render_job

pytestmark = pytest.mark.long
POOL = "containers"


class Containers:
    """Starts runs with the command of a container, and with its environment."""

    def __init__(self, api: FarmClient, folder: Path) -> None:
        self._api, self._folder = api, folder
        self.processes: list[psutil.Popen] = []

    def start(self, run: FlowRun, flow: str) -> None:
        """Start a run of a flow."""
        command = [sys.executable, "-m", "prefect.flow_engine", f"prefect_renderfarm.flows.{flow}"]
        environment = self._api.farm.environment() | {"PREFECT__FLOW_RUN_ID": str(run.id)}
        with (self._folder / "containers.log").open("a") as log:
            self.processes.append(
                psutil.Popen(command, env=environment, cwd=self._folder, stdin=subprocess.DEVNULL,
                             stdout=log, stderr=log, start_new_session=True)
            )  # fmt: skip

    def start_coordinator(self, job: str) -> FlowRun:
        """Start the run of a job whose chunks wait, two in a run."""
        adapter = two_runs(deployment=f"render-chunks/{POOL}", chunks_per_run=2)
        adapter.save("containers", overwrite=True)
        spec = job_of(4, self._folder, f"--wait-for '{self._folder / 'go'}'", id=job)
        run = self._api.submit(
            f"render-job/{POOL}", job=save_job(self._folder, spec), watch=False,
            adapter="work-pool-adapter/containers", **STITCH,
        )  # fmt: skip
        self.start(run, "render_job")
        return run

    def start_batches(self, job: str, count: int) -> list[FlowRun]:
        """Start the runs that render a job's chunks, once they are there."""
        wait_for(lambda: len(batches(self._api, job)) == count, 60)
        runs = batches(self._api, job)
        for run in runs:
            self.start(run, "render_chunks")
        return runs

    def children(self) -> list[psutil.Process]:
        """Return all processes that the runs have started."""
        return [child for each in self.processes for child in each.children(recursive=True)]

    def assert_ended(self, since: float, children: list[psutil.Process]) -> None:
        """Wait until no process is left; print how long after a moment: 11 to 14 s on two cores."""
        wait_for(lambda: all(gone(each.pid) for each in (*self.processes, *children)), 60)
        print((self._folder / "containers.log").read_text())
        print(f"all processes ended {time.monotonic() - since:.1f} s after the cancel")


@pytest.fixture
def containers(api: FarmClient, tmp_path: Path) -> Iterator[Containers]:
    """Return what starts runs on a pool that has no worker; what is left of them is killed."""
    if not any(item["name"] == POOL for item in api._post("/work_pools/filter", {})):
        make_pool(api.farm, "docker", POOL, render_job, merge_job)
    started = Containers(api, tmp_path)
    yield started
    for process in (*started.children(), *started.processes):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def cancel(api: FarmClient, run: FlowRun) -> float:
    """Cancel a run as the UI does; return when."""
    with SyncPrefectClient(api.farm.api_url) as client:
        client.set_flow_run_state(run.id, Cancelling())
    return time.monotonic()


def message(api: FarmClient, run: FlowRun) -> str:
    """Return the message of a run's state, which is Cancelled."""
    wait_for(lambda: is_final(api, run), 60)
    state = api.flow_run(run.id).state
    assert state is not None
    assert state.name == "Cancelled"
    return state.message or ""


def test_coordinator(api: FarmClient, containers: Containers, tmp_path: Path) -> None:
    """A cancelled coordinator ends its commands, and makes no film."""
    job = job_of(4, tmp_path, f"--child '{tmp_path / 'child'}' --wait-for '{tmp_path / 'go'}'")
    path = save_job(tmp_path, job)
    run = api.submit(f"render-job/{POOL}", watch=False, job=path, concurrency=1, **STITCH)
    containers.start(run, "render_job")
    wait_for(lambda: (tmp_path / "child").exists(), 60)
    children = containers.children()
    since = cancel(api, run)
    containers.assert_ended(since, children)
    print(message(api, run))
    assert rendered(tmp_path).total() == 1
    assert not (tmp_path / "film.mp4").exists()


def test_coordinator_and_its_runs(api: FarmClient, containers: Containers, tmp_path: Path) -> None:
    """The runs of a cancelled coordinator end as soon as itself, not one wait after the other."""
    run = containers.start_coordinator("in containers")
    runs = containers.start_batches("in containers", 2)
    wait_for(lambda: set(rendered(tmp_path)) == {0, 2}, 60)
    children = containers.children()
    assert len(children) >= 2
    since = cancel(api, run)
    containers.assert_ended(since, children)
    for ended in (run, *runs):
        print(message(api, ended))
    assert rendered(tmp_path).total() == 2
    assert not (tmp_path / "film.mp4").exists()


def test_run_that_ends_before_its_coordinator(
    api: FarmClient, containers: Containers, tmp_path: Path
) -> None:
    """A coordinator that hears of the cancel from its own run first ends as Cancelled, too."""
    run = containers.start_coordinator("heard of")
    wait_for(lambda: len(batches(api, "heard of")) == 2, 60)
    with SyncPrefectClient(api.farm.api_url) as client:
        client.set_flow_run_state(run.id, Cancelling())
        for ended in batches(api, "heard of"):
            client.set_flow_run_state(ended.id, Cancelled())
    containers.assert_ended(time.monotonic(), [])
    print(message(api, run))
    assert not (tmp_path / "film.mp4").exists()


def test_sibling_of_a_failed_run(api: FarmClient, containers: Containers, tmp_path: Path) -> None:
    """A chunk that fails for good in one run ends the other run, too."""
    job = job_of(4, tmp_path, id="sibling")
    began = tmp_path / "began"
    wait = f"{job.chunks[0].command} --child '{began}' --wait-for '{tmp_path / 'never'}'"
    fail = f"{job.chunks[2].command} --wait-for '{began}' --fail"
    job = with_commands(job, {0: wait, 2: fail})
    adapter = two_runs(deployment=f"render-chunks/{POOL}", chunks_per_run=2)
    film = in_background(job, adapter=adapter, job_dir=tmp_path)
    runs = containers.start_batches("sibling", 2)
    wait_for(lambda: began.exists() and 2 in rendered(tmp_path), 60)
    since, children = time.monotonic(), containers.children()
    with pytest.raises(CommandFailed, match=r"chunk 2: .*asked to fail"):
        film.result(60)
    containers.assert_ended(since, children)
    print(message(api, runs[0]))
    assert rendered(tmp_path).keys() == {0, 2}


def test_cancel_that_comes_too_late(
    api: FarmClient, containers: Containers, tmp_path: Path
) -> None:
    """A run that has done its work before it looks at its state again ends as Cancelled, too."""
    code = (
        "import time, pathlib; pathlib.Path('merging').touch()\n"
        "while not pathlib.Path('go').exists(): time.sleep(0.02)"
    )
    (tmp_path / "merge.py").write_text(code)
    job = small_job(id="too late", merge_command=f"'{sys.executable}' merge.py")
    render_job(job, job_dir=tmp_path, merge=False)
    run = api.submit(f"merge-job/{POOL}", watch=False, job=job.to_json(), job_dir=tmp_path)
    containers.start(run, "merge_job")
    wait_for((tmp_path / "merging").exists, 60)
    since = cancel(api, run)
    (tmp_path / "go").touch()
    containers.assert_ended(since, [])
    print(message(api, run))


def test_merge_run(api: FarmClient, containers: Containers, tmp_path: Path) -> None:
    """A cancelled merge run ends the merge command, and makes no film."""
    code = "import time, pathlib; pathlib.Path('merging').touch(); time.sleep(600)"
    job = small_job(id="merge in a container", merge_command=python(code))
    render_job(job, job_dir=tmp_path, merge=False)
    run = api.submit(f"merge-job/{POOL}", watch=False, job=job.to_json(), job_dir=tmp_path)
    containers.start(run, "merge_job")
    wait_for((tmp_path / "merging").exists, 60)
    children = containers.children()
    since = cancel(api, run)
    containers.assert_ended(since, children)
    print(message(api, run))
