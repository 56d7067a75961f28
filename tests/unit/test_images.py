"""The images of the workers: what they are made of, and who runs in them."""

from __future__ import annotations

import json
import re

from repository import ROOT

COMMANDS = {
    "http": "python server.py",
    "lambda": "handler.handler",
    "chunks": "python -m prefect.flow_engine prefect_renderfarm.flows.render_chunks",
}


def stages() -> dict[str, list[list[str]]]:
    """Return the instructions of the Dockerfile, each as its words, by stage."""
    text = (ROOT / "deployments/docker/Dockerfile").read_text().replace("\\\n", " ")
    found: dict[str, list[list[str]]] = {"": []}
    for words in (line.split() for line in text.splitlines() if line and line[0] != "#"):
        if words[0] == "FROM":
            found[words[3]] = []
        found[list(found)[-1]].append(words)
    return found


def test_images() -> None:
    """One Python, as a build argument; the lock; a user who is not root; and the right commands."""
    found = stages()
    assert found.pop("") == [["ARG", "BASE=python:3.13-slim"]]
    assert [found[name][0][1] for name in ("build", "farm")] == ["${BASE}", "${BASE}"]
    [locked] = [line for line in found["build"] if "--require-hashes" in line]
    assert "/build/requirements-runtime.lock" in locked
    users = {
        name: [line[1] for line in lines if line[0] == "USER"] for name, lines in found.items()
    }
    assert {name for name, given in users.items() if given} == {"farm"}
    assert users["farm"] == ["10001"]
    assert list(found)[2:] == list(COMMANDS)  # the last one is built if none is named
    for name, command in COMMANDS.items():
        assert found[name][0][1] == "farm"
        assert json.loads(" ".join(found[name][-1][1:])) == command.split()


def test_images_copy_what_is_sent() -> None:
    """What the Dockerfile copies is there, and .dockerignore lets it through."""
    copied = [line[1:-1] for lines in stages().values() for line in lines if line[0] == "COPY"]
    names = {name for words in copied for name in words if not words[0].startswith("--from")}
    assert {"deployments/http/server.py", "deployments/lambda/handler.py"} < names
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    for name in names:
        assert (ROOT / name).exists()
        assert f"!{name.split('/')[0]}" in sent


def test_runtime_lock_holds_what_runs() -> None:
    """The lock of the images has all dependencies, at the versions of the tests, and no others."""
    pins = {}
    for name in ("requirements", "requirements-runtime"):
        text = (ROOT / f"{name}.lock").read_text()
        pins[name] = dict(re.findall(r"^([\w.-]+)==([^ ;]+)", text, re.MULTILINE))
    runtime = pins["requirements-runtime"]
    assert {"prefect", "prefect-aws", "av", "imageio-ffmpeg", "google-auth", "awslambdaric"} <= set(
        runtime
    )
    assert not {"pytest", "mypy", "ruff", "swift", "ministack"} & set(runtime)
    assert runtime.items() <= pins["requirements"].items()
