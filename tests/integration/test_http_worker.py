"""The HTTP worker of `deployments/http` by itself."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import sys
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from http_samples import SERVER, TOKEN, HttpWorker, Running
from processes_here import family, python, wait_for
from storage_samples import S3Server

from prefect_renderfarm.blocks import (
    WorkerJob,
    WorkerRefused,
)
from prefect_renderfarm.blocks.adapters.http import retry_after


def test_commands_see_no_secret_of_the_worker(http_worker: HttpWorker, s3: S3Server) -> None:
    """Neither the token nor the storage's credentials are among a command's variables."""
    job = WorkerJob(
        command=python("import json,os; print(json.dumps(dict(os.environ)))"),
        environment={"CHUNK": "5"},
    )
    seen = json.loads(http_worker.adapter().execute(job).stdout)
    assert seen["CHUNK"] == "5"
    assert not {name for name in seen if name.startswith(("RENDERFARM", "AWS", "PREFECT"))}
    assert not {TOKEN, s3.secret} & set(seen.values())


def test_too_large_a_payload_is_refused(http_worker: HttpWorker) -> None:
    """More bytes than allowed are not read, whether or not their number is told before."""
    with pytest.raises(WorkerRefused, match=r"413 .*raise the worker's limit"):
        http_worker.adapter().execute(WorkerJob(command=f"true {'x' * 30_000}"))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    parts = iter([b"x" * 15_000, b"x" * 15_000])
    assert httpx.post(http_worker.url, content=parts, headers=headers).status_code == 413


def test_only_the_token_lets_in(http_worker: HttpWorker, tmp_path: Path) -> None:
    """Without it, the worker answers 401 and runs nothing; only probes need none."""
    payload = {"command": {"command": f"touch {shlex.quote(str(tmp_path / 'made'))}"}}
    for text in ("", "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer ü"):
        headers = {"Authorization": text.encode()}
        assert httpx.post(http_worker.url, json=payload, headers=headers).status_code == 401, text
        assert httpx.get(f"{http_worker.url}/health", headers=headers).status_code == 401
    assert not (tmp_path / "made").exists()
    assert httpx.get(f"{http_worker.url}/live").status_code == 200
    headers = {"Authorization": f"bearer {TOKEN}"}
    assert httpx.post(http_worker.url, json=payload, headers=headers).json()["exit_code"] == 0
    assert (tmp_path / "made").exists()


def test_odd_payloads_are_refused(http_worker: HttpWorker) -> None:
    """What is no payload of ours is answered with 400."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for body in (b"", b"{", b"[]", b"{}", b'{"command": {}}', b'{"order": {"job": 1}}', b"\xff"):
        assert httpx.post(http_worker.url, content=body, headers=headers).status_code == 400, body


def test_a_busy_worker_says_when_to_come_back(http_worker: HttpWorker, tmp_path: Path) -> None:
    """While one command runs, another is told to wait; health tells of it."""
    running = Running(http_worker.adapter(), WorkerJob(command=family(tmp_path)))
    wait_for((tmp_path / "pids").exists)
    payload = {"command": {"command": "true"}}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = httpx.post(http_worker.url, json=payload, headers=headers)
    assert answer.status_code == 429
    assert retry_after(answer.headers) == 1
    assert http_worker.health()["running"] == 1
    running.job.stop.set()
    running.end(2)


@pytest.fixture(scope="module")
def server() -> ModuleType:
    """Load the worker's program without running it."""
    spec = importlib.util.spec_from_file_location("http_worker_server", SERVER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_no_worker_without_a_token(server: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that anyone could use does not start, unless a person says that it may."""
    for name in ("RENDERFARM_TOKEN", "RENDERFARM_ALLOW_ANYONE", "HOST", "PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("HOST", ""), ("RENDERFARM_TOKEN", " "), ("RENDERFARM_ALLOW_ANYONE", "0")):
        monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit, match="RENDERFARM_TOKEN is not set"):
            server.main()
    monkeypatch.setenv("RENDERFARM_ALLOW_ANYONE", "1")
    monkeypatch.setenv("PORT", "8099")
    monkeypatch.setenv("RENDERFARM_PROGRAMS", "ffmpeg, /opt/blender")
    monkeypatch.setenv("RENDERFARM_TIMEOUT", "")
    given = server.Settings()
    assert (given.token, given.concurrency, given.host, given.port) == ("", 1, "0.0.0.0", 8099)  # noqa: S104
    assert (given.programs, given.timeout) == (["ffmpeg", "/opt/blender"], None)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("RENDERFARM_PROGRAMS", "bin/ffmpeg", "allowed program 'bin/ffmpeg'"),
        ("RENDERFARM_CONCURRENCY", "0", "concurrency"),
        ("RENDERFARM_GRACE", "soon", "grace"),
        ("RENDERFARM_URL_HOSTS", "a b", "RENDERFARM_URL_HOSTS: 'a b' is no host"),
    ],
)
def test_no_worker_with_settings_that_say_nothing(
    server: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    """A worker whose limits are not valid does not start, and its token is not shown."""
    monkeypatch.setenv("RENDERFARM_TOKEN", "s3cret")
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=words) as caught:
        server.main()
    assert "s3cret" not in str(caught.value)


def test_workers_are_told_apart(server: ModuleType) -> None:
    """A worker is called by its revision, or its host, and no two are called the same."""
    names = [server.worker_name({"K_REVISION": "render-00042"}) for _ in range(2)]
    assert all(name.startswith("render-00042/") for name in names)
    assert names[0] != names[1]
    assert server.worker_name({}).split("/")[0] == os.uname().nodename
