"""Deploy to a Prefect server: block types and samples, work pools, deployments, automations.

Again and again without harm: what a person has changed in the UI stays as it is, the schedules and
parameters of deployments, blocks, pools, and automations that are switched off.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentUpdate,
    WorkPoolCreate,
)
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from prefect_renderfarm.blocks import (
    AwsLambdaAdapter,
    FfmpegStitcher,
    HttpAdapter,
    LocalAdapter,
    RemuxStitcher,
    WorkPoolAdapter,
)
from prefect_renderfarm.blocks.errors import SetupError
from prefect_renderfarm.blocks.runtime.prefect_api import call_sync
from prefect_renderfarm.deployments import FILES

BLOCKS = (
    LocalAdapter, AwsLambdaAdapter, HttpAdapter, WorkPoolAdapter, RemuxStitcher, FfmpegStitcher,
)  # fmt: skip
# One of each kind under the name `default`, and one to show a choice.
SAMPLES = {
    "default": (LocalAdapter(), RemuxStitcher(), FfmpegStitcher()),
    "lossless-sound": (RemuxStitcher(audio_codec="flac", faststart=True),),
}
# What everybody fills in, in the UI's form; what only some need comes behind.
_FIRST = ("job", "output_file", "stitcher", "adapter", "storage", "retries", "concurrency")
_BLOCKS_OF_FORM = ("adapter", "stitcher")
_CHUNKS, _COORDINATOR, _LOCAL = "render-chunks", "cloud", "local"


@dataclass(frozen=True)
class Target:
    """Where chunks render, and what the deployments need for it."""

    pool: str | None = None  # of chunks; None: as it is, at first `cloud`
    kind: str = "process"  # its type
    variables: dict[str, Any] = field(default_factory=dict)  # job variables of render-chunks
    notify: str | None = None  # a notification block, such as slack-webhook/ops
    folder: Path | None = None  # of a farm on this machine: its pools work there


def deploy(target: Target, tell: Callable[[str], None]) -> dict[str, str]:
    """Deploy to the server of the current profile; say what is done. Raises: SetupError.

    Return the work pools that need workers, with their types.
    """
    pools = {target.pool or _COORDINATOR: target.kind, _LOCAL: "process"}
    if target.kind != "process":  # render-job itself runs on a process pool
        pools.setdefault(_COORDINATOR, "process")
    with get_client(sync_client=True) as client:
        for name, kind in pools.items():
            tell(f"work pool {name}: {_create_pool(client, name, kind, target.folder)}")
        for block in BLOCKS:
            call_sync(block.register_type_and_schema)
        tell(f"blocks: {len(BLOCKS)} types, {_save_samples(target)} new samples")
        flows: dict[str, Any] = {}
        for wanted in _read("prefect.yaml")["deployments"]:
            path = wanted["entrypoint"]
            flows[path] = flows.get(path) or load_flow_from_entrypoint(path)
            flow = flows[path]
            name = f"{flow.name}/{wanted['name']}"
            tell(f"deployment {name}: {_deploy(client, flow, wanted, target)}")
        named = _automations(client, target.notify)
        for automation in named:
            if client.read_automations_by_name(automation["name"]):
                continue
            client.create_automation(AutomationCore.model_validate(automation))
            tell(f"automation {automation['name']}: created")
    return pools


def _read(name: str) -> Any:
    return yaml.safe_load((FILES / name).read_text(encoding="utf-8"))


def _create_pool(client: SyncPrefectClient, name: str, kind: str, folder: Path | None) -> str:
    """Create a pool from our template or Prefect's own; one of the same type stays as it is."""
    with suppress(ObjectNotFound):
        found = client.read_work_pool(name)
        if found.type != kind:
            raise SetupError(
                f"work pool {name!r} is of type {found.type}, not {kind}: name another pool, or "
                f"give --type {found.type}"
            )
        return "is there"
    file = FILES / "pools" / f"{kind}.json"
    if file.exists():
        template = json.loads(file.read_text(encoding="utf-8"))
    else:
        known = {
            each["type"]: each["default_base_job_configuration"]
            for package in client.read_worker_metadata().values()
            for each in package.values()
        }
        if kind not in known:
            raise SetupError(f"--type {kind}: this server knows {', '.join(sorted(known))}")
        template = known[kind]
    if folder is not None:
        # Its runs work in a folder that outlasts them, and each deployment has its own command.
        properties = template["variables"]["properties"]
        properties["working_dir"]["default"] = str(folder / name)
        properties["command"]["default"] = None
    client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=template))
    return f"created, type {kind}"


