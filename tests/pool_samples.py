"""Work pools made from the templates in `deployments/pools`, for the tests and the benchmarks."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from farm import PREFECT, Farm
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.utilities.callables import parameter_schema

from prefect_renderfarm.flows import render_chunks

POOLS = Path(__file__).resolve().parent.parent / "deployments" / "pools"


def template(kind: str) -> dict[str, Any]:
    """Return a template, such as that of `process`."""
    found: dict[str, Any] = json.loads((POOLS / f"{kind}.json").read_text())
    return found


def make_pool(farm: Farm, kind: str, name: str) -> str:
    """Make a pool from a template, and a deployment of `render-chunks` on it; both have one name.

    Returns:
        The deployment's full name.
    """
    base = template(kind)
    with SyncPrefectClient(farm.api_url) as client:
        client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=base))
        client.create_deployment(
            client.create_flow(render_chunks),
            name=name,
            work_pool_name=name,
            entrypoint="prefect_renderfarm.flows.render_chunks",
            pull_steps=[],
            parameter_openapi_schema=parameter_schema(render_chunks).model_dump_for_openapi(),
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
