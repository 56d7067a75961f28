"""The work-pool templates in `deployments/pools`, on a real server and real workers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from farm_client import FarmClient, free_port
from faulty_proxy import Answer, FaultyProxy, Request, faulty_proxy
from lambda_server import wait_for_answer
from pool_samples import (
    POOLS,
    batches,
    job_of,
    make_pool,
    rendered,
    template,
    working,
)
from prefect.client.orchestration import SyncPrefectClient
from processes_here import wait_for

from prefect_renderfarm.blocks import WorkPoolAdapter
from prefect_renderfarm.flows import render_job

COMMAND = "python -m prefect.flow_engine prefect_renderfarm.flows.render_chunks"
IMAGE = "renderfarm-chunks:latest"
REGISTRY_IMAGE = "REGISTRY/renderfarm-chunks:TAG"
KINDS = sorted(path.stem for path in POOLS.glob("*.json"))


def placeholders(value: Any) -> set[str]:
    """Return the variables that a part of a template names."""
    return set(re.findall(r"\{\{ *(\w+) *\}\}", json.dumps(value)))


def test_there_are_four_templates() -> None:
    """Processes, Docker, ECS and Kubernetes each have one."""
    assert KINDS == ["docker", "ecs", "kubernetes", "process"]


@pytest.mark.parametrize("kind", KINDS)
def test_template_holds_together(api: FarmClient, kind: str) -> None:
    """Each variable that a template uses is there, and the server makes a pool from it."""
    base = template(kind)
    variables = base["variables"]["properties"]
    assert placeholders(base["job_configuration"]) <= variables.keys()
    assert variables["command"]["default"] == COMMAND
    assert variables["env"]["default"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert variables["env"]["default"]["PREFECT_CLIENT_RETRY_EXTRA_CODES"] == "500"
    make_pool(api.farm, kind, f"whole-{kind}")
    with SyncPrefectClient(api.farm.api_url) as client:
        assert client.read_work_pool(f"whole-{kind}").type == kind


def test_containers_are_watched_and_limited() -> None:
    """A container of the Docker pool stays until its exit is seen; CPU and memory are limited."""
    variables = template("docker")["variables"]["properties"]
    given = {"image": IMAGE, "image_pull_policy": "IfNotPresent", "auto_remove": False,
             "stream_output": True}  # fmt: skip
    assert given == {name: variables[name]["default"] for name in given}
    assert "{{ ctx.flow_run.id }}" in variables["name"]["default"]  # no two have one name
    assert variables["mem_limit"]["default"] == "8g"
    assert variables["container_create_kwargs"]["default"]["nano_cpus"] == 4_000_000_000
    assert variables["env"]["default"]["PREFECT_HOME"].startswith("/home/farm/")


@pytest.mark.long
def test_process_pool_renders(api: FarmClient, tmp_path: Path) -> None:
    """A pool from the template renders a job, in batches one after the other."""
    deployment = make_pool(api.farm, "process", "rendering")
    adapter = WorkPoolAdapter(deployment=deployment, max_runs=1, chunks_per_run=3, poll_seconds=0.2)
    job = job_of(6, tmp_path, id="templated")
    with working(api.farm, "process", "rendering"):
        report = render_job(job, adapter=adapter, job_dir=tmp_path, merge=False)
    assert all(chunk.worker for chunk in report.chunks)
    assert rendered(tmp_path) == Counter(range(6))
    names = {run.name for run in batches(api, "templated")}
    assert names == {"chunks 0-2 of templated", "chunks 3-5 of templated"}


@contextmanager
def aws(folder: Path) -> Iterator[FaultyProxy]:
    """Run an emulated AWS in a process of its own, behind a proxy that keeps the requests."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if "AWS" not in name} | {
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "MINISTACK_HOST": "127.0.0.1",
        "IOT_MTLS_ENABLED": "0",
        "DOCKER_HOST": "tcp://127.0.0.1:9",  # a task is accepted, but no container is started
        "TMPDIR": str(folder),
    }
    with (folder / "aws.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ministack"], env=environment, stdout=log, stderr=log, cwd=folder
        )
    try:
        wait_for_answer(f"http://127.0.0.1:{port}/_ministack/health")
        with faulty_proxy(f"http://127.0.0.1:{port}") as proxy:
            yield proxy
    finally:
        process.kill()
        process.wait()