def _save_samples(target: Target) -> int:
    """Save the samples that are not there; return how many. A person may have edited others."""
    wanted: list[tuple[str, Any]] = [
        (name, block) for name, blocks in SAMPLES.items() for block in blocks
    ]
    if target.pool is not None and target.kind != "process":
        wanted.append((target.pool, WorkPoolAdapter(deployment=f"{_CHUNKS}/{_COORDINATOR}")))
    new = 0
    for name, block in wanted:
        try:
            call_sync(type(block).load, name)
        except RuntimeError:  # one of another version of this package
            continue
        except ValueError:
            call_sync(block.save, name)
            new += 1
    return new


def _deploy(client: SyncPrefectClient, flow: Any, wanted: dict[str, Any], target: Target) -> str:
    """Create a deployment, or bring an old one up to date as far as the code has changed."""
    pool, variables = wanted["work_pool"]["name"], dict(wanted["work_pool"]["job_variables"])
    found = _find(client, f"{flow.name}/{wanted['name']}")
    renders = pool == _COORDINATOR and (target.kind == "process" or flow.name == _CHUNKS)
    if renders and target.pool is not None:
        pool = target.pool
    elif found is not None and found.work_pool_name is not None:
        pool = found.work_pool_name
    more = target.variables if renders else {}
    schema = parameter_schema(flow).model_dump_for_openapi()
    for name, field_of_form in schema["properties"].items():
        if name in _FIRST:  # the UI's form has the order of these numbers
            field_of_form["position"] = _FIRST.index(name) - len(_FIRST)
    fields = {
        "version": version("prefect-renderfarm"),
        "description": wanted["description"],
        "entrypoint": wanted["entrypoint"],
        "parameter_openapi_schema": schema,
        "pull_steps": [],
        "work_pool_name": pool,
    }
    parameters = {
        name: _block_of_form(client, value) if name in _BLOCKS_OF_FORM else value
        for name, value in wanted.get("parameters", {}).items()
    }
    if found is None:
        client.create_deployment(
            client.create_flow(flow), wanted["name"], tags=wanted["tags"], parameters=parameters,
            schedules=list(map(_schedule, wanted.get("schedules", []))),
            job_variables=variables | more, **fields,
        )  # fmt: skip
        return f"created, on work pool {pool}"
    known = found.job_variables or {}
    # A person's variables count, but for the command, which belongs to the code.
    variables |= {name: known[name] for name in known if name not in ("command", "env")}
    variables |= more | {"env": variables["env"] | (known.get("env") or {})}
    change = DeploymentUpdate(
        tags=sorted({*found.tags, *wanted["tags"]}), parameters=parameters | found.parameters,
        job_variables=variables, **fields,
    )  # fmt: skip
    client.update_deployment(found.id, change)
    return f"is there, on work pool {pool}"


def _block_of_form(client: SyncPrefectClient, name: str) -> Any:
    """Return a reference to a saved block, which the form shows as the one that is chosen."""
    slug, _, document = name.partition("/")
    found = client.read_block_document_by_name(document, slug)
    return {"$ref": {"block_document_id": str(found.id)}}


def _find(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    with suppress(ObjectNotFound):
        return client.read_deployment_by_name(name)
    return None


def _schedule(wanted: dict[str, Any]) -> DeploymentScheduleCreate:
    return DeploymentScheduleCreate(
        schedule=CronSchedule(cron=wanted["cron"], timezone=wanted["timezone"]),
        active=wanted["active"], slug=wanted["slug"], parameters=wanted["parameters"],
    )  # fmt: skip


def _automations(client: SyncPrefectClient, notify: str | None) -> list[dict[str, Any]]:
    """Return the automations that are wanted; those that notify with the block that does it."""
    data = _read("automations.yaml")
    wanted: list[dict[str, Any]] = data["automations"]
    if notify is None:
        return wanted
    slug, _, name = notify.partition("/")
    try:
        document = client.read_block_document_by_name(name, slug)
    except ObjectNotFound:
        raise SetupError(
            f"--notify {notify}: no such block is saved on the server: name one as type/name, such "
            "as slack-webhook/ops (`prefect block ls`)"
        ) from None
    recipes: list[dict[str, Any]] = data["notifications"]
    for recipe in recipes:
        text = recipe.pop("text")
        own: dict[str, str] = {"type": "call-webhook", "payload": json.dumps({"text": text})}
        if slug != "webhook":
            own = {"type": "send-notification", "subject": recipe["description"], "body": text}
        recipe["actions"] = [own | {"block_document_id": str(document.id)}]
    return [*wanted, *recipes]


if __name__ == "__main__":
    import sys
    import time

    with get_client(sync_client=True) as server:
        while server.api_healthcheck() is not None:  # it starts beside this process
            time.sleep(0.2)
    deploy(Target(folder=Path(sys.argv[1])), print)
