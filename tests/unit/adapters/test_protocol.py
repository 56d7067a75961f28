"""What travels between an adapter and a remote worker: payloads, answers, errors."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.abstract import ObjectStorageBlock
from pydantic import Field

import prefect_renderfarm.blocks.errors as errors
from prefect_renderfarm.blocks import (
    CommandFailed,
    CommandTimeout,
    StorageRefused,
    WorkerAdapter,
    WorkerError,
    WorkerJob,
    WorkerLost,
    WorkerResult,
)
from prefect_renderfarm.blocks.adapters.remote import (
    RemoteAdapter,
    WorkerFailure,
    answer_payload,
    parse_answer,
    payload_secrets,
)
from prefect_renderfarm.blocks.chunks.render import ChunkRequest, StorageAddress
from prefect_renderfarm.blocks.media.model import Verify

REQUEST = ChunkRequest(
    job="film", key="film-0123456789ab", chunk_id=3, start_frame=6, frame_count=2,
    output_file="c/3.mp4", command="render 3", fps="24/1", timeout=9.0, identity="abc",
    storage=StorageAddress(kind="s3-bucket", fields={"bucket_name": "farm"}),
    assets="https://h/in.zip?X-Amz-Signature=0123456789",
)  # fmt: skip


class Recorder(WorkerAdapter):
    """An adapter that keeps what it was asked, and answers as it is told."""

    result: WorkerResult = WorkerResult(exit_code=0)
    fault: Any = None
    seen: list[Any] = Field(default=[])

    def execute(self, job: WorkerJob) -> WorkerResult:
        """Keep the command, and whether its folder was there and empty."""
        self.seen.append((job, job.cwd.is_dir(), list(job.cwd.iterdir())))
        return self.answer()

    def render(
        self,
        request: ChunkRequest,
        storage: ObjectStorageBlock,
        stop: threading.Event,
        worker: str | None = None,
    ) -> WorkerResult:
        """Keep the request."""
        self.seen.append((request, storage, stop, worker))
        return self.answer()

    def answer(self) -> WorkerResult:
        """Return the result, or raise the fault."""
        if self.fault is not None:
            raise self.fault
        return self.result


class Sender(RemoteAdapter):
    """An adapter that keeps the payload that it was to send."""

    payload: Any = None

    def ask(
        self, payload: dict[str, Any], name: str, timeout: float, stop: threading.Event
    ) -> WorkerResult:
        """Keep the payload."""
        self.payload = payload
        return WorkerResult(exit_code=0)


def payload_of(job: WorkerJob) -> dict[str, Any]:
    """Return what a worker gets of a command."""
    sender = Sender()
    sender.execute(job)
    return sender.payload  # type: ignore[no-any-return]


def payload_of_chunk() -> dict[str, Any]:
    """Return what a worker gets of the chunk."""
    sender = Sender()
    sender.render(REQUEST, None, threading.Event())  # type: ignore[arg-type]
    return sender.payload  # type: ignore[no-any-return]


def test_payload_of_a_command() -> None:
    """A command travels with its name, variables and limit, and without its folder."""
    job = WorkerJob(command="render", name="x", environment={"A": "1"}, timeout=3.0, cwd=Path("/"))
    assert payload_of(job) == {
        "command": {"command": "render", "name": "x", "environment": {"A": "1"}, "timeout": 3.0}
    }
    assert payload_secrets(payload_of(job)) == []


def test_command_runs_in_an_empty_folder() -> None:
    """A worker runs a command in a folder of its own, and reports under the worker's name."""
    adapter, stop = Recorder(), threading.Event()
    adapter.result = WorkerResult(
        exit_code=7, stdout="o" * 20_000, stderr="e" * 20_000, duration=1.5, worker="inner"
    )
    job = WorkerJob(command="render", name="chunk 3", environment={"A": "1"}, timeout=3.0)
    answer = answer_payload(payload_of(job), adapter, "worker-1", stop)
    [(seen, there, content)] = adapter.seen
    assert (seen.command, seen.name, seen.environment, seen.timeout) == (
        "render", "chunk 3", {"A": "1"}, 3.0,
    )  # fmt: skip
    assert seen.stop is stop
    assert there
    assert content == []
    assert not seen.cwd.exists()
    assert answer.model_dump() == {
        "exit_code": 7, "stdout": "o" * 16_000, "stderr": "e" * 16_000, "duration": 1.5,
        "worker": "worker-1", "manifest": "", "failure": None,
    }  # fmt: skip
    result = parse_answer(answer.model_dump(mode="json"), "chunk 3")
    assert (result.exit_code, result.worker, result.duration) == (7, "worker-1", 1.5)