def asked(proxy: FaultyProxy, action: str) -> list[dict[str, Any]]:
    """Return the bodies of the requests for one of ECS' actions that were answered well."""

    def is_it(request: Request) -> bool:
        return request.header("X-Amz-Target").endswith(f".{action}")

    return [json.loads(found.body) for found, end in proxy.requests if is_it(found) and end == 200]


@pytest.mark.long
def test_ecs_pool_starts_a_task(api: FarmClient, tmp_path: Path) -> None:
    """prefect-aws' ECS worker registers the template's task and runs it: image, command, limits."""
    make_pool(api.farm, "ecs", "fargate")
    with aws(tmp_path) as proxy:
        environment = {
            "AWS_ENDPOINT_URL": proxy.url,
            "AWS_ACCESS_KEY_ID": "AKIAFARM",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "PREFECT_INTEGRATIONS_AWS_ECS_OBSERVER_ENABLED": "false",
        }
        with working(api.farm, "ecs", "fargate", environment):
            run = api.submit("render-chunks/fargate", watch=False, job="film-0123456789ab")
            wait_for(lambda: asked(proxy, "RunTask") != [], 90)
            wait_for(lambda: bool(api.flow_run(run.id).infrastructure_pid), 30)
    [definition], [task] = asked(proxy, "RegisterTaskDefinition"), asked(proxy, "RunTask")
    assert definition["family"].startswith("renderfarm-chunks")
    assert (definition["cpu"], definition["memory"]) == ("4096", "16384")
    assert definition["ephemeralStorage"] == {"sizeInGiB": 50}
    assert definition["requiresCompatibilities"] == ["FARGATE"]
    [container] = definition["containerDefinitions"]
    assert container["image"] == REGISTRY_IMAGE
    assert (container["cpu"], container["memory"]) == (4096, 16384)
    assert task["launchType"] == "FARGATE"
    [override] = task["overrides"]["containerOverrides"]
    assert override["name"] == container["name"] == "renderfarm-chunks"
    assert override["command"] == COMMAND.split()
    variables = {item["name"]: item["value"] for item in override["environment"]}
    assert variables["PREFECT__FLOW_RUN_ID"] == str(run.id)
    assert variables["PREFECT_API_URL"] == api.farm.api_url
    assert variables["PREFECT_HOME"] == "/home/farm/.prefect"
    assert variables["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert variables["RENDERFARM_IMAGE"] == REGISTRY_IMAGE


@pytest.mark.containers
def test_kubernetes_pool_starts_a_job(api: FarmClient, tmp_path: Path) -> None:
    """prefect-kubernetes' worker asks for the template's job: image, limits, secret, GPU, node."""
    missing = "needs pip install 'prefect-renderfarm[kubernetes]'"
    pytest.importorskip("prefect_kubernetes", reason=missing)
    make_pool(api.farm, "kubernetes", "cluster")
    asked_for: list[dict[str, Any]] = []

    def answer(request: Request) -> Answer:
        if (request.method, request.path) != ("POST", "/apis/batch/v1/namespaces/renderfarm/jobs"):
            return Answer(404, b"{}")
        asked_for.append(json.loads(request.body))
        named = {"metadata": {"name": "chunks-x7k2p", "namespace": "renderfarm", "uid": "1"}}
        headers = (("Content-Type", "application/json"),)
        return Answer(201, json.dumps(asked_for[-1] | named).encode(), headers)

    spot = [{"key": "spot", "operator": "Exists"}]
    own = {"image": "registry.example.com/farm:1", "gpus": "1", "node_selector": {"gpu": "l4"},
           "tolerations": spot}  # fmt: skip
    with faulty_proxy("http://127.0.0.1:9") as cluster:
        cluster.gate = answer
        named = {"name": "here", "cluster": {"server": cluster.url}, "user": {},
                 "context": {"cluster": "here", "user": "here"}}  # fmt: skip
        (tmp_path / "kubeconfig").write_text(json.dumps(
            {"apiVersion": "v1", "kind": "Config", "current-context": "here",
             "clusters": [named], "contexts": [named], "users": [named]}
        ))  # fmt: skip
        environment = {
            "KUBECONFIG": str(tmp_path / "kubeconfig"),
            "PREFECT_API_KEY": "pnu_of_the_worker",
            "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_ENABLED": "false",
        }
        with (
            working(api.farm, "kubernetes", "cluster", environment),
            SyncPrefectClient(api.farm.api_url) as client,
        ):
            deployed = client.read_deployment_by_name("render-chunks/cluster")
            run = client.create_flow_run_from_deployment(
                deployed.id, parameters={"job": "film-0123456789ab"}, job_variables=own
            )
            wait_for(lambda: bool(api.flow_run(run.id).infrastructure_pid), 90)
    assert api.flow_run(run.id).infrastructure_pid == "renderfarm:chunks-x7k2p"
    [job] = asked_for
    assert "pnu_of_the_worker" not in json.dumps(job)
    assert (job["spec"]["backoffLimit"], job["spec"]["ttlSecondsAfterFinished"]) == (0, 3600)
    pod = job["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "renderfarm-chunks"
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert (pod["nodeSelector"], pod["tolerations"]) == ({"gpu": "l4"}, spot)
    [container], [volume] = pod["containers"], pod["volumes"]
    assert container["image"] == "registry.example.com/farm:1"
    assert container["args"] == COMMAND.split()
    assert container["resources"] == {
        "requests": {"cpu": "4", "memory": "8Gi", "ephemeral-storage": "50Gi"},
        "limits": {"memory": "8Gi", "ephemeral-storage": "50Gi", "nvidia.com/gpu": "1"},
    }
    assert container["envFrom"] == [{"secretRef": {"name": "renderfarm-env", "optional": True}}]
    assert volume == {"name": "scratch", "emptyDir": {"sizeLimit": "50Gi"}}
    assert container["volumeMounts"] == [{"name": "scratch", "mountPath": "/tmp"}]  # noqa: S108
    variables = {item["name"]: item["value"] for item in container["env"]}
    assert variables["PREFECT__FLOW_RUN_ID"] == str(run.id)
    assert variables["PREFECT_API_URL"] == api.farm.api_url
    assert variables["PREFECT_HOME"] == "/home/farm/.prefect"  # and not the worker's
    assert variables["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert variables["RENDERFARM_IMAGE"] == "registry.example.com/farm:1"


def test_kubernetes_files_agree() -> None:
    """Helm's values, the rights and the template name the same accounts and namespace."""
    folder = POOLS.parent / "kubernetes"
    values = yaml.safe_load((folder / "values.yaml").read_text())
    rights = list(yaml.safe_load_all((folder / "rbac.yaml").read_text()))
    names = {(each["kind"], each["metadata"]["name"]) for each in rights}
    variables = template("kubernetes")["variables"]["properties"]
    assert ("ServiceAccount", variables["service_account_name"]["default"]) in names
    assert ("ServiceAccount", values["serviceAccount"]["name"]) in names
    assert {each["metadata"].get("namespace", "renderfarm") for each in rights} == {"renderfarm"}
    assert variables["namespace"]["default"] == "renderfarm"
    assert values["worker"]["config"]["type"] == "kubernetes"
    [role] = [each for each in rights if each["kind"] == "Role"]
    assert all("*" not in rule["verbs"] + rule["resources"] for rule in role["rules"])
