"""A pool of real containers: the film, and what a user reads when something is wrong.

`make test-containers` prints what a user reads. The images are built from the Dockerfiles of
`deployments`, on a base image that debootstrap makes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import podman_samples
import pytest
from farm_client import FarmClient
from jobs import with_commands
from media_samples import frame_hashes
from podman_samples import IMAGES, Podman
from pool_samples import batches, working
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling
from prefect_aws.s3 import S3Bucket
from processes_here import wait_for
from run_checks import is_final

from prefect_renderfarm.blocks import (
    LocalAdapter,
    RemuxStitcher,
    RenderFarmError,
    WorkPoolAdapter,
)
from prefect_renderfarm.flows import RenderJob, RenderReport, plan_job, render_job

pytestmark = [
    pytest.mark.containers,
    pytest.mark.skipif(bool(podman_samples.missing()), reason=podman_samples.missing()),
]
POOL = "render"
COMMAND = "python -m prefect.flow_engine prefect_renderfarm.flows.render_chunks"
RENDERER = (
    "ffmpeg -nostdin -hide_banner -loglevel error -y -f lavfi -i testsrc2=size=320x180:rate=24 "
    "-vf trim=start_frame={start}:end_frame={end},setpts=PTS-STARTPTS -c:v libx264 -threads 1 "
    "-pix_fmt yuv420p {output}"
)
IN_CONTAINERS = """
deployments:
  - name: containers
    entrypoint: prefect_renderfarm.flows:render_job
    tags: [renderfarm]
    work_pool:
      name: render
      job_variables:
        command: python -m prefect.flow_engine prefect_renderfarm.flows.render_job
        network_mode: host
"""


def job_of(name: str, chunks: int = 12, wait: float = 0.0) -> RenderJob:
    """Return a job of chunks of four frames, which ffmpeg draws; each waits before it begins."""
    command = f"sh -c 'sleep {wait}; {RENDERER}'" if wait else RENDERER
    return plan_job(total_frames=4 * chunks, fps=24, chunks=chunks, id=name,
                    command_template=command)  # fmt: skip


def tell(case: str, words: object) -> None:
    """Print what a user reads."""
    print(f"\n{case}: {words}")


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """Build the image of chunks, and serve Docker's API."""
    found = Podman(tmp_path_factory.mktemp("podman"))
    found.make_base()
    found.build("chunks")
    with found.serving():
        yield found


