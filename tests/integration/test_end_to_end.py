"""The farm as a user meets it: the command line, two pools, two workers in their own processes."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from farm_client import FarmClient
from jobs import RENDERER, save_job, small_job, with_commands
from media_samples import frame_hashes, samples_of, sweep
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from processes_here import gone, wait_for
from run_checks import STITCH, assert_failed, assert_film, is_final

from prefect_renderfarm.flows import RenderJob


def worker_of(run: FlowRun) -> str:
    """Return the name of the worker that ran a flow run."""
    return str(run.labels["prefect.worker.name"])


@pytest.mark.long
def test_render_on_one_pool_assemble_on_another(api: FarmClient, tmp_path: Path) -> None:
    """Chunks are rendered by the worker of `cloud`, the film is put together by that of `local`."""
    job = small_job("--audio pcm_s16le", output_template="chunks/{id}.mkv")
    lossless = {"stitcher": "remux-stitcher/lossless-sound", "output_file": "film.mp4"}
    run = api.type_and_watch("render-job/cloud", job=save_job(tmp_path, job), **lossless)
    assert run.state is not None
    assert run.state.is_completed()
    assert run.name == "render job"
    [merge] = api.children(run)
    assert merge.name == "merge small"
    assert (run.work_pool_name, merge.work_pool_name) == ("cloud", "local")
    assert (worker_of(run), worker_of(merge)) == ("cloud-1", "local-1")
    assert "job:small" in run.tags
    assert "job:small" in merge.tags
    # One that has a tag asks the server for a slot, and an error of the server then fails the job.
    assert [task["tags"] for task in api.task_runs(run)] == [[], [], []]
    assert_film(tmp_path, job)
    assert np.array_equal(samples_of(tmp_path / "film.mp4"), sweep(0, 36_000))
    assert any("chunk 1 | rendering 6 frames" in line for line in task_logs(api, run))


def task_logs(api: FarmClient, run: FlowRun) -> list[str]:
    """Return a run's log lines, once they have arrived."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        lines = api.logs(run)
        if any("Finished in state" in line for line in lines):
            return lines
        time.sleep(0.5)
    return api.logs(run)


@pytest.mark.long
def test_relative_path_is_refused(api: FarmClient, tmp_path: Path) -> None:
    """A relative path would mean the worker's folder: the run fails and says so."""
    save_job(tmp_path, small_job())
    run = api.type_and_watch("render-job/cloud", job="job.json")
    assert_failed(run, "'job.json'", "relative path", "worker's folder", "absolute path")


def helios_job() -> dict[str, Any]:
    """Return a job as Helios' CLI emits it: relative paths, no id, a merge command."""
    command = f"'{sys.executable}' '{RENDERER}' --fps 30 --output output_part_{{n}}.mp4"
    chunks = [
        {
            "id": n,
            "startFrame": n * 5,
            "frameCount": 5,
            "outputFile": f"output_part_{n}.mp4",
            "command": command.format(n=n) + f" --start {n * 5} --count 5",
        }
        for n in range(3)
    ]
    return {
        "metadata": {"totalFrames": 15, "fps": 30, "width": 160, "height": 96, "duration": 0.5},
        "chunks": chunks,
        "mergeCommand": "ffmpeg -y -f concat -i list.txt -c copy output.mp4",
    }


@pytest.mark.long
def test_helios_job_with_its_merge_command(api: FarmClient, tmp_path: Path) -> None:
    """A job as Helios emits it runs as it is, `ffmpeg` in its merge command included."""
    (tmp_path / "list.txt").write_text("".join(f"file output_part_{n}.mp4\n" for n in range(3)))
    path = tmp_path / "helios.json"
    path.write_text(json.dumps(helios_job()))
    run = api.type_and_watch("render-job/cloud", job=path, merge_adapter="local-adapter/default")
    assert run.state is not None
    assert run.state.is_completed(), run.state.message
    assert [child.work_pool_name for child in api.children(run)] == ["local"]
    assert len(frame_hashes(tmp_path / "output.mp4")) == 15


@pytest.mark.long
def test_neither_stitcher_nor_merge_command(api: FarmClient, tmp_path: Path) -> None:
    """The chunks are the result; no merge run is started."""
    job = small_job()
    run = api.submit("render-job/cloud", job=save_job(tmp_path, job))
    assert run.state is not None
    assert run.state.is_completed()
    assert api.children(run) == []
    assert all((tmp_path / chunk.output_file).is_file() for chunk in job.chunks)


def bad_jobs() -> dict[str, tuple[dict[str, Any], dict[str, str], list[str]]]:
    """Return jobs that are wrong, the parameters to submit them with, and what must be said."""
    good = json.loads(small_job().to_json())
    gap, outside = json.loads(json.dumps(good)), json.loads(json.dumps(good))
    gap["chunks"][1]["startFrame"] = 7
    outside["chunks"][1]["outputFile"] = "../x.mp4"
    return {
        "gap": (gap, STITCH, ["chunk 1", "gap", "6"]),
        "outside": (outside, STITCH, ["chunk 1", "../x.mp4", "outside the job folder"]),
        "no output": (good, {"stitcher": "remux-stitcher/default"}, ["output_file"]),
    }


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long) for name in ("gap", "outside", "no output")],
)
def test_bad_jobs_fail_before_any_chunk(api: FarmClient, tmp_path: Path, name: str) -> None:
    """A bad job fails within seconds with one clear line, and no chunk runs."""
    data, parameters, words = bad_jobs()[name]
    path = tmp_path / "job.json"
    path.write_text(json.dumps(data))
    run = api.submit("render-job/cloud", job=path, **parameters)
    assert_failed(run, *words)
    assert run.total_run_time.total_seconds() < 10
    assert api.task_runs(run) == []
    assert [file.name for file in tmp_path.iterdir()] == ["job.json"]


