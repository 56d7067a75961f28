"""Chunks as flow runs of `render-chunks`: on a real server, with workers in their own processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from farm_client import FarmClient
from jobs import save_job, small_job, with_commands
from media_samples import frame_hashes
from pool_samples import batches, in_background, job_of, process_of, rendered, two_runs
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Running
from prefect_aws.s3 import S3Bucket
from processes_here import gone, wait_for
from run_checks import STITCH, is_final

from prefect_renderfarm.blocks import (
    CommandFailed,
    LocalAdapter,
    SetupError,
    WorkerJob,
    WorkPoolAdapter,
)
from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.blocks.storage.job_store import JobStore
from prefect_renderfarm.flows import RenderReport, render_job
from prefect_renderfarm.flows.render_chunks import render_chunks
from prefect_renderfarm.flows.rendering import pool
from prefect_renderfarm.flows.rendering.pool import BatchRun


@pytest.mark.long
def test_job_through_the_storage(api: FarmClient, bucket: S3Bucket, tmp_path: Path) -> None:
    """Twelve chunks go out in three batches, two at once, come home, and make the right film."""
    bucket.save("of-the-pool", overwrite=True)
    two_runs(chunks_per_run=4).save("two", overwrite=True)
    job = job_of(12, tmp_path, id="pooled")
    run = api.submit(
        "render-job/cloud", job=job.to_json(), adapter="work-pool-adapter/two",
        storage="s3-bucket/of-the-pool", stitcher="remux-stitcher/default",
        output_file=tmp_path / "film.mp4",
    )  # fmt: skip
    assert run.state is not None
    assert run.state.is_completed(), run.state.message
    store = JobStore(BucketStore(bucket), job.key)
    report = RenderReport.model_validate_json(store.read("report.json") or b"")
    assert [chunk.id for chunk in report.chunks if chunk.worker] == list(range(12))
    frames = []
    for chunk in report.chunks:
        store.fetch(chunk, tmp_path / chunk.output_file)
        frames += frame_hashes(tmp_path / chunk.output_file)
    assert len(frames) == 48
    assert frame_hashes(tmp_path / "film.mp4") == frames
    runs = [child for child in api.children(run) if child.name.startswith("chunk")]
    names = ["chunks 0-3 of pooled", "chunks 4-7 of pooled", "chunks 8-11 of pooled"]
    assert sorted(child.name for child in runs) == sorted(names)
    for child in runs:
        wait_for(lambda child=child: is_final(api, child), 20)  # type: ignore[misc]
        assert api.flow_run(child.id).state_name == "Completed"
        assert child.work_pool_name == "cloud"
    first, second, third = sorted(map(times_of(api), runs))
    assert third[0] >= min(first[1], second[1])
    assert rendered(tmp_path) == Counter(range(12))


def times_of(api: FarmClient) -> Callable[[FlowRun], tuple[Any, Any]]:
    """Return a function that gives a run's start and end."""

    def times(run: FlowRun) -> tuple[Any, Any]:
        run = api.flow_run(run.id)
        return run.start_time, run.end_time

    return times


@pytest.mark.long
def test_killed_batch_renders_only_what_is_missing(api: FarmClient, tmp_path: Path) -> None:
    """When a batch's process is killed, its finished chunks stay and the others are rendered."""
    job = job_of(8, tmp_path, id="killed")
    gate = f"--wait-for '{tmp_path / 'go'}'"
    job = with_commands(job, {2: f"{job.chunks[2].command} {gate}"})
    film = in_background(job, adapter=two_runs(chunks_per_run=4), job_dir=tmp_path)
    wait_for(lambda: set(rendered(tmp_path)) == {0, 1, 2, 4, 5, 6, 7}, 60)
    victim = next(run for run in batches(api, "killed") if run.name == "chunks 0-3 of killed")
    process_of(victim).kill()
    (tmp_path / "go").touch()
    report = film.result(60)
    assert rendered(tmp_path) == Counter(dict.fromkeys(range(8), 1) | {2: 2})
    assert [chunk.attempts for chunk in report.chunks] == [1, 1, 2, 1, 1, 1, 1, 1]
    ends = {run.name: run.state_name for run in batches(api, "killed")}
    assert ends["chunks 0-3 of killed"] == "Crashed"
    assert "chunks 2-3 of killed" in ends


@pytest.mark.long
def test_failed_chunk_fails_the_job(api: FarmClient, tmp_path: Path) -> None:
    """A chunk that fails for good fails the job with its own message; no run goes on."""
    job = job_of(6, tmp_path, id="failing")
    began = tmp_path / "began"
    wait = f"{job.chunks[0].command} --child '{began}' --wait-for '{tmp_path / 'never'}'"
    fail = f"{job.chunks[4].command} --wait-for '{began}' --fail"
    job = with_commands(job, {0: wait, 4: fail})
    adapter = two_runs(chunks_per_run=3)
    with pytest.raises(CommandFailed, match=r"^chunk 4: .*exit code 1 on .*: .*asked to fail"):
        render_job(job, adapter=adapter, job_dir=tmp_path, merge=False, retries=1, retry_delay=0)
    assert rendered(tmp_path) == Counter({0: 1, 3: 1, 4: 2})
    runs = batches(api, "failing")
    assert {run.name: run.state_name for run in runs} == {
        "chunks 0-2 of failing": "Cancelled",
        "chunks 3-5 of failing": "Failed",
    }


