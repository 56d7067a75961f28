"""Render the demo film through a farm of two work pools.

    python -m prefect_renderfarm.deployments.demo.run

Uses the farm in the current folder's `.farm`; without one it starts a farm and stops it afterwards.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.sorting import FlowRunSort

from prefect_renderfarm.blocks.processes.programs import find_ffmpeg
from prefect_renderfarm.deployments.farm import Farm
from prefect_renderfarm.flows import RenderJob, plan_job

FRAMES, FPS, CHUNKS, RATE = 240, 24, 10, 48_000
# Waves of light around a point that wanders: each frame depends on its number alone.
_TURN = f"2*PI*(N+{{start}})/{FRAMES}"
_WAVE = f"hypot(X-160-100*sin({_TURN}),Y-90-45*sin(2*{_TURN}))/9-8*{_TURN}"
_RGB = ":".join(f"{name}='128+127*sin({_WAVE}+{n})'" for n, name in enumerate("rgb"))
_PICTURE = f"color=size=320x180:rate={FPS},format=gbrp,geq={_RGB},scale=1280x720"
# A chord that swells, in pieces as long as a frame.
_TONES = "|".join(
    f"0.2*sin({low}*2*PI*t)*sin(PI*t/5)+0.1*sin({high}*2*PI*t)*cos(PI*t/5)"
    for low, high in ((220, 277), (165, 330))
)
_SOUND = (
    f"aevalsrc={_TONES}:sample_rate={RATE}:duration={FRAMES // FPS},"
    f"asetnsamples={RATE // FPS},aselect='between(n,{{start}},{{last}})',asetpts=N/SR/TB"
)


def demo_job() -> RenderJob:
    """Return the job: ten seconds of film in ten chunks."""
    return plan_job(
        FRAMES,
        FPS,
        id="demo",
        command_template=f"{shlex.quote(str(find_ffmpeg()))} -nostdin -v error -y "
        f'-f lavfi -i "{_PICTURE}" -f lavfi -i "{_SOUND}" '
        "-frames:v {count} -c:v libx264 -preset veryfast -crf 18 -pix_fmt yuv420p "
        "-c:a pcm_s16le {output}",
        output_template="chunks/{id:02d}.mov",
        chunks=CHUNKS,
        width=1280,
        height=720,
    )


def main() -> None:
    """Run the demo."""
    folder, film = Path("out/demo").absolute(), Path("out/demo.mp4").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    film.unlink(missing_ok=True)
    job_file = folder / "demo.json"
    job_file.write_text(demo_job().to_json(), encoding="utf-8")
    words = ["render", str(job_file), "-o", str(film), "--stitcher", "lossless-sound"]
    farm = Farm(Path(".farm"))
    started_here = not farm.running()
    try:
        if started_here:
            print("starting a farm: server, two work pools, two workers …", flush=True)
            farm.up()
        print(f"UI: {farm.api_url.removesuffix('/api')}", flush=True)
        print("$ renderfarm", *words, flush=True)
        command = [sys.executable, "-m", "prefect_renderfarm.deployments.cli", *words]
        if subprocess.run(command, env=farm.environment(), check=False).returncode != 0:
            raise SystemExit(f"the demo failed: see {farm.state / 'worker-cloud.log'}")
        with SyncPrefectClient(farm.api_url) as client:
            runs = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=2)
    finally:
        if started_here:
            farm.down()
    for run in reversed(runs):
        worker, state = run.labels.get("prefect.worker.name"), run.state and run.state.name
        print(f"{run.name}: {state}, by worker {worker} of work pool {run.work_pool_name}")


if __name__ == "__main__":
    main()
