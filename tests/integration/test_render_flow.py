"""The flow `render-job` in this process: failures, retries, limits, reports."""

from __future__ import annotations

import shlex
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from farm_client import FarmClient
from jobs import clip_command, small_job, with_commands
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from processes_here import wait_for

from prefect_renderfarm.blocks import (
    ChunkFileError,
    CommandFailed,
    CommandNotRunnable,
    JobError,
    LocalAdapter,
    RemuxStitcher,
    StitchInputError,
    WorkerAdapter,
    WorkerJob,
    WorkerResult,
)
from prefect_renderfarm.flows import RenderJob, render_chunks, render_job
from prefect_renderfarm.flows.rendering import chunk_renderer


class SlowAdapter(WorkerAdapter):
    """Notes when each chunk began and ended."""

    began: ClassVar[list[int]] = []
    at_once: ClassVar[list[int]] = [0, 0]
    lock: ClassVar[Any] = threading.Lock()

    def execute(self, job: WorkerJob) -> WorkerResult:
        with self.lock:
            self.began.append(job.chunk_id or 0)
            self.at_once[0] += 1
            self.at_once[1] = max(self.at_once)
        try:
            return LocalAdapter(grace=1).execute(job)
        finally:
            with self.lock:
                self.at_once[0] -= 1


@pytest.fixture(autouse=True)
def fresh(api: FarmClient) -> FarmClient:
    """Forget what was noted; let the flows find the server."""
    SlowAdapter.began.clear()
    SlowAdapter.at_once[:] = [0, 0]
    return api


def pages(client: FarmClient, run: FlowRun) -> list[str]:
    """Return the artifacts of a run that are pages."""
    return [item["data"] for item in client.artifacts(run) if item["type"] == "markdown"]


def last_run(client: FarmClient, folder: Path) -> FlowRun:
    """Return the flow run with a job folder that started last; others use the farm, too."""
    with SyncPrefectClient(client.farm.api_url) as api:
        runs = api.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=100)
    return next(run for run in runs if run.parameters.get("job_dir") == str(folder))


def fill(command: str, **fields: object) -> str:
    """Fill in a command template."""
    return command.format(**fields)


def bad_chunk(job: RenderJob, number: int, extra: str) -> RenderJob:
    """Return a job in which one chunk's command has further options."""
    chunk = job.chunks[number]
    return with_commands(job, {number: f"{chunk.command} {extra}"})


def test_failing_chunk_stops_the_others(tmp_path: Path) -> None:
    """Chunks that have not begun never do, those that run are ended; the error is the chunk's."""
    job = small_job("--sleep 20", total_frames=40, chunks=20)
    job = with_commands(job, {2: job.chunks[2].command.replace("--sleep 20", "--sleep 1 --fail")})
    started = time.monotonic()
    with pytest.raises(CommandFailed, match=r"chunk 2: .*exit code 1.*asked to fail"):
        render_job(job, adapter=SlowAdapter(), job_dir=tmp_path, concurrency=3)
    assert time.monotonic() - started < 15
    assert sorted(SlowAdapter.began) == [0, 1, 2]
    assert not list((tmp_path / "chunks").iterdir())


@pytest.mark.long
def test_retry_with_delay(tmp_path: Path, fresh: FarmClient) -> None:
    """A chunk that fails once is tried again after the delay, and the report counts attempts."""
    job = small_job(f"--fail-once '{tmp_path}/{{id}}'")
    started = time.monotonic()
    report = render_job(job, adapter=LocalAdapter(), job_dir=tmp_path, retries=2, retry_delay=1.5)
    assert time.monotonic() - started > 1.5
    assert [chunk.attempts for chunk in report.chunks] == [2, 2, 2]
    [page] = pages(fresh, last_run(fresh, tmp_path))
    assert page.startswith("# `small`: done\n")
    assert "| Attempts | 6 |" in page


@pytest.mark.long
def test_waiting_for_a_retry_ends_with_the_job(tmp_path: Path) -> None:
    """A chunk that waits for its next attempt does not hold up the end of its job."""
    job = bad_chunk(small_job(), 0, "--fail")
    job = with_commands(job, {1: f"{job.chunks[1].command} --sleep 3", 2: "/no/such/renderer"})
    started = time.monotonic()
    with pytest.raises(CommandNotRunnable, match="chunk 2"):
        render_job(
            job, adapter=LocalAdapter(), job_dir=tmp_path, retries=1, retry_delay=120, concurrency=2
        )
    assert time.monotonic() - started < 60


