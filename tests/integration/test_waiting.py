"""Runs that wait: for a slot, a worker, a person, or a server that is busy; each says for what."""

from __future__ import annotations

import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from pathlib import Path

import psutil
import pytest
from farm_client import FarmClient
from faulty_proxy import Answer, Request, faulty_proxy
from http_samples import HttpWorker
from jobs import save_job, small_job, with_commands
from media_samples import frame_hashes
from pool_samples import make_pool, process_of, two_runs, working
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Suspended
from prefect_aws.s3 import S3Bucket
from processes_here import wait_for
from run_checks import STITCH, assert_failed, assert_film, is_final

from prefect_renderfarm.blocks import SetupError
from prefect_renderfarm.blocks.runtime.prefect_api import start_run
from prefect_renderfarm.flows import RenderJob, merge_job, render_job
from prefect_renderfarm.flows.merging.merge_run import MergeRun
from prefect_renderfarm.flows.rendering.preflight import _slots_of
from prefect_renderfarm.flows.runs.waiting import check_room, why_waiting
from prefect_renderfarm.flows.state.job_state import JobState


def job_that_waits(folder: Path, **options: str) -> RenderJob:
    """Return a job whose last chunk is rendered when the folder has a file `go`."""
    job = small_job(**options)
    return with_commands(job, {2: f"{job.chunks[2].command} --wait-for '{folder / 'go'}'"})


