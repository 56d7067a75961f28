"""Runs that are killed: nothing of them stays Running on the server."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from coordinator import start_coordinator
from farm_client import FarmClient
from jobs import save_job, small_job
from pool_samples import process_of
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Pending, Running, Scheduled
from processes_here import gone, wait_for
from run_checks import assert_film, is_final

from prefect_renderfarm.blocks import LocalAdapter
from prefect_renderfarm.blocks.runtime.prefect_api import declare_crashed
from prefect_renderfarm.deployments import FILES
from prefect_renderfarm.flows import RenderJob, render_job
from prefect_renderfarm.flows.rendering.chunk_renderer import render_chunk
from prefect_renderfarm.flows.runs.orphans import end_after_death

OPEN = ["SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING"]
AUTOMATIONS = {"renderfarm-lost-runs", "renderfarm-lost-runs-elsewhere"}
# Waits the first time it is run, and is done at once from then on.
WAIT_ONCE = (
    "import os, pathlib, time; f = pathlib.Path('merging'); once = f.exists(); "
    "f.write_text(str(os.getpid())); once or time.sleep(600)"
)


def waiting_job(folder: Path, **options: Any) -> RenderJob:
    """Return a job of six chunks, which are rendered when the folder has a file `go`."""
    extra = f"--note '{folder / 'note'}' --wait-for '{folder / 'go'}'"
    return small_job(extra, total_frames=12, chunks=6, **options)


def open_parts(api: FarmClient, run: FlowRun) -> list[str]:
    """Return the names of a run, of what it started and of their task runs that are not final."""
    found: list[str] = [] if is_final(api, run) else [run.name]
    body = {
        "flow_runs": {"id": {"any_": [str(run.id)]}},
        "task_runs": {"state": {"type": {"any_": OPEN}}},
    }
    found += [item["name"] for item in api._post("/task_runs/filter", body)]
    for child in api.children(run):
        found += open_parts(api, child)
    return found


def wait_for_task_runs(api: FarmClient, run: FlowRun, count: int) -> None:
    """Wait until the server has recorded that task runs of a run are running."""

    def running() -> int:
        return sum(item["state_type"] == "RUNNING" for item in api.task_runs(run))

    wait_for(lambda: running() == count, 90)


def kill_and_wait(api: FarmClient, run: FlowRun) -> None:
    """Kill a run's process; wait until its worker notices, and until nothing of it is open."""
    killed = time.monotonic()
    process_of(api.flow_run(run.id)).kill()
    wait_for(lambda: is_final(api, run), 60)
    noticed = time.monotonic()
    assert api.flow_run(run.id).state_name == "Crashed"
    wait_for(lambda: open_parts(api, run) == [], 60)
    ended = time.monotonic()
    print(f"noticed after {noticed - killed:.1f} s; nothing open {ended - noticed:.1f} s later")


@pytest.mark.long
def test_killed_while_it_assembles(api: FarmClient, tmp_path: Path) -> None:
    """A coordinator killed in the middle of the merge that it calls itself leaves no open run."""
    job = small_job(id="merging", merge_command=f"'{sys.executable}' -c \"{WAIT_ONCE}\"")
    path = save_job(tmp_path, job)
    run = api.submit("render-job/cloud", watch=False, job=path, merge_deployment=None)
    merging = tmp_path / "merging"
    wait_for(lambda: merging.exists() and merging.read_text() != "", 90)
    [merge] = api.children(run)
    assert merge.deployment_id is None
    assert merge.name in open_parts(api, run)
    kill_and_wait(api, run)
    assert api.flow_run(merge.id).state_name == "Crashed"
    assert f"flow run {run.name!r}" in (api.flow_run(merge.id).state.message or "")  # type: ignore[union-attr]
    wait_for(lambda: gone(int(merging.read_text())), 10)
    report = render_job(str(path), adapter=LocalAdapter())
    assert report.reused == (0, 1, 2)
    assert report.assembly == "merged"


@pytest.mark.long
@pytest.mark.parametrize("deployment", ["render-job/cloud", "render-chunks/cloud"])
def test_killed_while_it_renders(api: FarmClient, tmp_path: Path, deployment: str) -> None:
    """A run killed in the middle of chunks leaves no open task run; another run does the job."""
    job = waiting_job(tmp_path, id="rendering")
    path = save_job(tmp_path, job)
    run = api.submit(deployment, watch=False, job=path, concurrency=2)
    wait_for_task_runs(api, run, 2)
    assert len(open_parts(api, run)) > 2
    kill_and_wait(api, run)
    assert {item["state_type"] for item in api.task_runs(run)} == {"CRASHED"}
    (tmp_path / "go").touch()
    render_job(str(path), adapter=LocalAdapter(), merge=False)
    assert all((tmp_path / chunk.output_file).is_file() for chunk in job.chunks)