@pytest.mark.long
def test_cancel_ends_the_runs(api: FarmClient, tmp_path: Path) -> None:
    """Cancelling the job ends its runs and their renderers within seconds."""
    two_runs(chunks_per_run=2).save("pairs", overwrite=True)
    job = job_of(4, tmp_path, f"--wait-for '{tmp_path / 'never'}'", id="cancelled")
    path = save_job(tmp_path, job)
    run = api.submit(
        "render-job/cloud", job=path, adapter="work-pool-adapter/pairs", watch=False, **STITCH
    )
    wait_for(lambda: set(rendered(tmp_path)) == {0, 2}, 60)
    runs = batches(api, "cancelled")
    renderers = [child for run in runs for child in process_of(run).children(recursive=True)]
    assert len(renderers) >= 2
    assert api.command("flow-run", "cancel", str(run.id)).returncode == 0
    wait_for(lambda: all(gone(process.pid) for process in renderers), 20)
    for ended in (run, *runs):
        wait_for(lambda ended=ended: is_final(api, ended), 20)  # type: ignore[misc]
        assert api.flow_run(ended.id).state_name == "Cancelled"
    assert sum(rendered(tmp_path).values()) == 2


@pytest.mark.long
def test_slow_chunk_is_duplicated(api: FarmClient, bucket: S3Bucket, tmp_path: Path) -> None:
    """A chunk that hangs is given out once more while its run is alive; the first one counts."""
    bucket.save("of-the-slow", overwrite=True)
    storage = S3Bucket.load("of-the-slow")
    job = job_of(6, tmp_path, id="slow")
    job = with_commands(job, {1: f"{job.chunks[1].command} --hang-once '{tmp_path / 'hung'}'"})
    adapter = two_runs(chunks_per_run=2)
    report = render_job(
        job, adapter=adapter, storage=storage, job_dir=tmp_path, merge=False,
        slow_factor=3, slow_chunks="duplicate",
    )  # fmt: skip
    assert [chunk.id for chunk in report.chunks] == [0, 1, 2, 3, 4, 5]
    assert rendered(tmp_path) == Counter({0: 1, 1: 2, 2: 1, 3: 1, 4: 1, 5: 1})
    slow = next(run for run in batches(api, "slow") if run.name == "chunks 0-1 of slow")
    wait_for(lambda: is_final(api, slow), 20)
    assert api.flow_run(slow.id).state_name == "Cancelled"


@pytest.mark.long
def test_silent_run_is_replaced(api: FarmClient, tmp_path: Path) -> None:
    """A run of which no chunk is done for too long is ended, and its chunks are given out again."""
    job = job_of(2, tmp_path, f"--hang-once '{tmp_path / 'hung'}'", id="silent")
    adapter = two_runs(chunks_per_run=2, max_runs=1, lost_after=8)
    render_job(job, adapter=adapter, job_dir=tmp_path, merge=False)
    assert rendered(tmp_path) == Counter({0: 2, 1: 1})
    assert [run.state_name for run in batches(api, "silent")] == ["Cancelled", "Completed"]


@pytest.mark.long
def test_run_without_a_worker_is_declared_crashed(
    api: FarmClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that stays Running though it was cancelled has lost its worker: it gets its end."""
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(render_chunks, parameters={"job": "film"}, state=Running())
    lost = BatchRun(api.flow_run(run.id), list(small_job().chunks))
    lost.give_up("no word of it")
    assert api.flow_run(run.id).state_name == "Cancelling"
    monkeypatch.setattr(pool, "_ENDING_SECONDS", 0.0)
    lost.give_up("no word of it")
    assert api.flow_run(run.id).state_name == "Crashed"


@pytest.mark.long
@pytest.mark.usefixtures("api")
def test_what_cannot_work_is_refused_before_any_chunk(bucket: S3Bucket, tmp_path: Path) -> None:
    """No such deployment or adapter, a merge command, an unsaved storage: one line, no run."""
    job = job_of(2, tmp_path, merge_command="ffmpeg -version")
    bad: list[tuple[WorkPoolAdapter, dict[str, Any], str]] = [
        (two_runs(deployment="render-chunks/moon"), {}, r"'render-chunks/moon' is no deployment"),
        (two_runs(deployment="merge-job/local"), {}, r"no deployment of the flow render-chunks"),
        (two_runs(worker_adapter="local-adapter/moon"), {}, r"'local-adapter/moon': no such block"),
        (two_runs(worker_adapter="work-pool-adapter/two"), {}, r"is a work pool adapter itself"),
        (two_runs(), {"storage": bucket}, r"S3Bucket that is not saved"),
        (two_runs(), {"merge": True}, r"runs no merge command: name a merge_adapter"),
        (two_runs(job_variables={"working_dir": 3}), {}, r"the server refuses a run"),
    ]
    for adapter, options, words in bad:
        with pytest.raises(SetupError, match=words):
            render_job(job, adapter=adapter, job_dir=tmp_path, **({"merge": False} | options))
    assert rendered(tmp_path) == Counter()
    with pytest.raises(SetupError, match=r"merge command: .* name a merge_adapter"):
        two_runs().execute(WorkerJob(command="true", name="merge command"))


def test_image_and_variables_are_the_environment(api: FarmClient) -> None:
    """What the runs' machines are made of, and what their adapter sets, decides what chunks are."""
    LocalAdapter(environment={"OCIO": "one"}).save("declared", overwrite=True)
    plain = two_runs(worker_adapter="local-adapter/declared").digest_inputs()
    other = two_runs(
        worker_adapter="local-adapter/declared", job_variables={"image": "blender:4"}
    ).digest_inputs()
    assert plain["adapter"] == other["adapter"] == {"environment": {"OCIO": "one"}}
    assert other["runs"] == plain["runs"] | {"image": "blender:4"}
