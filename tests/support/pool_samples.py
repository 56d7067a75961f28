"""Work pools made from the templates in `deployments/pools`, for the tests and the benchmarks."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from farm_client import FarmClient
from jobs import small_job
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.utilities.callables import parameter_schema
from repository import ROOT

from prefect_renderfarm.blocks import (
    WorkPoolAdapter,
)
from prefect_renderfarm.deployments.farm import PREFECT, Farm
from prefect_renderfarm.flows import RenderJob, render_job
from prefect_renderfarm.flows.render_chunks import render_chunks

POOLS = ROOT / "deployments" / "pools"


def template(kind: str) -> dict[str, Any]:
    """Return a template, such as that of `process`."""
    found: dict[str, Any] = json.loads((POOLS / f"{kind}.json").read_text())
    return found


def make_pool(farm: Farm, kind: str, name: str, *others: Flow[Any, Any]) -> str:
    """Make a pool from a template, and deployments of `render-chunks` and other flows on it.

    Returns:
        The full name of the deployment of `render-chunks`; all have the pool's name.
    """
    base = template(kind)
    with SyncPrefectClient(farm.api_url) as client:
        client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=base))
        for flow in (render_chunks, *others):
            path = f"prefect_renderfarm.flows.{flow.fn.__name__}"
            client.create_deployment(
                client.create_flow(flow),
                name=name,
                work_pool_name=name,
                entrypoint=path,
                job_variables={"command": f"python -m prefect.flow_engine {path}"},
                pull_steps=[],
                parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
                tags=["renderfarm"],
            )
    return f"render-chunks/{name}"


@contextmanager
def working(
    farm: Farm, kind: str, name: str, environment: Mapping[str, str] | None = None
) -> Iterator[psutil.Process]:
    """Run a worker of a pool in a process of its own, until the block ends."""
    folder = farm.state / name
    folder.mkdir(exist_ok=True)
    with (farm.state / f"worker-{name}.log").open("ab") as log:
        process = psutil.Popen(
            [*PREFECT, "worker", "start", "--pool", name, "--type", kind,
             "--name", f"{name}-1", "--install-policy", "never"],
            env=farm.environment() | {"PREFECT_WORKER_QUERY_SECONDS": "0.5"} | (environment or {}),
            cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield process
    finally:
        # Asked to end, a worker lingers for up to a minute.
        tree = [process, *process.children(recursive=True)] if process.is_running() else []
        for member in tree:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(tree, timeout=10)


def job_of(chunks: int, folder: Path, extra: str = "", **options: Any) -> RenderJob:
    """Return a job of chunks of four frames, whose renderer notes each chunk that it begins."""
    note = f"--note '{folder / 'note'}' {extra}"
    return small_job(note, total_frames=4 * chunks, chunks=chunks, **options)


def rendered(folder: Path) -> Counter[int]:
    """Return how often each chunk of `job_of` was begun."""
    file = folder / "note"
    lines = file.read_text().split() if file.exists() else []
    return Counter(int(first) // 4 for first in lines)


def batches(api: FarmClient, tag: str) -> list[FlowRun]:
    """Return the `render-chunks` runs of a job, in the order in which they were started."""
    body = {"flow_runs": {"tags": {"all_": [f"job:{tag}"]}}, "sort": "EXPECTED_START_TIME_ASC"}
    runs = [FlowRun.model_validate(item) for item in api._post("/flow_runs/filter", body)]
    return [run for run in runs if run.name.startswith("chunk")]


def process_of(run: FlowRun) -> psutil.Process:
    """Return the process of a run."""
    return psutil.Process(int(str(run.infrastructure_pid).rsplit(":", 1)[-1]))


def two_runs(**options: Any) -> WorkPoolAdapter:
    """Return an adapter of two runs at once that looks often."""
    return WorkPoolAdapter(**({"max_runs": 2, "poll_seconds": 0.2} | options))


def in_background(job: RenderJob, **options: Any) -> Any:
    """Start to render a job in a thread of this process; return the future of its report."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(render_job, job, merge=False, **options)
    pool.shutdown(wait=False)
    return future