def test_retries_run_out(tmp_path: Path) -> None:
    """After the last retry the chunk's own error is raised."""
    with pytest.raises(CommandFailed, match="asked to fail"):
        render_job(
            bad_chunk(small_job(), 1, "--fail"),
            adapter=SlowAdapter(),
            job_dir=tmp_path,
            retries=2,
            retry_delay=0,
            concurrency=1,
        )
    assert SlowAdapter.began == [0, 1, 1, 1]


def test_a_missing_program_is_not_tried_again(tmp_path: Path) -> None:
    """Exit code 127 is fatal: no retry."""
    job = with_commands(small_job(), {0: "no-such-renderer"})
    with pytest.raises(CommandNotRunnable, match=r"chunk 0: .*127.*no-such-renderer"):
        render_job(job, adapter=SlowAdapter(), job_dir=tmp_path, retries=5, concurrency=1)
    assert SlowAdapter.began == [0]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("true", "does not exist"),
        ("touch {output}", "is empty"),
        ("cp /etc/hosts {output}", "cannot be opened as a media file"),
        (clip_command().replace("{count}", "5"), "has 5 frames, not the planned 6"),
        (clip_command("--fps 25"), "off the grid"),
    ],
)
def test_bad_file_fails_its_chunk(tmp_path: Path, command: str, words: str) -> None:
    """A command that succeeds with a wrong file fails its chunk, and leaves no file."""
    job = small_job()
    filled = fill(command, start=0, count=6, output=job.chunks[0].output_file)
    with pytest.raises(ChunkFileError, match=words) as caught:
        render_job(
            with_commands(job, {0: filled}), adapter=LocalAdapter(), job_dir=tmp_path, concurrency=1
        )
    assert "chunk 0" in str(caught.value)
    assert not (tmp_path / job.chunks[0].output_file).exists()


def test_concurrency_is_kept(tmp_path: Path) -> None:
    """No more chunks run at once than asked for."""
    job = small_job("--sleep 0.3", total_frames=12, chunks=6)
    render_job(job, adapter=SlowAdapter(), job_dir=tmp_path, concurrency=2)
    assert SlowAdapter.at_once[1] == 2


