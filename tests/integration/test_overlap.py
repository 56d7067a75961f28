"""Assembly that runs while chunks still render: on a real server, with two workers."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from farm_client import FarmClient
from jobs import save_job, small_job, with_commands
from lock_samples import refused
from prefect.client.schemas.objects import FlowRun
from processes_here import wait_for
from run_checks import STITCH, assert_failed, assert_film, is_final

from prefect_renderfarm.blocks import JobError, LocalAdapter, RemuxStitcher
from prefect_renderfarm.blocks.storage.manifest import file_sha256
from prefect_renderfarm.flows import RenderJob, merge_job, render_job
from prefect_renderfarm.flows.results import RenderReport
from prefect_renderfarm.flows.state.job_lock import job_lock
from prefect_renderfarm.flows.state.job_state import JobState


def gated_job(folder: Path, **options: Any) -> RenderJob:
    """Return a job of six chunks, of which the last waits for the file `go` in a folder."""
    job = small_job(**({"total_frames": 30, "chunks": 6} | options))
    last = job.chunks[-1]
    return with_commands(job, {last.id: f"{last.command} --wait-for '{folder / 'go'}'"})


def start(api: FarmClient, folder: Path, job: RenderJob) -> FlowRun:
    """Submit a gated job, and wait until its merge run has begun to write the film."""
    run = api.submit(
        "render-job/cloud", job=save_job(folder, job), concurrency=2, watch=False, **STITCH
    )
    wait_for(lambda: leftovers(folder) != [], 120)
    return run


def end_of(api: FarmClient, run: FlowRun) -> FlowRun:
    """Wait for the end of a run, and return it."""
    wait_for(lambda: is_final(api, run), 120)
    return api.flow_run(run.id)


def report_of(folder: Path) -> RenderReport:
    """Return the report that a finished job left in its folder."""
    [path] = folder.glob(".renderfarm/*/report.json")
    return RenderReport.model_validate_json(path.read_text())


def seconds_between(earlier: datetime | None, later: datetime | None) -> float:
    """Return the seconds from one time to another; both must be known."""
    assert earlier is not None
    assert later is not None
    return (later - earlier).total_seconds()


def merge_runs(api: FarmClient, run: FlowRun) -> list[FlowRun]:
    """Return the merge runs that a run started, the first one first."""
    return sorted(api.children(run), key=lambda child: child.created or datetime.min)


def merge_process(run: FlowRun) -> psutil.Process:
    """Return the process of a merge run."""
    return psutil.Process(int(str(run.infrastructure_pid).rsplit(":", 1)[-1]))


def leftovers(folder: Path) -> list[str]:
    """Return the names of temporary files that an assembly left in a folder."""
    return [path.name for path in folder.iterdir() if ".part" in path.name]


@pytest.mark.long
def test_film_is_there_right_after_the_last_chunk(api: FarmClient, tmp_path: Path) -> None:
    """The merge run is warm when the last chunk is done; a cold one would need several seconds."""
    job = gated_job(tmp_path)
    run = start(api, tmp_path, job)
    (tmp_path / "go").touch()
    assert end_of(api, run).state_name == "Completed"
    report = report_of(tmp_path)
    assert 0 < seconds_between(report.rendered_at, report.assembled_at) < 3
    [merge] = merge_runs(api, run)
    assert seconds_between(merge.start_time, report.rendered_at) > 0
    assert merge.parameters["inputs"]  # else it would take chunks of any input
    assert_film(tmp_path, job)
    assert leftovers(tmp_path) == []


@pytest.mark.long
def test_failed_rendering_leaves_no_merge_run(api: FarmClient, tmp_path: Path) -> None:
    """When a chunk fails for good the waiting merge run is cancelled, and the old film stays."""
    job = gated_job(tmp_path, chunks=8)
    job = with_commands(job, {7: f"{job.chunks[7].command} --fail"})
    (tmp_path / "film.mp4").write_bytes(b"the old film")
    run = start(api, tmp_path, job)
    (tmp_path / "go").touch()
    assert_failed(end_of(api, run), "chunk 7", "asked to fail")
    [merge] = merge_runs(api, run)
    assert end_of(api, merge).state_name == "Cancelled"
    assert (tmp_path / "film.mp4").read_bytes() == b"the old film"
    wait_for(lambda: leftovers(tmp_path) == [], 10)


@pytest.mark.long
def test_lost_merge_run_is_started_again(api: FarmClient, tmp_path: Path) -> None:
    """A merge run that is killed while it waits is replaced, and what it wrote is cleaned up."""
    job = gated_job(tmp_path)
    run = start(api, tmp_path, job)
    [merge] = merge_runs(api, run)
    merge_process(api.flow_run(merge.id)).kill()
    (tmp_path / "go").touch()
    ended = end_of(api, run)
    assert ended.state_name == "Completed", ended.state
    states = [api.flow_run(child.id).state_name for child in merge_runs(api, run)]
    assert states == ["Crashed", "Completed"]
    assert_film(tmp_path, job)
    assert leftovers(tmp_path) == []


@pytest.mark.long
def test_killed_rendering_ends_the_merge_run(api: FarmClient, tmp_path: Path) -> None:
    """A merge run whose rendering is killed does not wait for ever; a new run makes the film."""
    job = gated_job(tmp_path)
    run = start(api, tmp_path, job)
    [merge] = merge_runs(api, run)
    merge_process(api.flow_run(run.id)).kill()
    assert end_of(api, merge).state_name == "Released"
    assert leftovers(tmp_path) == []
    (tmp_path / "go").touch()
    again = api.submit("render-job/cloud", job=tmp_path / "job.json", concurrency=4, **STITCH)
    assert again.state is not None
    assert again.state.is_completed(), again.state.message
    assert_film(tmp_path, job)


@pytest.mark.long
def test_chunk_timeout_ends(api: FarmClient, tmp_path: Path) -> None:
    """A merge run that waits too long for a chunk gives its place back and says why."""
    job = small_job()
    path = save_job(tmp_path, job)
    run = api.submit("merge-job/local", watch=False, job=path, chunk_timeout=5, **STITCH)
    wait_for(lambda: api.flow_run(run.id).state_name == "Running", 60)
    time.sleep(1)
    assert refused(job_lock(JobState(tmp_path, job))) == ""  # a run that waits blocks nobody
    run = end_of(api, run)
    assert run.state is not None
    assert run.state.is_cancelled()
    assert "chunk 0 did not come within 5 s" in (run.state.message or "")


@pytest.mark.long
def test_merge_again_by_report_or_id(api: FarmClient, tmp_path: Path) -> None:
    """What was rendered is assembled again by its report or its id, with another stitcher."""
    job = small_job()
    render_job(job, adapter=LocalAdapter(), job_dir=tmp_path, merge=False)
    [report] = tmp_path.glob(".renderfarm/*/report.json")
    before = [file_sha256(tmp_path / chunk.output_file) for chunk in job.chunks]
    run = api.type_and_watch(
        "merge-job/local",
        job=report,
        stitcher="ffmpeg-stitcher/default",
        output_file="again.mkv",
    )
    assert run.state is not None
    assert run.state.is_completed(), run.state.message
    assert_film(tmp_path, job, "again.mkv")
    for number, given in enumerate(["small", report.read_text(), report_of(tmp_path)]):
        film = Path(f"{number}.mp4")
        merge_job(given, stitcher=RemuxStitcher(), output_file=film, job_dir=tmp_path)
        assert_film(tmp_path, job, film.name)
    assert before == [file_sha256(tmp_path / chunk.output_file) for chunk in job.chunks]
    with pytest.raises(JobError, match=r"job 'tiny': no job with this id"):
        merge_job("tiny", stitcher=RemuxStitcher(), output_file=Path("a.mp4"), job_dir=tmp_path)
