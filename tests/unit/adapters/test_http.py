"""The HTTP adapter: its fields, and what it makes of answers that show its secrets."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from faulty_proxy import Answer, FaultyProxy, Request, faulty_proxy
from processes_here import wait_for
from pydantic import SecretStr, ValidationError

from prefect_renderfarm.blocks import HttpAdapter, WorkerJob, WorkerLost
from prefect_renderfarm.blocks.adapters.http import retry_after

TOKEN, KEY, CODE = "t0ken-of-the-worker", "azure-k3y", "code-of-the-url"


@pytest.fixture
def server() -> Iterator[FaultyProxy]:
    """Start a server that answers as a test says."""
    with faulty_proxy("http://127.0.0.1:9") as proxy:
        yield proxy


@pytest.mark.parametrize("kind", ["list", "object", "text"])
def test_what_an_echo_shows_is_no_secret(server: FaultyProxy, kind: str) -> None:
    """A server that answers with what it was sent, in whatever form, gets no secret anywhere."""

    def echo(request: Request) -> Answer:
        sent = f"{request.path} {request.headers}"
        answers = {"list": [[sent], {sent: [1]}], "object": {"exit_code": 1, "stdout": sent}}
        return Answer(200, json.dumps(answers[kind]).encode() if kind in answers else sent.encode())

    server.gate = echo
    adapter = HttpAdapter(
        url=f"{server.url}/?code={CODE}", token=SecretStr(TOKEN), header_name="x-functions-key",
        header_value=SecretStr(KEY),
    )  # fmt: skip
    if kind == "object":
        text = adapter.execute(WorkerJob(command="true")).stdout
    else:
        with pytest.raises(WorkerLost, match="not that of a worker") as caught:
            adapter.execute(WorkerJob(command="true"))
        text = str(caught.value)
    assert "***" in text
    shown = f"{text} {adapter!r} {adapter.model_dump()} {adapter.model_dump_json()}"
    for secret in (TOKEN, KEY, CODE):
        assert secret not in shown
    request = server.requests[0][0]
    assert request.header("Authorization") == f"Bearer {TOKEN}"
    assert request.header("X-Functions-Key") == KEY
    assert request.path == f"/?code={CODE}"


def test_connections_are_closed_with_the_adapter(server: FaultyProxy) -> None:
    """When an adapter and its copies are gone, their connections are closed, and not before."""
    server.gate = lambda _: Answer(200, b'{"exit_code": 0}')
    adapter = HttpAdapter(url=server.url)
    adapter.execute(WorkerJob(command="true"))
    [client] = adapter._free
    copy = adapter.model_copy()
    del adapter
    gc.collect()
    assert copy.execute(WorkerJob(command="true")).exit_code == 0
    assert not client.is_closed
    del copy
    gc.collect()
    wait_for(lambda: client.is_closed)


def test_short_secrets_are_named(
    server: FaultyProxy, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that is too short to be masked is named, and not shown, before any chunk."""
    monkeypatch.setattr(logging.getLogger("prefect"), "propagate", True)
    server.gate = lambda _: Answer(200)
    HttpAdapter(url=server.url, header_name="x-env", header_value=SecretStr("q7x")).check()
    assert "header_value: less than 4 characters" in caplog.text
    assert "q7x" not in caplog.text
    caplog.clear()
    HttpAdapter(url=server.url, token=SecretStr(TOKEN)).check()
    assert "characters" not in caplog.text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"url": "http://worker.example.com"}, "is not encrypted"),
        ({"url": "worker.example.com"}, "whole address"),
        ({"url": "ftp://worker.example.com"}, "whole address"),
        ({"url": "https://"}, "whole address"),
        ({"url": "https://me:s3cret@worker.example.com"}, "name or password"),
        ({"token": "s3cret\n"}, "line end"),
        ({"token": "s3cr\u00e9t"}, "odd character"),
        ({"token": ""}, "is empty"),
        ({"header_name": "x-functions-key"}, "both or none"),
        ({"header_name": "x key", "header_value": "s3cret"}, "pattern"),
        ({"token": "s3cret", "audience": "https://x"}, "give one of them"),
        ({"token": "s3cret", "header_name": "authorization", "header_value": "x"}, "one of them"),
    ],
    ids=str,
)
def test_bad_fields_are_refused(fields: dict[str, str], words: str) -> None:
    """Addresses and secrets that cannot work are refused, and no secret is shown."""
    with pytest.raises(ValidationError, match=words) as caught:
        HttpAdapter(**({"url": "https://worker.example.com"} | fields))
    assert "s3cr" not in str(caught.value)


def test_http_to_other_machines_can_be_allowed() -> None:
    """In the clear to this machine, or where a person says so."""
    for url in ("http://localhost:8080", "http://[::1]/", "https://worker.example.com/a?b=c"):
        assert HttpAdapter(url=url).url == url
    assert HttpAdapter(url="http://10.0.0.7", allow_http=True).allow_http


def test_retry_after_is_read() -> None:
    """Seconds, the three forms of dates, and what is neither."""
    soon = datetime.now(UTC) + timedelta(seconds=60)
    for text in (
        "60",
        format_datetime(soon, usegmt=True),
        soon.strftime("%A, %d-%b-%y %H:%M:%S GMT"),
        soon.strftime("%a %b %e %H:%M:%S %Y"),
    ):
        assert retry_after({"Retry-After": text}) == pytest.approx(60, abs=2), text
    assert retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    for text in ("", "soon", "-1", "1.5", f"Wed, 21 Oct 2015 {'9' * 400}:28:00 GMT"):
        assert retry_after({"Retry-After": text}) is None