@pytest.fixture(scope="module")
def pool(api: FarmClient, podman: Podman) -> Iterator[None]:
    """Deploy as the documentation says, and start a worker of the pool."""
    words = ["deploy", "--pool", POOL, "--type", "docker", "--variable", "network_mode=host"]
    command = [sys.executable, "-m", "prefect_renderfarm.deployments.cli", *words]
    done = subprocess.run(command, env=api.farm.environment(), capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"prefect worker start --pool {POOL} --type docker" in done.stdout
    file = podman.folder / "prefect.yaml"
    file.write_text(IN_CONTAINERS)
    done = api.command("deploy", "-n", "render-job/containers", "--prefect-file", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    with working(api.farm, "docker", POOL, podman.environment):
        yield


@pytest.fixture
def farm(pool: None, bucket: S3Bucket) -> S3Bucket:
    """Return a storage that is saved, and that containers reach."""
    bucket.save("containers", overwrite=True)
    return S3Bucket.load("containers")


def runs_of(chunks: int, **options: Any) -> WorkPoolAdapter:
    """Return an adapter of two containers at once."""
    given = {"deployment": "render-chunks/cloud", "max_runs": 2, "chunks_per_run": chunks}
    return WorkPoolAdapter(**(given | {"poll_seconds": 0.3} | options))


def render(storage: S3Bucket, job: RenderJob, folder: Path, **options: Any) -> RenderReport:
    """Render a job from this machine, its chunks in containers."""
    given = {"adapter": runs_of(3), "stitcher": RemuxStitcher(), "output_file": "film.mp4"}
    return render_job(job, storage=storage, job_dir=folder, **(given | options))


def logs(api: FarmClient, job: str, flow: str = "render") -> str:
    """Return the log of the last run that rendered a job."""
    body = {"flow_runs": {"name": {"any_": [f"{flow} {job}"]}}, "sort": "EXPECTED_START_TIME_DESC"}
    [run, *_] = api._post("/flow_runs/filter", body)
    return "\n".join(api.logs(FlowRun.model_validate(run)))


def local_frames(job: RenderJob, folder: Path) -> list[str]:
    """Render a job here, without a container; return its film's frames."""
    render_job(job, adapter=LocalAdapter(), job_dir=folder, stitcher=RemuxStitcher(),
               output_file=folder / "film.mp4")  # fmt: skip
    return frame_hashes(folder / "film.mp4")


def test_film(api: FarmClient, podman: Podman, farm: S3Bucket, tmp_path: Path) -> None:
    """Twelve chunks in containers, the coordinator here: the film is the local one."""
    job = job_of("film")
    began = time.monotonic()
    report = render(farm, job, tmp_path / "there")
    seconds = time.monotonic() - began
    frames = frame_hashes(tmp_path / "there" / "film.mp4")
    assert frames == local_frames(job, tmp_path / "here")
    workers = {chunk.worker for chunk in report.chunks}
    image = re.escape(f"(image {IMAGES['chunks']}:latest, work pool {POOL})")
    assert all(re.fullmatch(rf"[0-9a-f]{{12}} {image}", worker) for worker in workers)
    tell("film", f"{len(frames)} frames, {seconds:.1f} s, by {', '.join(sorted(workers))}")
    seconds_to_flow = [start_seconds(podman, run) for run in batches(api, "film")]
    size, base = (
        int(podman.run("image", "inspect", "-f", "{{.Size}}", name)) // 1_000_000
        for name in (IMAGES["chunks"], podman_samples.BASE)
    )
    tell("image", f"{size} MB, of which the base image {base} MB")
    tell("start", f"{max(seconds_to_flow):.1f} s at most from a container's start to its flow")


def start_seconds(podman: Podman, run: FlowRun) -> float:
    """Return the seconds from a container's start to the beginning of its flow."""
    name = str(run.infrastructure_pid).rpartition(":")[2]
    started = podman.run("inspect", "-f", "{{.State.StartedAt.UnixMilli}}", name)
    assert run.start_time is not None
    return run.start_time.timestamp() - int(started) / 1000


def test_coordinator_in_a_container(api: FarmClient, farm: S3Bucket, tmp_path: Path) -> None:
    """The coordinator is in a container, too: it assembles the film there, and stores it."""
    runs_of(3).save("containers", overwrite=True)
    job = job_of("contained")
    run = api.submit(
        "render-job/containers", job=job.to_json(), adapter="work-pool-adapter/containers",
        storage="s3-bucket/containers", stitcher="remux-stitcher/default",
        output_file="storage:films/film.mp4",
    )  # fmt: skip
    assert run.state is not None
    assert run.state.is_completed(), run.state.message
    tell("coordinator in a container", run.state.message)
    farm.download_object_to_path("films/film.mp4", tmp_path / "film.mp4")
    assert frame_hashes(tmp_path / "film.mp4") == local_frames(job, tmp_path / "here")


def test_killed_container(api: FarmClient, podman: Podman, farm: S3Bucket, tmp_path: Path) -> None:
    """A container is killed: its unfinished chunks are given out again."""
    job = job_of("killed", 6, wait=4)
    killing = subprocess.Popen(
        [sys.executable, "-c", KILL_ONE], env=os.environ | podman.environment
    )
    report = render(farm, job, tmp_path, output_file="film.mp4")
    assert killing.wait() == 0
    assert len(frame_hashes(tmp_path / "film.mp4")) == 24
    assert max(chunk.attempts for chunk in report.chunks) == 2
    [line] = re.findall(r".* was lost: .*", logs(api, "killed"))
    assert "given out again" in line
    assert re.search(r"\(container [0-9a-f]{12}\).* 137", line)
    tell("killed container", line)


# Waits for a container of the job that has rendered for a while, and kills it.
KILL_ONE = """
import subprocess, time
while not (names := [name for name in subprocess.run(
        ["podman", "ps", "--format", "{{.Names}}"], capture_output=True, text=True,
    ).stdout.split() if "of-killed" in name]):
    time.sleep(0.2)
time.sleep(12)
subprocess.run(["podman", "kill", names[0]], check=True, stdout=subprocess.DEVNULL)
"""


def test_cancel(api: FarmClient, podman: Podman, farm: S3Bucket, tmp_path: Path) -> None:
    """A coordinator in a container is cancelled: nothing is left of it 20 s later, nor a film."""
    runs_of(2).save("containers", overwrite=True)
    job = job_of("cancelled", 4, wait=300)
    run = api.submit(
        "render-job/containers", watch=False, job=job.to_json(), storage="s3-bucket/containers",
        adapter="work-pool-adapter/containers", stitcher="remux-stitcher/default",
        output_file="storage:films/none.mp4",
    )  # fmt: skip

    def rendering() -> list[FlowRun]:
        return [each for each in batches(api, "cancelled") if each.state_name == "Running"]

    wait_for(lambda: len(rendering()) == 2, 120)
    time.sleep(5)
    assert len(podman.running()) == 3
    since = time.monotonic()
    with SyncPrefectClient(api.farm.api_url) as client:
        client.set_flow_run_state(run.id, Cancelling())
    wait_for(lambda: podman.running() == [], 40)
    seconds = time.monotonic() - since
    for each in (run, *batches(api, "cancelled")):
        wait_for(lambda each=each: is_final(api, each), 10)  # type: ignore[misc]
        state = api.flow_run(each.id).state
        assert state is not None
        assert state.name == "Cancelled"
        tell("cancel", f"{api.flow_run(each.id).name}: {state.name}: {state.message}")
    tell("cancel", f"no container is left after {seconds:.1f} s")
    assert seconds <= 20
    client = farm.credentials.get_s3_client()
    kept = client.list_objects_v2(Bucket=farm.bucket_name).get("Contents", [])
    assert not [each["Key"] for each in kept if each["Key"].endswith((".mp4", "report.json"))]


def test_no_storage(api: FarmClient, farm: S3Bucket, tmp_path: Path) -> None:
    """The first container cannot reach the storage: it is lost, and another does its chunks."""
    farm.credentials.aws_client_parameters.endpoint_url = str(
        farm.credentials.aws_client_parameters.endpoint_url
    ).replace("127.0.0.1", "localhost")
    farm.save("cut-off", overwrite=True)
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults").chmod(0o777)
    cut = (
        "sh -c 'mkdir /faults/first 2>/dev/null && export HTTP_PROXY=http://127.0.0.1:9 "
        f"NO_PROXY=127.0.0.1; exec {COMMAND}'"
    )
    variables = {"command": cut, "volumes": [f"{tmp_path / 'faults'}:/faults"]}
    report = render(
        S3Bucket.load("cut-off"), job_of("cut-off", 4), tmp_path / "job", retries=3,
        adapter=runs_of(2, max_runs=1, job_variables=variables),
    )  # fmt: skip
    assert len(frame_hashes(tmp_path / "job" / "film.mp4")) == 16
    assert [chunk.attempts for chunk in report.chunks] == [2, 1, 1, 1]
    [line] = re.findall(r".* was lost: .*", logs(api, "cut-off"))
    assert "Failed to connect to proxy URL" in line
    tell("no storage", line)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python -c \"b'x' * (4 << 30)\"",
         r"chunk 0: its command ended with exit code 137 on [0-9a-f]{12} \(image .*, work pool "
         r"render\): out of memory \(limit 1 GiB\)"),
        ("blender -b scene.blend",
         r"program 'blender' is not on the PATH of worker [0-9a-f]{12} \(image "
         r"renderfarm-chunks:latest, work pool render\)"),
        ("sh -c 'blender -b scene.blend'",
         r"chunk 0: its command ended with exit code 127 on [0-9a-f]{12} \(image "
         r"renderfarm-chunks:latest, work pool render\): .*blender.*not found"),
    ],
    ids=["out of memory", "missing program", "missing in a script"],
)  # fmt: skip
def test_what_a_user_reads(
    farm: S3Bucket, tmp_path: Path, request: pytest.FixtureRequest, command: str, expected: str
) -> None:
    """The job fails with one line that names the reason, the container, its image and its pool."""
    job = with_commands(job_of("wrong", 2), {0: command, 1: command})
    adapter = runs_of(2, job_variables={"mem_limit": "1g", "memswap_limit": "1g"})
    with pytest.raises(RenderFarmError, match=expected) as caught:
        render(farm, job, tmp_path, adapter=adapter)
    assert "\n" not in str(caught.value)
    tell(request.node.callspec.id, caught.value)