@pytest.mark.long
def test_the_next_run_of_the_job_ends_what_no_worker_did(api: FarmClient, tmp_path: Path) -> None:
    """A new run declares the task runs crashed of one that was started from Python and killed."""
    job = waiting_job(tmp_path, id="from Python")
    coordinator = start_coordinator(job, tmp_path)
    wait_for(lambda: (tmp_path / "note").exists(), 90)
    run = run_of(api, job)
    wait_for_task_runs(api, run, 2)
    coordinator.kill()
    coordinator.wait()
    declare_crashed(run.id, "as the automation does")
    assert open_parts(api, run) != []
    time.sleep(2)  # so long they may still be recorded
    (tmp_path / "go").touch()
    render_job(job, adapter=LocalAdapter(), job_dir=tmp_path, merge=False)
    assert open_parts(api, run) == []


def run_of(api: FarmClient, job: RenderJob) -> FlowRun:
    """Return the one flow run of a job."""
    body = {"flow_runs": {"tags": {"all_": [f"job:{job.title}"]}}}
    [found] = api._post("/flow_runs/filter", body)
    return FlowRun.model_validate(found)


def test_successor_ends_what_a_dead_run_started(api: FarmClient) -> None:
    """Runs that a dead run had started on a work pool are ended by the run that follows it."""
    job = small_job(id="job of a dead run")
    with SyncPrefectClient(api.farm.api_url) as client:
        run = client.create_flow_run(render_job, tags=[f"job:{job.title}"], state=Running())
        call = client.create_task_run(render_chunk, run.id, "0")
        found = client.read_deployment_by_name("render-chunks/cloud")
        child = client.create_flow_run_from_deployment(
            found.id,
            parameters={"job": job.to_json()},
            parent_task_run_id=call.id,
            state=Scheduled(scheduled_time=datetime.now(UTC) + timedelta(hours=1)),
        )
        end_after_death(run.id, certain=False)
        assert client.read_flow_run(child.id).state_name == "Cancelled"
        assert client.read_flow_run(run.id).state_name == "Running"
        end_after_death(run.id, certain=True)
        assert client.read_flow_run(run.id).state_name == "Crashed"
        client.delete_flow_run(child.id)


def test_automations_are_on(api: FarmClient) -> None:
    """`make up` made what declares silent runs crashed."""
    found = api._post("/automations/filter", {})
    ours = [item for item in found if item["name"] in AUTOMATIONS]
    assert {item["name"] for item in ours} == AUTOMATIONS
    assert all(item["enabled"] for item in ours)


@pytest.mark.long
@pytest.mark.parametrize("state", [Pending(), Running()], ids=lambda state: state.name)
def test_killed_before_its_first_heartbeat(api: FarmClient, state: State[Any]) -> None:
    """The automation for runs from Python, in a hurry here, ends a run that never said a word."""
    given = yaml.safe_load((FILES / "automations.yaml").read_text())
    automation = given["automations"][1]
    automation |= {"name": f"in a hurry, {state.name}"}
    automation["trigger"] |= {"within": 10}
    runs: list[FlowRun] = []
    began = time.monotonic()
    with SyncPrefectClient(api.farm.api_url) as client:

        def one_has_ended() -> bool:
            # Under load the server takes up a new automation too late for the first run.
            if time.monotonic() - began >= 40 * len(runs):
                runs.append(client.create_flow_run(render_job, state=state))
            return any(is_final(api, run) for run in runs)

        made = api._post("/automations/", automation)
        try:
            wait_for(one_has_ended, 120)
        finally:
            client._client.delete(f"/automations/{made['id']}")
        ended = [run for run in runs if is_final(api, run)]
        assert client.read_flow_run(ended[0].id).state_name == "Crashed"


@pytest.mark.long
def test_killed_together_with_its_worker(own_farm: FarmClient, tmp_path: Path) -> None:
    """A run killed at once with its worker is crashed within minutes; a new run does the job."""
    job = waiting_job(tmp_path, id="silent")
    path = save_job(tmp_path, job)
    run = own_farm.submit("render-job/cloud", watch=False, job=path, concurrency=2)
    wait_for_task_runs(own_farm, run, 2)
    time.sleep(40)  # for a second heartbeat: a run that lives is left alone
    worker = own_farm.farm.process("worker-cloud")
    tree = [worker, process_of(own_farm.flow_run(run.id))]
    killed = time.monotonic()
    for process in tree:
        process.suspend()
    for process in tree:
        process.kill()
    psutil.wait_procs(tree, timeout=10)
    assert not is_final(own_farm, run)
    wait_for(lambda: is_final(own_farm, run), 300)
    print(f"declared crashed {time.monotonic() - killed:.0f} s after the kill")
    assert own_farm.flow_run(run.id).state_name == "Crashed"
    (tmp_path / "go").touch()
    own_farm.farm.up()
    again = own_farm.submit(
        "render-job/cloud", job=path, stitcher="remux-stitcher/default", output_file="film.mp4"
    )
    assert again.state is not None
    assert again.state.is_completed(), again.state.message
    assert_film(tmp_path, job)
    assert open_parts(own_farm, run) == []