@pytest.mark.long
def test_failure_of_assembly_reaches_the_job(api: FarmClient, tmp_path: Path) -> None:
    """When the run on the other pool fails, the job fails with its message."""
    job = small_job(merge_command=f"'{sys.executable}' -c \"raise SystemExit('no glue')\"")
    run = api.submit("render-job/cloud", job=save_job(tmp_path, job))
    assert_failed(run, "merge-job run 'merge small'", "'local'", "no glue")


@pytest.mark.long
def test_two_jobs_at_once(api: FarmClient, tmp_path: Path) -> None:
    """Two films at once, in one folder, do not disturb each other."""
    jobs = [
        small_job(id=name, total_frames=12, output_template=f"{name}/{{id}}.mp4")
        for name in ("first", "second")
    ]

    def submit(job: RenderJob) -> FlowRun:
        path = save_job(tmp_path, job, f"{job.id}.json")
        return api.submit(
            "render-job/cloud",
            job=path,
            stitcher="ffmpeg-stitcher/default",
            output_file=f"{job.id}.mp4",
        )

    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(submit, jobs))
    for run, job in zip(runs, jobs, strict=True):
        assert run.state is not None
        assert run.state.is_completed(), run.state.message
        assert_film(tmp_path, job, f"{job.id}.mp4")


@pytest.mark.long
def test_parameters_as_the_ui_sends_them(api: FarmClient, tmp_path: Path) -> None:
    """References to saved blocks, by id and by name, are taken as the UI and the API send them."""
    job = small_job()
    with SyncPrefectClient(api.farm.api_url) as client:
        deployment = client.read_deployment_by_name("render-job/cloud")
        stitcher = client.read_block_document_by_name("default", "remux-stitcher")
        run = client.create_flow_run_from_deployment(
            deployment.id,
            parameters={
                "job": json.loads(job.to_json()),
                "job_dir": str(tmp_path),
                "adapter": {"$ref": {"block_document_slug": "local-adapter/default"}},
                "stitcher": {"$ref": {"block_document_id": str(stitcher.id)}},
                "output_file": "film.mp4",
                "merge_deployment": "merge-job/local",
            },
        )
    wait_for(lambda: is_final(api, run), 60)
    assert api.flow_run(run.id).state_name == "Completed"
    assert_film(tmp_path, job)


def start_long_job(api: FarmClient, folder: Path) -> tuple[FlowRun, list[int]]:
    """Submit a job whose chunks sleep, each with a child; return its run and their process ids."""
    job = small_job(total_frames=6, chunks=6)
    commands = {
        chunk.id: f"{chunk.command} --sleep 300 --child '{folder / f'pids-{chunk.id}'}'"
        for chunk in job.chunks
    }
    path = save_job(folder, with_commands(job, commands))
    run = api.submit("render-job/cloud", job=path, concurrency=2, watch=False)
    files = [folder / "pids-0", folder / "pids-1"]
    wait_for(lambda: all(file.exists() and " " in file.read_text() for file in files), 60)
    return run, [int(pid) for file in files for pid in file.read_text().split()]


@pytest.mark.long
def test_cancel_ends_all_children(api: FarmClient, tmp_path: Path) -> None:
    """Cancelling on the command line ends what the job started, within seconds."""
    run, pids = start_long_job(api, tmp_path)
    assert api.command("flow-run", "cancel", str(run.id)).returncode == 0
    for pid in pids:
        wait_for(lambda pid=pid: gone(pid), 20)  # type: ignore[misc]
    wait_for(lambda: is_final(api, run), 20)
    assert api.flow_run(run.id).state_name == "Cancelled"
    assert not (tmp_path / "pids-2").exists()
    assert list((tmp_path / "chunks").iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize("kill", [False, True], ids=["SIGTERM", "SIGKILL"])
def test_a_worker_that_ends_leaves_nothing_behind(
    own_farm: FarmClient, tmp_path: Path, kill: bool
) -> None:
    """A worker that is ended in the middle of a chunk leaves no process and no broken file."""
    run, pids = start_long_job(own_farm, tmp_path)
    worker = own_farm.farm.process("worker-cloud")
    tree = worker.children(recursive=True)
    if kill:
        worker.kill()
    else:
        end_with_sigterm(worker)
    psutil.wait_procs([*tree, worker], timeout=60)
    assert [process for process in tree if process.is_running()] == []
    assert all(gone(pid) for pid in pids)
    assert list((tmp_path / "chunks").iterdir()) == []
    if kill:
        assert is_final(own_farm, run)


def end_with_sigterm(worker: psutil.Process) -> None:
    """End a worker as an init system does; Prefect's worker sometimes misses the first signal."""
    for _ in range(2):
        worker.terminate()
        if psutil.wait_procs([worker], timeout=15)[0]:
            return
    raise AssertionError("the worker ignores SIGTERM")
