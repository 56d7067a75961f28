"""What is deployed to AWS Lambda: handler, image, template."""

from __future__ import annotations

import re
import runpy
import threading
from typing import Any

import pytest
import yaml
from lambda_server import HANDLER, LambdaServer
from storage_samples import S3Server

from prefect_renderfarm.blocks import (
    AwsLambdaAdapter,
    CommandTimeout,
    WorkerJob,
    WorkerLost,
)


@pytest.mark.long
def test_the_handler_keeps_the_time_limit(functions: LambdaServer, s3: S3Server) -> None:
    """A command is ended before AWS ends the function, and the answer tells so."""
    functions.proxy.fail()
    name = functions.function("renderfarm-short", role=s3.environment(), timeout=8)
    adapter = functions.adapter(name)
    with pytest.raises(CommandTimeout, match=r"chunk 4: ended after [567]\.\d s"):
        adapter.execute(WorkerJob(command="sleep 60", name="chunk 4", timeout=600))
    with pytest.raises(WorkerLost, match=r"ValueError.*neither an order nor a command"):
        adapter.ask({"jobPath": "x"}, "chunk 4", 60, threading.Event())


class _Template(yaml.SafeLoader):
    """Reads CloudFormation's short forms, such as !Ref and !Sub."""


def _short_form(loader: yaml.SafeLoader, name: str, node: yaml.Node) -> dict[str, Any]:
    assert isinstance(node, yaml.ScalarNode)
    return {name: loader.construct_scalar(node)}


_Template.add_multi_constructor("!", _short_form)
DEPLOYMENT = HANDLER.parent


def test_template_fits_handler_and_image() -> None:
    """The template names what is there, asks for rights to one bucket only, keeps the limits."""
    template = yaml.load((DEPLOYMENT / "template.yaml").read_text(), Loader=_Template)  # noqa: S506
    resources, parameters = template["Resources"], template["Parameters"]
    worker = resources["Worker"]
    assert worker["Type"] == "AWS::Serverless::Function"
    context = DEPLOYMENT / worker["Metadata"]["DockerContext"]
    dockerfile = context / worker["Metadata"]["Dockerfile"]
    stage = f"FROM farm AS {worker['Metadata']['DockerBuildTarget']}\n"
    assert 'CMD ["handler.handler"]' in dockerfile.read_text().partition(stage)[2].split("\n\n")[0]
    assert callable(runpy.run_path(str(HANDLER))["handler"])
    properties = worker["Properties"]
    assert properties["Timeout"] == {"Ref": "Timeout"}
    assert parameters["Timeout"]["Default"] == AwsLambdaAdapter.model_fields["timeout"].default
    for name in ("Timeout", "Memory", "Disk"):
        limits = parameters[name]
        assert limits["MinValue"] <= limits["Default"] <= limits["MaxValue"]
    rights = [
        *properties["Policies"][0]["Statement"],
        *resources["Coordinator"]["Properties"]["PolicyDocument"]["Statement"],
    ]
    for right in rights:
        assert not [action for action in right["Action"] if "*" in action]
        place = right["Resource"]
        assert place == {"GetAtt": "Worker.Arn"} or ":::${BucketName}" in place["Sub"]
    used = set(re.findall(r"\$\{(\w+)\}", str(template))) | set(
        re.findall(r"'Ref': '(\w+)'", str(template))
    )
    assert used <= {*resources, *parameters}
    assert {resource["Type"] for resource in resources.values()} == {
        "AWS::Serverless::Function", "AWS::Logs::LogGroup", "AWS::IAM::ManagedPolicy",
    }  # fmt: skip