def test_full_pool(api: FarmClient, podman: Podman, farm: S3Bucket, tmp_path: Path) -> None:
    """A pool whose only slot another job holds: the log says for what the run waits."""
    with SyncPrefectClient(api.farm.api_url) as client:
        client.request("PATCH", "/work_pools/{name}", path_params={"name": POOL},
                       json={"concurrency_limit": 1})  # fmt: skip
        try:
            holder = client.create_flow_run_from_deployment(
                client.read_deployment_by_name("render-job/containers").id, name="render other",
                parameters={"job": job_of("other", 1, wait=100).to_json(), "merge": False,
                            "storage": "s3-bucket/containers"},
            )  # fmt: skip
            wait_for(lambda: podman.running("other") != [], 60)
            render(farm, job_of("waits", 1), tmp_path, adapter=runs_of(1))
        finally:
            client.request("PATCH", "/work_pools/{name}", path_params={"name": POOL},
                           json={"concurrency_limit": None})  # fmt: skip
            client.set_flow_run_state(holder.id, Cancelling())
    line, *_ = re.findall(rf".*work pool '{POOL}'.*", logs(api, "waits"))
    tell("full pool", line)


@pytest.mark.parametrize(("kind", "module"), [("http", "server"), ("lambda", "handler")])
def test_other_images(podman: Podman, kind: str, module: str) -> None:
    """The images of the HTTP worker and the Lambda function hold what they run; nobody is root."""
    podman.build(kind)
    code = f"import os, shutil, {module}; print(os.getuid(), shutil.which('ffmpeg'))"
    words = ["run", "--rm", "--entrypoint", "python", IMAGES[kind], "-c", code]
    assert podman.run(*words).splitlines()[-1] == "10001 /opt/farm/bin/ffmpeg"