def test_payload_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk travels as `order`; the worker opens the storage itself and renders it."""
    opened: list[StorageAddress] = []
    monkeypatch.setattr(StorageAddress, "open", lambda self: opened.append(self) or "storage")
    payload = payload_of_chunk()
    assert list(payload) == ["order"]
    assert payload["order"]["verify"] == Verify.PACKETS.value
    adapter, stop = Recorder(), threading.Event()
    answer = answer_payload(payload, adapter, "worker-1", stop)
    assert adapter.seen == [(REQUEST, "storage", stop, "worker-1")]
    assert opened == [REQUEST.storage]
    assert (answer.exit_code, answer.failure) == (0, None)
    assert payload_secrets(payload) == ["0123456789", "0123456789"]


def test_payload_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields that a worker does not know are left out; those that it misses have defaults."""
    monkeypatch.setattr(StorageAddress, "open", lambda self: "storage")
    order = REQUEST.model_dump(mode="json")
    adapter = Recorder()
    older = {name: value for name, value in order.items() if name not in ("index", "timeout")}
    answer_payload({"order": older | {"place": 3, "new": [1]}}, adapter, "worker-1")
    assert adapter.seen[0][0] == REQUEST.model_copy(update={"timeout": None})
    assert not adapter.seen[0][2].is_set()


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({}, "neither an order nor a command"),
        ({"jobPath": "x"}, "neither an order nor a command"),
        ({"command": {}}, "does not fit this version: command: Field required"),
        ({"command": {"command": ["s3cret"]}}, "does not fit this version: command: Input"),
        ({"order": {"job": "s3cret"}}, "does not fit this version: chunk_id: Field required; "),
        ({"order": "s3cret"}, "does not fit this version"),
    ],
)
def test_payloads_that_are_none(payload: dict[str, Any], words: str) -> None:
    """What is no payload is refused without its values: callers see the message."""
    adapter = Recorder()
    with pytest.raises(ValueError, match=words) as caught:
        answer_payload(payload, adapter, "worker-1")
    assert "s3cret" not in str(caught.value)
    assert adapter.seen == []


@pytest.mark.parametrize("fault", [CommandTimeout("chunk 3: too long"), StorageRefused("no")])
def test_errors_travel(fault: Exception) -> None:
    """An error on the worker is raised here, of its class and with its message."""
    adapter = Recorder()
    adapter.fault = fault
    answer = answer_payload({"command": {"command": "x"}}, adapter, "worker-1")
    assert (answer.exit_code, answer.worker) == (1, "worker-1")
    with pytest.raises(type(fault)) as caught:
        parse_answer(answer.model_dump(mode="json"), "x")
    assert type(caught.value) is type(fault)
    assert str(caught.value) == str(fault)


def test_other_errors_are_the_workers_own() -> None:
    """What is no error of this project ends the worker's request, not in an answer."""
    adapter = Recorder()
    adapter.fault = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        answer_payload({"command": {"command": "x"}}, adapter, "worker-1")


def test_errors_of_a_chunk_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that the worker cannot reach is told with the chunk and the worker."""

    def refuse(self: StorageAddress) -> None:
        raise StorageRefused("no such bucket")

    monkeypatch.setattr(StorageAddress, "open", refuse)
    answer = answer_payload(payload_of_chunk(), Recorder(), "worker-1")
    assert answer.failure == WorkerFailure(
        kind="StorageRefused", message="chunk 3: worker worker-1: no such bucket"
    )


def test_every_error_survives_the_way() -> None:
    """Each class of `errors` comes back as itself."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert len(kinds) > 15
    for kind in kinds:
        restored = WorkerFailure.of(kind("what")).as_error()
        assert type(restored) is kind
        assert str(restored) == "what"


@pytest.mark.parametrize("kind", ["ZeroDivisionError", "annotations", "__name__", "", "Exception"])
def test_unknown_errors_are_lost_workers(kind: str) -> None:
    """Of a class that is none of this project's, an error may be tried again."""
    assert type(WorkerFailure(kind=kind, message="x").as_error()) is WorkerLost


@pytest.mark.parametrize("answer", [None, [], "Welcome", {"message": "hi"}, {"exit_code": "x"}])
def test_answers_that_are_none(answer: Any) -> None:
    """What is no answer is a lost worker; the message shows its beginning."""
    with pytest.raises(WorkerLost, match="chunk 3: the answer is not that of a worker: "):
        parse_answer(answer, "chunk 3")
    with pytest.raises(WorkerError) as caught:
        parse_answer("x" * 1000, "chunk 3")
    assert str(caught.value).count("x") == 200


def test_answer_of_a_newer_worker() -> None:
    """Fields that are not known here do no harm; missing ones have defaults."""
    result = parse_answer({"exit_code": 0, "new": 1}, "x")
    assert result == WorkerResult(exit_code=0)
    failed = {"exit_code": 0, "failure": {"kind": "CommandFailed", "message": "m", "new": 1}}
    with pytest.raises(CommandFailed, match="m"):
        parse_answer(failed, "x")