def shifted_clock(folder: Path) -> Path:
    """Return a library to preload, with which the machine's clock is SHIFT seconds off."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("there is no C compiler")
    (source := folder / "clock.c").write_text("""
        #define _GNU_SOURCE
        #include <stdlib.h>
        #include <sys/syscall.h>
        #include <time.h>
        #include <unistd.h>
        int clock_gettime(clockid_t clock, struct timespec *now) {
            long failed = syscall(SYS_clock_gettime, clock, now);
            if (!failed && clock == CLOCK_REALTIME) now->tv_sec += atoi(getenv("SHIFT"));
            return failed;
        }
    """)
    library = folder / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def limit_pool(api: FarmClient, name: str, **changes: object) -> None:
    """Change a work pool, as a person does in the UI."""
    with SyncPrefectClient(api.farm.api_url) as client:
        client.update_work_pool(name, WorkPoolUpdate.model_validate(changes))


def wait_for_end(api: FarmClient, run: FlowRun, seconds: float = 180) -> FlowRun:
    """Wait for a run that has to complete."""
    wait_for(lambda: is_final(api, run), seconds)
    ended = api.flow_run(run.id)
    assert ended.state is not None
    assert ended.state.is_completed(), ended.state
    return ended


def test_why_a_run_waits(api: FarmClient) -> None:
    """A worker that is missing, a pause and a limit of pool or queue: each with what to type."""
    deployment = make_pool(api.farm, "process", "unused")
    run = start_run(deployment, {"job": "x"}, name="waits", tags=[])
    with SyncPrefectClient(api.farm.api_url) as client:
        queue = client.read_work_queue_by_name("default", "unused")
        assert why_waiting(client, run) == (
            "no worker of work pool 'unused' is up: `prefect worker start --pool unused`"
        )
        check_room("adapter", deployment)
        client.update_work_queue(queue.id, concurrency_limit=0)
        assert why_waiting(client, run) == (
            "work queue 'default' of work pool 'unused' has a concurrency limit of 0, and its "
            "slots are held by runs that end just now: wait, or "
            "`prefect work-queue set-concurrency-limit default 1 -p unused`"
        )
        with pytest.raises(
            SetupError, match="work queue 'default' of work pool 'unused' has a con"
        ):
            check_room("adapter", deployment)
        client.update_work_queue(queue.id, is_paused=True)
        assert "`prefect work-queue resume default -p unused`" in why_waiting(client, run)
        limit_pool(api, "unused", concurrency_limit=0)
        with pytest.raises(SetupError, match="work pool 'unused' has a concurrency limit of 0, so"):
            check_room("adapter", deployment)
        limit_pool(api, "unused", is_paused=True)
        assert "`prefect work-pool resume unused`" in why_waiting(client, run)
        client.delete_work_pool("unused")
        assert "is not there any more" in why_waiting(client, run)


@pytest.mark.long
def test_slots_that_other_runs_hold(own_farm: FarmClient, tmp_path: Path) -> None:
    """One slot is refused; of two, the log says who holds them; a paused pool is named."""
    api = own_farm
    with temporary_settings({PREFECT_API_URL: api.farm.api_url}):
        two_runs().save("halves", overwrite=True, _sync=True)
    options = {"adapter": "work-pool-adapter/halves", **STITCH}
    limit_pool(api, "cloud", concurrency_limit=1)
    refused = api.submit("render-job/cloud", job=save_job(tmp_path, small_job()), **options)
    assert_failed(
        refused, "adapter: its deployment 'render-chunks/cloud'",
        "work pool 'cloud' has a concurrency limit of 1, which this run itself holds",
        "`prefect work-pool set-concurrency-limit cloud 2`",
    )  # fmt: skip
    assert not (tmp_path / "chunks").exists()
    merged = {"merge_deployment": "render-job/cloud", **STITCH}
    refused = api.submit("render-job/cloud", job=tmp_path / "job.json", **merged)
    assert_failed(refused, "merge_deployment 'render-job/cloud' is no deployment of the flow")

    limit_pool(api, "cloud", concurrency_limit=2)
    limit_pool(api, "local", is_paused=True)
    other = api.submit(
        "render-job/cloud", watch=False, merge_deployment="merge-job/local", merge_lead=0,
        job=save_job(tmp_path / "other", job_that_waits(tmp_path), "other.json"), **STITCH,
    )  # fmt: skip
    wait_for(lambda: (tmp_path / "other/chunks/00001.mp4").exists(), 60)
    run = api.submit("render-job/cloud", job=tmp_path / "job.json", watch=False, **options)
    held = "work pool 'cloud' has a concurrency limit of 2, and its slots are held by "
    wait_for(lambda: any(held in line for line in api.logs(run)), 120)
    [line] = [line for line in api.logs(run) if held in line]
    assert line.startswith("run 'chunk 0 of small' has been waiting for 1 min, and so do 1 others")
    assert "'render other' (Running for " in line
    (tmp_path / "go").touch()
    paused = "work pool 'local' is paused: `prefect work-pool resume local`"
    wait_for(lambda: any(paused in line for line in api.logs(other)), 120)
    wait_for(lambda: not is_final(api, run), 1)
    limit_pool(api, "local", is_paused=False)
    wait_for_end(api, other)
    wait_for_end(api, run)
    assert_film(tmp_path, small_job())


@pytest.mark.long
def test_slot_that_a_dead_server_held(
    own_farm: FarmClient, http_worker: HttpWorker, bucket: S3Bucket, tmp_path: Path
) -> None:
    """A limit's slots are free again though server and holder were killed; who waits says so."""
    api = own_farm
    with temporary_settings({PREFECT_API_URL: api.farm.api_url}):
        http_worker.adapter(concurrency_limit="licence").save("licensed", _sync=True)
        bucket.save("renders", _sync=True)
    with SyncPrefectClient(api.farm.api_url) as client:
        client.create_global_concurrency_limit(
            GlobalConcurrencyLimitCreate(name="licence", limit=1)
        )
    options = {"adapter": "http-adapter/licensed", "storage": "s3-bucket/renders", **STITCH}
    options |= {"output_file": str(tmp_path / "film.mp4")}
    first = save_job(tmp_path / "first", job_that_waits(tmp_path), "first.json")
    holder = api.submit("render-job/cloud", job=first, watch=False, **options)

    def is_held() -> bool:
        with SyncPrefectClient(api.farm.api_url) as client:
            return client.read_global_concurrency_limit_by_name("licence").active_slots == 1

    wait_for(is_held, 60)
    with temporary_settings({PREFECT_API_URL: api.farm.api_url}):
        held = (
            "1 of 1 are held, by 'render first'; that of a run that was killed is free after 60 s"
        )
        wait_for(lambda: held in _slots_of("licence"), 20)  # the server writes events every 5 s
    process = process_of(api.flow_run(holder.id))
    server = api.farm.process("server")
    parts = [api.farm.process("worker-cloud"), *server.children(), server, process]
    for part in parts:
        part.kill()
    psutil.wait_procs(parts, timeout=20)
    api.farm.up(port=int(api.farm.api_url.rsplit(":", 1)[1].partition("/")[0]))
    run = api.submit(
        "render-job/cloud", job=save_job(tmp_path, small_job()), watch=False, **options
    )
    wait_for_end(api, run, 240)
    assert len(frame_hashes(tmp_path / "film.mp4")) == 18
    assert api.flow_run(holder.id).state_name != "Completed"


@pytest.mark.long
def test_suspended_run(api: FarmClient, tmp_path: Path) -> None:
    """A run that a person suspends stays so for longer than heartbeats are awaited, and resumes."""
    job = job_that_waits(tmp_path, id="suspended")
    run = api.submit("render-job/cloud", watch=False, job=save_job(tmp_path, job), **STITCH)
    wait_for(lambda: (tmp_path / "chunks/00001.mp4").exists(), 60)
    with SyncPrefectClient(api.farm.api_url) as client:
        client.set_flow_run_state(run.id, Suspended(timeout_seconds=3600))
        time.sleep(100)  # a heartbeat is awaited for 90 s
        assert api.flow_run(run.id).state_name == "Suspended"
        (tmp_path / "go").touch()
        client.resume_flow_run(run.id)
    wait_for_end(api, run)
    assert_film(tmp_path, job)


