"""Deploy to a Prefect server: block types and samples, work pools, deployments, automations.

Again and again without harm: what a person has changed in the UI stays as it is, the schedules and
parameters of deployments, blocks, pools, and automations that are switched off.
"""

from __future__ import annotations

import json
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
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.schedules import Schedule
from prefect.types.names import BlockDocumentName
from prefect.utilities.callables import parameter_schema
from pydantic import TypeAdapter, ValidationError

import prefect_renderfarm.blocks as blocks
from prefect_renderfarm.blocks.errors import SetupError
from prefect_renderfarm.blocks.runtime.prefect_api import call_sync
from prefect_renderfarm.deployments import FILES

BLOCKS = (
    blocks.LocalAdapter, blocks.AwsLambdaAdapter, blocks.HttpAdapter, blocks.WorkPoolAdapter,
    blocks.RemuxStitcher, blocks.FfmpegStitcher,
)  # fmt: skip
# One of each kind under the name `default`, and one to show a choice.
SAMPLES: dict[str, tuple[Any, ...]] = {
    "default": (blocks.LocalAdapter(), blocks.RemuxStitcher(), blocks.FfmpegStitcher()),
    "lossless-sound": (blocks.RemuxStitcher(audio_codec="flac", faststart=True),),
}
# What everybody fills in, in the UI's form; what only some need comes behind.
_FIRST = ("job", "output_file", "stitcher", "adapter", "storage", "retries", "concurrency")
_COORDINATOR, _LOCAL = "cloud", "local"


@dataclass(frozen=True)
class Target:
    """Where chunks render, and what the deployments need for it."""

    pool: str | None = None  # of chunks; None: as it is, at first `cloud`
    kind: str = "process"  # its type
    variables: dict[str, Any] = field(default_factory=dict)  # job variables of render-chunks
    notify: str | None = None  # a notification block, such as slack-webhook/ops
    folder: Path | None = None  # of a farm on this machine: its pools work there


def deploy(target: Target) -> dict[str, str]:
    """Deploy to the server of the current profile; print what is done. Raises: SetupError.

    Return the work pools that need workers, with their types.
    """
    pools = {target.pool or _COORDINATOR: target.kind, _LOCAL: "process"}
    if target.kind != "process":  # render-job itself runs on a process pool
        pools.setdefault(_COORDINATOR, "process")
        try:
            TypeAdapter(BlockDocumentName).validate_python(target.pool or _COORDINATOR)
        except ValidationError:
            raise SetupError(
                f"--pool {target.pool}: the block for it would have that name: give the pool one "
                "of lowercase letters, digits and dashes"
            ) from None
    with get_client(sync_client=True) as client:
        for name, kind in pools.items():
            print(f"work pool {name}: {_create_pool(client, name, kind, target.folder)}")
        for block in BLOCKS:
            call_sync(block.register_type_and_schema)
        print(f"blocks: {len(BLOCKS)} types, {_save_samples(target)} new samples")
        for wanted in _read("prefect.yaml")["deployments"]:
            flow: Any = load_flow_from_entrypoint(wanted["entrypoint"])
            name = f"{flow.name}/{wanted['name']}"
            print(f"deployment {name}: {_deploy(client, flow, name, wanted, target)}")
        for automation in _automations(client, target.notify):
            if not client.read_automations_by_name(automation["name"]):
                client.create_automation(AutomationCore.model_validate(automation))
                print(f"automation {automation['name']}: created")
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
        packages = client.read_worker_metadata().values()
        workers = [worker for package in packages for worker in package.values()]
        known = {each["type"]: each["default_base_job_configuration"] for each in workers}
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
    wanted = [(name, block) for name, samples in SAMPLES.items() for block in samples]
    if target.pool is not None and target.kind != "process":
        wanted.append((target.pool, blocks.WorkPoolAdapter()))
    new = 0
    for name, block in wanted:
        with suppress(ValueError):  # the name is taken
            call_sync(block.save, name)
            new += 1
    return new


def _deploy(
    client: SyncPrefectClient, flow: Any, name: str, wanted: dict[str, Any], target: Target
) -> str:
    """Create a deployment, or bring an old one up to date as far as the code has changed."""
    pool, variables = wanted["work_pool"]["name"], dict(wanted["work_pool"]["job_variables"])
    found = None
    with suppress(ObjectNotFound):
        found = client.read_deployment_by_name(name)
    renders = pool == _COORDINATOR and (target.kind == "process" or flow.name == "render-chunks")
    if renders and target.pool is not None:
        pool = target.pool
    elif found is not None and found.work_pool_name is not None:
        pool = found.work_pool_name
    more = target.variables if renders else {}
    schema = parameter_schema(flow).model_dump_for_openapi()
    for position, parameter in enumerate(_FIRST, -len(_FIRST)):
        if parameter in schema["properties"]:  # the UI's form has the order of these numbers
            schema["properties"][parameter]["position"] = position
    fields = {
        "version": version("prefect-renderfarm"),
        "description": wanted["description"],
        "entrypoint": wanted["entrypoint"],
        "parameter_openapi_schema": schema,
        "pull_steps": [],
        "work_pool_name": pool,
    }
    # A reference to a saved block, which the form shows as the one that is chosen.
    parameters = {
        parameter: {"$ref": {"block_document_id": _block_id(client, value)}}
        if parameter in ("adapter", "stitcher") else value
        for parameter, value in wanted.get("parameters", {}).items()
    }  # fmt: skip
    if found is None:
        schedules = [Schedule(**each) for each in wanted.get("schedules", [])]
        client.create_deployment(
            client.create_flow(flow), wanted["name"], tags=wanted["tags"], parameters=parameters,
            schedules=list(map(DeploymentScheduleCreate.from_schedule, schedules)),
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


def _block_id(client: SyncPrefectClient, name: str) -> str:
    """Return the id of a saved block. Raises: ObjectNotFound."""
    slug, _, document = name.partition("/")
    return str(client.read_block_document_by_name(document, slug).id)


def _automations(client: SyncPrefectClient, notify: str | None) -> list[dict[str, Any]]:
    """Return the automations that are wanted; those that notify with the block that does it."""
    data = _read("automations.yaml")
    wanted: list[dict[str, Any]] = data["automations"]
    if notify is None:
        return wanted
    try:
        block = _block_id(client, notify)
    except ObjectNotFound:
        raise SetupError(
            f"--notify {notify}: no such block is saved on the server: name one as type/name, such "
            "as slack-webhook/ops (`prefect block ls`)"
        ) from None
    for recipe in data["notifications"]:
        text = recipe.pop("text")
        action = {"type": "send-notification", "subject": recipe["description"], "body": text}
        if notify.startswith("webhook/"):
            action = {"type": "call-webhook", "payload": json.dumps({"text": text})}
        wanted.append(recipe | {"actions": [action | {"block_document_id": block}]})
    return wanted


if __name__ == "__main__":
    import sys
    import time

    with get_client(sync_client=True) as server:
        while server.api_healthcheck() is not None:  # it starts beside this process
            time.sleep(0.2)
    deploy(Target(folder=Path(sys.argv[1])))
