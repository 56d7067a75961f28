"""What the start of flow runs takes of the time of a job on a work pool."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from farm_client import PORT
from jobs import clip_command
from pool_samples import make_pool, working
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

from prefect_renderfarm.blocks import WorkPoolAdapter
from prefect_renderfarm.deployments.farm import Farm
from prefect_renderfarm.flows import plan_job, render_job

CHUNKS, WIDTH = 200, 2


def bench_work_pool(folder: Path) -> None:
    """Render many short chunks by two runs at once; compare with the chunks' own time by two."""
    template = clip_command().replace("{output}", "{output} --sleep 1")
    job = plan_job(CHUNKS * 6, 24, chunks=CHUNKS, command_template=template, id="bench-pool")
    farm = Farm(folder / "farm")
    try:
        farm.up(port=PORT)
        deployment = make_pool(farm, "process", "bench")
        adapter = WorkPoolAdapter(deployment=deployment, max_runs=WIDTH, poll_seconds=0.5)
        with working(farm, "process", "bench"):
            report = render_job(job, adapter=adapter, job_dir=folder / "job", merge=False)
        of_the_pool = DeploymentFilter(name=DeploymentFilterName(any_=["bench"]))
        with SyncPrefectClient(farm.api_url) as client:
            runs = client.count_flow_runs(deployment_filter=of_the_pool)
    finally:
        farm.down()
    busy = sum(chunk.seconds for chunk in report.chunks) / WIDTH
    share = 100 * (1 - busy / report.render_seconds)
    print(f"{CHUNKS} chunks on a process pool, {WIDTH} runs at once, {runs} runs in all")
    print(f"  {'wall time':34}{report.render_seconds:8.1f} s")
    print(f"  {f'chunks added up, divided by {WIDTH}':34}{busy:8.1f} s")
    print(f"  {'start-up and all else':34}{share:8.1f} %   (aim: at most 10 %)")


BENCHES: dict[str, Callable[[Path], None]] = {"work-pool": bench_work_pool}
