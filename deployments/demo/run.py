"""Render the demo film through a farm of two work pools, and look at what came of it.

    python -m prefect_renderfarm.deployments.demo.run

Uses the farm that `make up` started; without one it starts a farm and stops it afterwards.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from av import open as open_media
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.sorting import FlowRunSort

from prefect_renderfarm.deployments.demo import julia
from prefect_renderfarm.deployments.farm import PREFECT, Farm
from prefect_renderfarm.flows import RenderJob, plan_job

FRAMES, FPS, CHUNKS = 240, 24, 10
OUT = Path("out").absolute()
FILM = OUT / "demo.mp4"


def demo_job() -> RenderJob:
    """Return the job: ten seconds of film in ten chunks."""
    renderer = Path(julia.__file__).resolve()
    return plan_job(
        FRAMES,
        FPS,
        id="demo",
        command_template=f"'{sys.executable}' '{renderer}' --start {{start}} --count {{count}} "
        f"--total {FRAMES} --fps {FPS} --output {{output}}",
        output_template="chunks/{id:02d}.mov",
        chunks=CHUNKS,
        width=julia.WIDTH,
        height=julia.HEIGHT,
    )


def submit(farm: Farm, job_file: Path) -> None:
    """Submit the job on the command line and wait for its end."""
    parameters = {
        "job": job_file,
        "adapter": "local-adapter/default",
        "stitcher": "remux-stitcher/lossless-sound",
        "output_file": FILM,
        "merge_deployment": "merge-job/local",
    }
    words = [word for name, value in parameters.items() for word in ("-p", f"{name}={value}")]
    command = [*PREFECT, "deployment", "run", "render-job/cloud", *words, "--watch"]
    print("$ prefect", *command[3:], flush=True)
    done = subprocess.run(command, env=farm.environment(), check=False)
    if done.returncode != 0 or not FILM.exists():
        raise SystemExit(f"the demo failed: see {farm.state / 'worker-cloud.log'}")


def show_runs(farm: Farm) -> None:
    """Print which worker of which pool ran the two flows last."""
    with SyncPrefectClient(farm.api_url) as client:
        runs = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=2)
    for run in reversed(runs):
        worker = run.labels.get("prefect.worker.name")
        state = run.state.name if run.state else "unknown"
        print(f"{run.name}: {state}, by worker {worker} of work pool {run.work_pool_name}")


def show_film() -> None:
    """Decode the film, and print how many frames and samples it has."""
    with open_media(str(FILM)) as film:
        frames = sum(1 for _ in film.decode(video=0))
    with open_media(str(FILM)) as film:
        samples = sum(frame.samples for frame in film.decode(audio=0))
    if (frames, samples) != (FRAMES, FRAMES * julia.RATE // FPS):
        raise SystemExit(f"the film has {frames} frames and {samples} samples: something is wrong")
    print(f"{frames} frames, {samples} samples, {FILM.stat().st_size:,} bytes")


def main() -> None:
    """Run the demo."""
    farm = Farm(Path(".farm"))
    borrowed = farm.running()
    folder = OUT / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    FILM.unlink(missing_ok=True)
    job_file = folder / "demo.json"
    job_file.write_text(demo_job().to_json(), encoding="utf-8")
    try:
        if not borrowed:
            print("starting a farm: server, two work pools, two workers …", flush=True)
            farm.up()
        print(f"UI: {farm.api_url.removesuffix('/api')}", flush=True)
        submit(farm, job_file)
        show_runs(farm)
    finally:
        if not borrowed:
            farm.down()
    show_film()
    print(f"film: {FILM.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
