"""The HTTP adapter: what it makes of answers."""

from __future__ import annotations

import json

import pytest
from faulty_proxy import Answer, Fault, FaultyProxy
from http_samples import TOKEN, HttpWorker
from pydantic import SecretStr

from prefect_renderfarm.blocks import (
    SetupError,
    WorkerError,
    WorkerJob,
    WorkerLost,
    WorkerRefused,
)

AZURE_KEY = "azure-k3y"
_LOST, _REFUSED = WorkerLost, WorkerRefused


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (Answer(500), _LOST, "500 Internal Server Error"),
        (Answer(502), _LOST, "502"),
        (Answer(504), _LOST, "504"),
        (Answer(408), _LOST, "408"),
        (Answer(302, headers=(("Location", "/x?key=1"),)), _REFUSED, "302 .*the address that it"),
        (Answer(400), _REFUSED, "400 .*same version"),
        (Answer(401), _REFUSED, "401 .*check the token"),
        (Answer(403), _REFUSED, "403 .*what it may do"),
        (Answer(404), _REFUSED, "404 .*path of the URL"),
        (Answer(405), _REFUSED, "405 .*is a worker's"),
        (Answer(429, headers=(("Retry-After", "900"),)), _LOST, "429 .*busy_wait"),
        (Answer(429, headers=(("Retry-After", "soon"),)), _LOST, "429 .*busy_wait"),
        (Answer(200, b"<html>Welcome</html>"), _LOST, "not that of a worker: .*Welcome"),
        (Answer(200, b'{"message": "hello"}'), _LOST, "not that of a worker: .*hello"),
        (Answer(200, b"[0]"), _LOST, "not that of a worker"),
        (Answer(200, b"\xff\xfe"), _LOST, "not that of a worker"),
        (Answer(204), _LOST, "not that of a worker"),
        (Fault.DROP_BEFORE, _LOST, "lost: RemoteProtocolError"),
        (Fault.DROP_AFTER, _LOST, "lost: RemoteProtocolError"),
    ],
    ids=lambda given: str(given)[:40],
)
def test_answers_by_type(
    http_worker: HttpWorker,
    proxy: FaultyProxy,
    answer: Answer | Fault,
    kind: type[WorkerError],
    words: str,
) -> None:
    """Whatever is answered, it is one line, of a type that says what to do next."""
    proxy.fail(answer)
    adapter = http_worker.adapter(url=f"{proxy.url}/?code={AZURE_KEY}", busy_wait=0.5)
    with pytest.raises(WorkerError, match=f"^chunk 4: .*{words}") as caught:
        adapter.execute(WorkerJob(command="true", name="chunk 4"))
    assert type(caught.value) is kind
    text = str(caught.value)
    assert proxy.url in text or "not that of a worker" in text
    assert AZURE_KEY not in text
    assert "\n" not in text


def test_nobody_there(http_worker: HttpWorker) -> None:
    """A port where nobody listens: worth another attempt for a chunk, an error before any."""
    adapter = http_worker.adapter(url="http://127.0.0.1:9/render", busy_wait=0)
    with pytest.raises(WorkerLost, match=r"worker http://127\.0\.0\.1:9/render cannot be reached"):
        adapter.execute(WorkerJob(command="true"))
    with pytest.raises(SetupError, match=r"http://127\.0\.0\.1:9/render/health cannot be reached"):
        adapter.check()


def test_wrong_path_and_no_check(http_worker: HttpWorker) -> None:
    """A wrong path is found out by the check, unless it is switched off."""
    with pytest.raises(SetupError, match=r"/render/health answers 404 Not Found: check the path"):
        http_worker.adapter(url=f"{http_worker.url}/render").check()
    http_worker.adapter(url=f"{http_worker.url}/render", health_path="").check()
    http_worker.adapter(url=f"{http_worker.url}/").check()
    with pytest.raises(SetupError, match=r"401"):
        http_worker.adapter(token=None).check()


def test_what_an_echo_shows_is_no_secret(http_worker: HttpWorker, proxy: FaultyProxy) -> None:
    """A server that answers with what it was sent gets no secret into an error."""

    def echo(request: object) -> Answer:
        return Answer(200, json.dumps({"sent": str(request)}).encode())

    proxy.gate = echo
    adapter = http_worker.adapter(
        url=proxy.url, header_name="x-functions-key", header_value=SecretStr(AZURE_KEY)
    )
    with pytest.raises(WorkerLost, match="not that of a worker") as caught:
        adapter.execute(WorkerJob(command="true"))
    sent = proxy.requests[0][0]
    assert sent.header("Authorization") == f"Bearer {TOKEN}"
    assert sent.header("X-Functions-Key") == AZURE_KEY
    for secret in (TOKEN, AZURE_KEY):
        assert secret not in str(caught.value)
        assert secret not in repr(adapter)
