"""Peak memory of the processes that send and assemble a film of 4 GB, from storage to film.

What is measured are the flow runs' own processes, as a work pool starts them: one of
`render-chunks` that sends the chunks, one of `merge-job` that fetches and assembles them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from farm_client import PORT, FarmClient
from stitching import FPS
from storage_samples import serving

from prefect_renderfarm.blocks.processes.programs import find_ffmpeg
from prefect_renderfarm.deployments.farm import Farm
from prefect_renderfarm.flows import plan_job

COUNT, FRAMES, MEGABYTES = 32, 82, 129
MOST_MEGABYTES = 300
# Of the film's size: the storage, the copies of the chunks, the film, and some for the rest.
ROOM = 3.2


def bench_film_memory(folder: Path) -> None:
    """Render, send, fetch and assemble chunks by flow runs on the farm's two pools."""
    size = COUNT * MEGABYTES * 1_000_000
    if (free := shutil.disk_usage(folder).free) < ROOM * size:
        print(f"film-memory: left out, {free:,} bytes free are too few: set TMPDIR")
        return
    chunk = make_chunk(folder / "chunk.mkv")
    command = f"cp '{chunk}' {{output}}"
    job = plan_job(COUNT * FRAMES, FPS, chunks=COUNT, command_template=command, id="memory",
                   output_template="chunks/{id}.mkv")  # fmt: skip
    farm = Farm(folder / "farm")
    with serving(folder / "server") as s3:
        try:
            farm.up(port=PORT)
            s3.new_bucket().save("film-memory")
            client = FarmClient(farm)
            sent = peak(
                client, "render-chunks/cloud", job=json.loads(job.to_json()),
                storage="s3-bucket/film-memory", concurrency=1,
            )  # fmt: skip
            made = peak(
                client, "merge-job/local", job=job.key, storage="s3-bucket/film-memory",
                stitcher="remux-stitcher/default", output_file=folder / "film.mkv",
                job_dir=folder / "job",
            )  # fmt: skip
        finally:
            farm.down()
    film = (folder / "film.mkv").stat().st_size
    print(f"\na film of {film / 1e6:,.0f} MB, of {COUNT} chunks through the storage, peak memory")
    for name, found in {"render-chunks, one chunk at a time": sent, "merge-job": made}.items():
        print(f"  {name:<36} {found:4.0f} MB   (aim: at most {MOST_MEGABYTES})")


def make_chunk(path: Path) -> Path:
    """Encode a noisy test picture, each frame by itself."""
    source = f"testsrc2=s=1920x1080:r={FPS},noise=alls=40:allf=t"
    subprocess.run(
        [find_ffmpeg(), "-v", "error", "-nostdin", "-y", "-f", "lavfi", "-i", source,
         "-frames:v", str(FRAMES), "-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj420p", path],
        check=True,
    )  # fmt: skip
    return path


def peak(client: FarmClient, deployment: str, **parameters: Any) -> float:
    """Run a deployment, and return the peak memory of its run's process, in megabytes."""
    run = client.submit(deployment, watch=False, **parameters)
    most = 0
    while not (run.state and run.state.is_final()):
        run = client.flow_run(run.id)
        if run.infrastructure_pid:
            process = int(str(run.infrastructure_pid).rsplit(":", 1)[-1])
            most = max(most, peak_until_it_ends(process))
        time.sleep(0.1)
    assert run.state.is_completed(), run.state.message
    assert most, "its process was not seen"
    return most / 1000


def peak_until_it_ends(process: int) -> int:
    """Return the highest memory of a process, in kilobytes; proc(5), VmHWM."""
    most = 0
    while psutil.pid_exists(process):
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            break
        found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
        if not found:  # it has ended, and nobody has asked how
            break
        most = max(most, *found)
        time.sleep(0.05)
    return most


BENCHES: dict[str, Callable[[Path], None]] = {"film-memory": bench_film_memory}