@pytest.mark.long
def test_many_chunks_share_task_runs(
    tmp_path: Path, fresh: FarmClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the limit task runs share the chunks, each of which has its retries."""
    monkeypatch.setattr(chunk_renderer, "MAX_TASK_RUNS", 3)
    job = small_job(total_frames=8, chunks=8)
    for number in (4, 5):
        job = bad_chunk(job, number, f"--fail-once '{tmp_path / f'failed-{number}'}'")
    report = render_job(
        job, adapter=SlowAdapter(), job_dir=tmp_path, retries=1, retry_delay=0, concurrency=2
    )
    assert [chunk.attempts for chunk in report.chunks] == [1, 1, 1, 1, 2, 2, 1, 1]
    run = last_run(fresh, tmp_path)
    deadline = time.monotonic() + 20
    while len(fresh.task_runs(run)) < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    names = sorted(task["name"] for task in fresh.task_runs(run))
    assert names == ["chunks, 1 of 2", "chunks, 2 of 2"]


@pytest.mark.long
def test_batches_share_task_runs_like_the_whole_job(
    tmp_path: Path, fresh: FarmClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that has a part of a job only has that part of the job's task runs."""
    monkeypatch.setattr(chunk_renderer, "MAX_TASK_RUNS", 4)
    job = small_job(total_frames=8, chunks=8)
    (tmp_path / "job.json").write_text(job.to_json())
    options: dict[str, Any] = {"adapter": LocalAdapter(), "job_dir": tmp_path, "concurrency": 1}
    render_chunks(str(tmp_path / "job.json"), chunk_ids=[0, 1, 2, 3], inputs="digest", **options)
    run = last_run(fresh, tmp_path)
    wait_for(lambda: len(fresh.task_runs(run)) >= 1, 20)
    assert [task["name"] for task in fresh.task_runs(run)] == ["chunks, 1 of 1"]


def test_report_and_progress(tmp_path: Path, fresh: FarmClient) -> None:
    """The run's page shows a progress bar at its end and a report that a person can read."""
    job = small_job("--sleep 1.2", merge_command=None)
    report = render_job(job, adapter=LocalAdapter(), job_dir=tmp_path, concurrency=1)
    run = last_run(fresh, tmp_path)
    assert run.name == "render small"
    artifacts = {item["type"]: item for item in fresh.artifacts(run)}
    assert artifacts["progress"]["data"] == 100.0
    assert artifacts["progress"]["description"] == "3 of 3 chunks rendered"
    markdown = artifacts["markdown"]["data"]
    assert "Not assembled: the job has no merge command" in markdown
    for chunk in report.chunks:
        assert f"| {chunk.id} | {chunk.start_frame} | 6 | {chunk.seconds:.1f} | 1 |" in markdown
    assert report.chunks[0].path.stat().st_size == report.chunks[0].size
    assert report.chunks[0].worker


def test_page_of_a_failed_job(tmp_path: Path, fresh: FarmClient) -> None:
    """The state says why in a line; the page has command, output, and what is done already."""
    script = "print('ffmpeg version 9'); print('  libavutil 61. 1'); raise SystemExit('no light')"
    command = f'{shlex.quote(sys.executable)} -c "{script}"'
    job = with_commands(small_job(), {1: command})
    state = render_job(
        job, adapter=LocalAdapter(), job_dir=tmp_path, concurrency=1, return_state=True
    )
    message = f"chunk 1: its command ended with exit code 1 on {socket.gethostname()}: no light"
    assert (state.is_failed(), state.message) == (True, message)
    with pytest.raises(CommandFailed, match="no light"):
        state.result()
    run = last_run(fresh, tmp_path)
    [page] = pages(fresh, run)
    assert page.startswith(f"# `small`: failed\n\n**{message}**\n\nCommand:\n\n```text\n{command}")
    assert "1 of 3 chunks done, 1 failed attempt" in page
    assert page.count("data:image/jpeg") == 1
    wait_for(lambda: len(fresh.task_runs(run)) == 3, 20)
    states = {task["name"][:7]: task["state_name"] for task in fresh.task_runs(run)}
    assert states == {"chunk 0": "Completed", "chunk 1": "Failed", "chunk 2": "Cancelled"}
    assert not any("Traceback" in line for line in fresh.logs(run))


def test_container_that_cannot_hold_the_chunks(tmp_path: Path) -> None:
    """The job ends at its first chunk, which stays; with a film that can, it is not paid again."""
    options: dict[str, Any] = {"adapter": SlowAdapter(), "job_dir": tmp_path, "concurrency": 1}
    with pytest.raises(StitchInputError, match=r"a \.webm film cannot hold h264 video"):
        render_job(small_job(), stitcher=RemuxStitcher(), output_file="film.webm", **options)
    assert SlowAdapter.began == [0]
    report = render_job(small_job(), stitcher=RemuxStitcher(), output_file="film.mkv", **options)
    assert SlowAdapter.began == [0, 1, 2]
    assert report.film == tmp_path / "film.mkv"


def test_render_some_chunks(tmp_path: Path) -> None:
    """`render-chunks` renders the chunks it is told, and refuses one that is not there."""
    results = render_chunks(small_job(), chunk_ids=[2, 0], adapter=LocalAdapter(), job_dir=tmp_path)
    assert [result.id for result in results] == [0, 2]
    assert sorted(path.name for path in (tmp_path / "chunks").iterdir()) == [
        "00000.mp4",
        "00002.mp4",
    ]
    with pytest.raises(JobError, match="no chunk 9"):
        render_chunks(small_job(), chunk_ids=[9], adapter=LocalAdapter(), job_dir=tmp_path)


def test_symlink_out_of_the_job_folder(tmp_path: Path) -> None:
    """A link that leads out of the job folder is refused before any chunk runs."""
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "chunks").symlink_to(outside)
    with pytest.raises(JobError, match="symbolic link"):
        render_job(small_job(), adapter=SlowAdapter(), job_dir=folder)
    assert not SlowAdapter.began
