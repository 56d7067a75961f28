"""Google ID tokens of the HTTP adapter: google-auth, and an endpoint in the place of Google's."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from faulty_proxy import Answer, FaultyProxy, Request, faulty_proxy

from prefect_renderfarm.blocks import HttpAdapter, SetupError, WorkerJob, WorkerLost

AUDIENCE = "https://worker.example.com"
NOWHERE = "http://127.0.0.1:9"


def encoded(data: dict[str, Any]) -> str:
    """Return a part of a JSON web token."""
    return base64.urlsafe_b64encode(json.dumps(data).encode()).decode().rstrip("=")


def decoded(part: str) -> dict[str, Any]:
    """Read a part of a JSON web token."""
    data: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return data


class Google:
    """What Google answers for tokens: how long they live, and what was asked."""

    def __init__(self, proxy: FaultyProxy) -> None:
        self.lifetime = 3600.0
        self.tokens: list[str] = []
        self.audiences: list[str] = []
        self.refuses = False
        self.url = proxy.url
        proxy.gate = self.answer

    def answer(self, request: Request) -> Answer:
        """Give a new token each time."""
        if self.refuses:
            return Answer(400, b'{"error": "invalid_grant"}')
        assertion = parse_qs(request.body.decode())["assertion"][0]
        self.audiences.append(decoded(assertion.split(".")[1])["target_audience"])
        claims = {"exp": time.time() + self.lifetime, "number": len(self.tokens)}
        self.tokens.append(f"{encoded({'alg': 'RS256'})}.{encoded(claims)}.{encoded({})}")
        body = json.dumps({"id_token": self.tokens[-1]}).encode()
        return Answer(200, body, (("Content-Type", "application/json"),))


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Google]:
    """Start the endpoint, and make a service account's file that points at it."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with faulty_proxy(NOWHERE) as proxy:
        account = {
            "type": "service_account",
            "client_email": "farm@example.com",
            "private_key": key.decode(),
            "private_key_id": "1",
            "token_uri": f"{proxy.url}/token",
        }
        (tmp_path / "account.json").write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
        yield Google(proxy)


@pytest.fixture
def service() -> Iterator[FaultyProxy]:
    """Start what answers each payload as a worker does."""
    with faulty_proxy(NOWHERE) as proxy:
        proxy.gate = lambda _: Answer(200, b'{"exit_code": 0}')
        yield proxy


def test_token_is_fetched_once_and_anew_before_it_ends(
    google: Google, service: FaultyProxy
) -> None:
    """Each request has a token for the audience that is good for minutes yet."""
    adapter = HttpAdapter(url=service.url, audience=AUDIENCE)
    for _ in range(2):
        adapter.check()
        assert adapter.execute(WorkerJob(command="true")).exit_code == 0
    sent = [request.header("Authorization") for request, _ in service.requests]
    assert sent == [f"Bearer {google.tokens[0]}"] * 4
    assert google.audiences == [AUDIENCE]
    service.requests.clear()
    google.lifetime = 200.0
    other = HttpAdapter(url=service.url, audience=AUDIENCE)
    for _ in range(2):
        other.execute(WorkerJob(command="true"))
    sent = [request.header("Authorization") for request, _ in service.requests]
    assert sent == [f"Bearer {token}" for token in google.tokens[1:]]
    assert len(set(sent)) == 2


def test_refused_token_is_an_error_of_ours(google: Google, service: FaultyProxy) -> None:
    """Google's refusal is one line, before any chunk a setup error; no request is sent."""
    google.refuses = True
    adapter = HttpAdapter(url=service.url, audience=AUDIENCE)
    with pytest.raises(SetupError, match=r"Google gave no ID token .*invalid_grant"):
        adapter.check()
    with pytest.raises(WorkerLost, match=r"Google gave no ID token"):
        adapter.execute(WorkerJob(command="true"))
    assert not service.requests


def test_missing_credentials_are_named(
    google: Google, service: FaultyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without credentials the error says where they are looked for."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(SetupError, match=r"no Google credentials .*set GOOGLE_APPLICATION"):
        HttpAdapter(url=service.url, audience=AUDIENCE).check()
    assert not google.tokens


@pytest.mark.parametrize("health_path", ["", "/health"])
def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, health_path: str) -> None:
    """Without google-auth the error says how to install it, before any chunk."""
    for name in ("google.oauth2", "google.auth.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    adapter = HttpAdapter(url=NOWHERE, audience=AUDIENCE, health_path=health_path)
    with pytest.raises(SetupError, match=r"pip install 'prefect-renderfarm\[google\]'"):
        adapter.check()
