"""What a person gets wrong: the terminal's last line, the run's page, and what it has cost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from farm_client import FarmClient
from jobs import save_job, small_job, with_commands
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import BlockDocumentUpdate, WorkPoolCreate
from prefect.client.schemas.objects import FlowRun

from prefect_renderfarm.blocks import RemuxStitcher
from prefect_renderfarm.flows import RenderJob

RENDERFARM = [sys.executable, "-m", "prefect_renderfarm.deployments.cli"]
FILM = ["-o", "film.mp4"]


def render(
    api: FarmClient, folder: Path, *words: str, until: Callable[[list[str]], bool] | None = None
) -> list[str]:
    """Type `renderfarm render`; press Ctrl-C once `until` is true of its lines; return these."""
    with subprocess.Popen(
        [*RENDERFARM, "render", *words], cwd=folder, env=api.farm.environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line.rstrip())
            if until is not None and until(lines):
                until = None
                time.sleep(1)
                process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
    return [line for line in lines if "EventsWorker" not in line]


def page_of(api: FarmClient, lines: list[str]) -> tuple[FlowRun, list[str]]:
    """Return the run of which the last line tells, and its pages."""
    run = api.flow_run(lines[-1].rpartition("/")[2])
    return run, [item["data"] for item in api.artifacts(run) if item["type"] == "markdown"]


def job_of(case: str) -> RenderJob:
    """Return a job with the mistake in it, if the mistake is in the job."""
    job = small_job()
    command = job.chunks[1].command
    wrong = {
        "typo in the command": command.replace("--count", "--cuont"),
        "missing program": "blendr -b scene.blend",
        "too few frames": command.replace("--count 6", "--count 5"),
    }
    return with_commands(job, {1: wrong[case]}) if case in wrong else job


@pytest.mark.long
@pytest.mark.parametrize(
    ("case", "words", "line"),
    [
        ("wrong slug", [*FILM, "--stitcher", "remux-stitcher/nope"], "no block has this name"),
        ("typo in the path", [], "job 'jbo.json': there is no such file in '/"),
    ],
)
def test_refused_by_the_command(
    api: FarmClient, tmp_path: Path, case: str, words: list[str], line: str
) -> None:
    """No run is made."""
    save_job(tmp_path, job_of(case))
    [told] = render(api, tmp_path, "jbo.json" if "path" in case else "job.json", *words)
    assert told.startswith("renderfarm: ")
    assert line in told


@pytest.mark.long
@pytest.mark.parametrize(
    ("case", "words", "line"),
    [
        ("missing folder", ["-o", "/no/such/film.mp4"], "folder '/no/such' does not exist: create"),
        ("missing program", FILM, "chunk 1: program 'blendr' is not on the PATH of worker cloud-1"),
        ("unwritable film", ["-o", "/proc/film.mp4"], "folder '/proc' cannot be written to"),
        ("wrong ending", ["-o", "film.xyz"], "film.xyz': the ending must be one of .mp4"),
        ("no stitcher", [*FILM, "--set", "stitcher=null"], "no stitcher, and the job has no merge"),
        ("bad block", [*FILM, "--stitcher", "mistaken"], "remux-stitcher/mistaken': the saved "
         "block does not fit this version: audio_bitrate: Input should be greater than 0"),
    ],
)  # fmt: skip
def test_refused_by_the_check(
    api: FarmClient, tmp_path: Path, case: str, words: list[str], line: str
) -> None:
    """Nothing is rendered; the line is the state's message."""
    save_job(tmp_path, job_of(case))
    if case == "bad block":
        with SyncPrefectClient(api.farm.api_url) as client:
            document = RemuxStitcher().save("mistaken", overwrite=True)
            client.update_block_document(
                document, BlockDocumentUpdate(data={"audio_bitrate": -5}, merge_existing_data=True)
            )
    lines = render(api, tmp_path, "job.json", *words)
    failed, _ = lines[-2:]
    assert failed.startswith("failed: ")
    assert line in failed
    run, _ = page_of(api, lines)
    assert run.state is not None
    assert run.state.message == failed.removeprefix("failed: ")
    assert not (tmp_path / "chunks").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("typo in the command", "the following arguments are required: --count"),
        ("too few frames", "its file 'chunks/00001.mp4' has 5 frames, not the planned 6"),
    ],
)
def test_found_by_the_first_attempt(api: FarmClient, tmp_path: Path, case: str, line: str) -> None:
    """The page has the command and what it printed."""
    job = job_of(case)
    save_job(tmp_path, job)
    lines = render(api, tmp_path, "job.json", *FILM)
    failed, _ = lines[-2:]
    assert failed.startswith("failed: chunk 1: ")
    assert line in failed
    _, [page] = page_of(api, lines)
    assert page.startswith("# `small`: failed\n\n**chunk 1: ")
    assert job.chunks[1].command in page
    assert "Run the job again" in page


@pytest.mark.long
def test_relative_path(api: FarmClient, tmp_path: Path) -> None:
    """`prefect deployment run` does not make it absolute: the run says why that is needed."""
    run = api.submit("render-job/cloud", job="job.json", output_file="film.mp4")
    assert run.state is not None
    assert "relative path" in (run.state.message or "")
    assert "absolute path" in (run.state.message or "")


@pytest.mark.long
def test_no_worker(api: FarmClient, tmp_path: Path) -> None:
    """The line names the pool, and the fix; Ctrl-C takes the run back at once."""
    save_job(tmp_path, small_job())
    with SyncPrefectClient(api.farm.api_url) as client:
        deployment = client.read_deployment_by_name("render-job/cloud")
        pool = client.create_work_pool(
            WorkPoolCreate(name="abandoned", type="process", base_job_template={})
        )
        own = client.create_deployment(deployment.flow_id, "abandoned", work_pool_name=pool.name)
        try:
            words = ["job.json", *FILM, "--deployment", "render-job/abandoned"]
            lines = render(api, tmp_path, *words, until=lambda lines: "is up" in lines[-1])
        finally:
            client.delete_deployment(own)
            client.delete_work_pool("abandoned")
    waiting = "scheduled, no worker of work pool 'abandoned' is up: `prefect worker start --pool"
    assert any(waiting in line for line in lines)
    assert lines[-2] == "cancelled: cancelled by Ctrl-C"


@pytest.mark.long
def test_cancelled(api: FarmClient, tmp_path: Path) -> None:
    """The page says what is done, and that the rest can be rendered later."""
    save_job(tmp_path, with_commands(small_job(), {2: "sleep 100"}))
    words = ["job.json", *FILM]
    lines = render(api, tmp_path, *words, until=lambda lines: "2 of 3 chunks" in lines[-1])
    assert lines[-2].startswith("cancelled: ")
    run, [page] = page_of(api, lines)
    assert run.state is not None
    assert run.state.is_cancelled()
    assert page.startswith("# `small`: cancelled\n")
    assert "2 of 3 chunks done" in page
    assert "Run the job again: the chunks that are done are not rendered a second time." in page