@pytest.mark.long
def test_clock_that_is_wrong(api: FarmClient, tmp_path: Path) -> None:
    """A run whose clock is ahead completes, with a warning; one that is behind is refused."""
    library = shifted_clock(tmp_path)
    runs = {}
    with ExitStack() as stack:
        for name, offset in (("ahead", "100"), ("behind", "-100")):
            make_pool(api.farm, "process", name, render_job)
            environment = {"LD_PRELOAD": str(library), "SHIFT": offset}
            stack.enter_context(working(api.farm, "process", name, environment))
            job = job_that_waits(tmp_path, id=name)
            path = save_job(tmp_path / name, job)
            runs[name] = api.submit(f"render-job/{name}", watch=False, job=path, **STITCH)
        wait_for(lambda: is_final(api, runs["behind"]), 180)  # it begins 100 s late, by its clock
        behind = api.flow_run(runs["behind"].id)
        assert_failed(behind, "the clock of worker behind-1 (", "behind the server's: correct it")
        (tmp_path / "go").touch()
        wait_for_end(api, runs["ahead"])
    [line] = [line for line in api.logs(runs["ahead"]) if "the clock of worker" in line]
    assert line.startswith("the clock of worker ahead-1 (")
    assert line.endswith(" s ahead of the server's: correct it (NTP)")


@pytest.mark.long
def test_too_many_requests(api: FarmClient, tmp_path: Path) -> None:
    """Who waits for a merge run goes on when the server wants fewer requests for 100 s."""
    deployment = make_pool(api.farm, "process", "crowded")
    over = time.monotonic() + 100

    def busy(request: Request) -> Answer | None:
        if time.monotonic() > over or not started or "/flow_runs/" not in request.path:
            return None
        return Answer(429, b"{}", (("Retry-After", "5"), ("Content-Type", "application/json")))

    started: list[FlowRun] = []
    with faulty_proxy(api.farm.api_url.removesuffix("/api")) as proxy:
        proxy.gate = busy
        with temporary_settings({PREFECT_API_URL: f"{proxy.url}/api"}):
            merge = MergeRun(deployment, {"job": "x"}, JobState(tmp_path, small_job()))
            started.append(merge.start())
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(copy_context().run, merge._wait)
                wait_for(lambda: time.monotonic() > over, 110)
                assert not waiting.done()
                with SyncPrefectClient(api.farm.api_url) as client:
                    client.set_flow_run_state(started[0].id, Completed(), force=True)
                assert waiting.result(60).state_name == "Completed"
    refused = [status for _, status in proxy.requests if status == 429]
    assert 2 < len(refused) < 40


@pytest.mark.long
def test_merge_run_that_is_deleted(api: FarmClient, tmp_path: Path) -> None:
    """A merge run that a person deletes while it waits for its pool is named, and started again."""
    make_pool(api.farm, "process", "closed", merge_job)
    job = small_job(id="deleted")
    run = api.submit(
        "render-job/cloud", job=save_job(tmp_path, job), watch=False,
        merge_deployment="merge-job/closed", **STITCH,
    )  # fmt: skip
    wait_for(lambda: len(api.children(run)) == 1, 60)
    [merge] = api.children(run)
    with SyncPrefectClient(api.farm.api_url) as client:
        client.delete_flow_run(merge.id)
    with working(api.farm, "process", "closed"):
        wait_for_end(api, run)
    lost = f"merge-job run {merge.name!r} was lost: it was deleted on the server"
    assert any(lost in line for line in api.logs(run))
    assert_film(tmp_path, job)


@pytest.mark.long
def test_worker_that_dies_under_a_waiting_run(own_farm: FarmClient, tmp_path: Path) -> None:
    """Either the run completes and the film is there, or it has crashed and none comes later."""
    api, job = own_farm, small_job(id="orphaned")
    run = api.submit(
        "render-job/cloud", job=save_job(tmp_path, job), watch=False, merge_lead=0,
        merge_deployment="merge-job/local", **STITCH,
    )  # fmt: skip
    wait_for(lambda: any(child.state_name == "Pending" for child in api.children(run)), 90)
    api.farm.process("worker-cloud").kill()
    wait_for(lambda: is_final(api, run), 60)
    [merge] = api.children(run)
    time.sleep(40)
    completed = api.flow_run(run.id).state_name == "Completed"
    assert (tmp_path / "film.mp4").exists() == completed
    assert (api.flow_run(merge.id).state_name == "Completed") == completed
