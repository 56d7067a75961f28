"""What is said of the machine on which a run works."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun

from prefect_renderfarm.blocks.runtime import prefect_api
from prefect_renderfarm.blocks.runtime.prefect_api import this_worker

HOST = socket.gethostname()
IN_A_CONTAINER = {"RENDERFARM_IMAGE": "farm:1"}


@pytest.mark.parametrize(
    ("environment", "infrastructure", "expected"),
    [
        ({}, f"{HOST}:4711", f"cloud-1 ({HOST})"),
        (IN_A_CONTAINER, f"http+docker://localhost:{'3f2a9c1b0d4e' + 52 * '0'}",
         "3f2a9c1b0d4e (image farm:1, work pool render)"),
        (IN_A_CONTAINER, f"farm::arn:aws:ecs:eu-central-1:1:task/farm/{'a7c0ffee0123' + 20 * '4'}",
         "a7c0ffee0123 (image farm:1, work pool render)"),
        (IN_A_CONTAINER, "renderfarm:chunks-0-3-of-film-x7k2p",
         f"{HOST} (image farm:1, work pool render)"),
        (IN_A_CONTAINER, None, f"{HOST} (image farm:1, work pool render)"),
    ],
    ids=["process", "container", "ECS task", "pod, by its own name", "not told yet"],
)  # fmt: skip
def test_worker_is_found_by_its_name(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], infrastructure: str | None,
    expected: str,
) -> None:  # fmt: skip
    """A process is named by worker and host, a container by its id, image and work pool."""
    run = FlowRun(
        id=uuid4(), flow_id=uuid4(), infrastructure_pid=infrastructure, work_pool_name="render",
        labels={"prefect.worker.name": "cloud-1"},
    )  # fmt: skip
    context = SimpleNamespace(get=lambda: SimpleNamespace(flow_run=run))
    monkeypatch.setattr(prefect_api, "FlowRunContext", context)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert this_worker() == expected
