"""Commands and chunks at an address: Cloud Run, Azure Functions, Modal, a machine of one's own."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Self

import httpx
from pydantic import (
    Field,
    PrivateAttr,
    SecretStr,
    SerializationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from prefect_renderfarm.blocks.adapters.remote import RemoteAdapter, parse_answer, payload_secrets
from prefect_renderfarm.blocks.command import WorkerResult
from prefect_renderfarm.blocks.errors import (
    CommandTimeout,
    SetupError,
    WorkerBusy,
    WorkerError,
    WorkerLost,
    WorkerRefused,
)
from prefect_renderfarm.blocks.http.client import (
    call_until_stopped,
    close_with,
    error_kind,
    wait_until_stopped,
)
from prefect_renderfarm.blocks.processes.masking import MASKED, Mask, query_secrets, warn_of_short
from prefect_renderfarm.blocks.runtime.text import one_line

GOOGLE_EXTRA = "pip install 'prefect-renderfarm[google]'"
# RFC 9110, section 5.6.2: valid names of headers.
_HEADER_NAME = r"^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$"
# A provider that has no instance running starts one for the first request.
_CHECK_SECONDS = 60.0
# Servers keep an idle connection for 5 s and longer; one that they just closed costs an attempt.
_IDLE_SECONDS = 4.0
_FIXES: dict[int, str] = {  # RFC 9110, 15.5
    HTTPStatus.UNAUTHORIZED: "check the token or key",
    HTTPStatus.FORBIDDEN: "check the token or key, and what it may do",
    HTTPStatus.NOT_FOUND: "check the path of the URL",
    HTTPStatus.METHOD_NOT_ALLOWED: "check that the URL is a worker's",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "raise the worker's limit, or shorten the command",
}
_OTHER_FIX = "check that the URL is that of a worker of the same version"


class HttpAdapter(RemoteAdapter):
    """Send commands and chunks to a worker at an address, one POST request each.

    A worker is what `deployments/http` serves. Chunks need a storage; a command runs in an empty
    folder of the worker.

    Example:
        Load a saved adapter and run a command:
        ```python
        from prefect_renderfarm.blocks import HttpAdapter, WorkerJob

        adapter = HttpAdapter.load("BLOCK_NAME")
        result = adapter.execute(WorkerJob(command="blender --version"))
        ```
    """

    _block_type_name = "HTTP Adapter"
    _block_type_slug = "http-adapter"
    _description = "Render chunks on workers at an address, such as a Cloud Run service."

    url: str = Field(repr=False, title="URL")
    """The worker's address. https, unless it is on this machine. A key in its query is kept out of
    logs, errors and runs, but whoever may see this block sees it: a header is safer."""
    token: SecretStr | None = Field(default=None, title="Token")
    """Sent as a bearer token. Empty: none."""
    header_name: str | None = Field(default=None, pattern=_HEADER_NAME, title="Header")
    """Name of a further header with a key, such as x-functions-key of Azure."""
    header_value: SecretStr | None = Field(default=None, title="Value of the header")
    """Value of the further header."""
    audience: str | None = Field(default=None, title="Audience of a Google ID token")
    """Sends an ID token for this audience, for Cloud Run usually the service's address. Needs the
    extra `google`. Empty: none."""
    connect_timeout: float = Field(default=10.0, gt=0, title="Connect timeout")
    """Longest time to open a connection, in seconds."""
    health_path: str = Field(default="/health", title="Path of the health check")
    """Requested, below the URL, before any chunk. Empty: no check."""
    allow_http: bool = Field(default=False, title="Allow http")
    """Also send secrets and jobs unencrypted to other machines."""

    _free: list[httpx.AsyncClient] = PrivateAttr(default_factory=list)
    _certificates: ssl.SSLContext = PrivateAttr(default_factory=httpx.create_ssl_context)
    _google: Any = PrivateAttr(default=None)
    _google_lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    @field_serializer("url")
    def _without_query(self, url: str, info: SerializationInfo) -> str:
        """Hide the query, except where the block is saved: runs show blocks as parameters."""
        if (info.context or {}).get("include_secrets"):
            return url
        address, mark, _ = url.partition("?")
        return f"{address}{mark}{MASKED if mark else ''}"

    @field_validator("token", "header_value")
    @classmethod
    def _fits_a_header(cls, secret: SecretStr | None) -> SecretStr | None:
        """Refuse what a header cannot hold; RFC 9110, section 5.5."""
        text = "none" if secret is None else secret.get_secret_value()
        if text != text.strip() or not text or not (text.isascii() and text.isprintable()):
            raise ValueError("is empty, or has a space or line end around it or an odd character")
        return secret

    @model_validator(mode="after")
    def _can_work(self) -> Self:
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise ValueError(f"url: is no URL: {error}") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("url: give the whole address, such as https://worker.example.com")
        # RFC 9110, section 4.2.4: deprecated, since they are shown wherever an address is.
        if url.userinfo:
            raise ValueError("url: holds a name or password: use the fields for tokens and headers")
        if url.scheme == "http" and not (self.allow_http or _is_loopback(url.host)):
            raise ValueError(
                "url: http to another machine is not encrypted: use https, or allow_http"
            )
        if (self.header_name is None) != (self.header_value is None):
            raise ValueError("header_name and header_value: give both or none")
        own = (self.header_name or "").lower() == "authorization"
        if sum(map(bool, (self.token, self.audience, own))) > 1:
            raise ValueError("token, audience and an Authorization header: give one of them")
        return self

    def check(self) -> None:
        """Request the worker's health, with the token or key. See `WorkerAdapter`."""
        secrets = {"token": self.token, "header_value": self.header_value}
        warn_of_short({name: key.get_secret_value() for name, key in secrets.items() if key})
        base = httpx.URL(self.url)
        url = base.copy_with(path=f"{base.path.rstrip('/')}/{self.health_path.lstrip('/')}")
        try:
            if not self.health_path:
                self._headers()  # checks the credentials of a Google ID token
                return
            response = self._send("GET", url, "health check", _CHECK_SECONDS, threading.Event())
        except WorkerError as error:
            raise SetupError(f"adapter http-adapter: {error}") from None
        if error_kind(response) not in (None, WorkerBusy):
            raise SetupError(f"adapter http-adapter: {_worker_at(url)} {_describe(response)}")

    def ask(
        self, payload: dict[str, Any], name: str, timeout: float, stop: threading.Event
    ) -> WorkerResult:
        """POST a payload to the worker and wait for its answer. See `RemoteAdapter`."""
        url = httpx.URL(self.url)
        response = self._send("POST", url, name, timeout, stop, payload)
        message, kind = f"{name}: {_worker_at(url)} {_describe(response)}", error_kind(response)
        if kind is WorkerBusy:
            raise WorkerBusy(message, retry_after(response.headers))
        if kind is not None:
            raise kind(message)
        # Another server than a worker may answer with the request; errors quote answers.
        keys = [
            response.request.headers.get(header, "").removeprefix("Bearer ")
            for header in ("Authorization", self.header_name or "")
        ]
        mask = Mask([*keys, *payload_secrets(payload), *query_secrets(self.url)])
        try:
            answer = mask.parsed(json.loads(response.text))
        except ValueError:
            answer = mask(response.text)
        result = parse_answer(answer, name)
        return dataclasses.replace(result, worker=result.worker or _worker_at(url))

    def _send(
        self, method: str, url: httpx.URL, name: str, timeout: float, stop: threading.Event,
        payload: Any = None,
    ) -> httpx.Response:  # fmt: skip
        """Send a request. Raises: WorkerError, if there is no answer."""
        get = self._headers  # which cannot be interrupted while it fetches Google's token
        headers = call_until_stopped(get, stop, name) if self.audience else get()
        client = self._free_client()
        try:
            answer = client.request(method, url, headers=headers, json=payload)
            return wait_until_stopped(answer, timeout, stop, name)
        except TimeoutError:
            raise CommandTimeout(
                f"{name}: given up after {timeout:g} s, the longest it may take at "
                f"{_worker_at(url)}"
            ) from None
        except httpx.HTTPError as error:
            reason = f"{type(error).__name__}: {str(error).strip() or 'no answer'}"
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):  # nothing was sent
                raise WorkerBusy(f"{name}: {_worker_at(url)} cannot be reached: {reason}") from None
            raise WorkerLost(f"{name}: {_worker_at(url)} was lost: {reason}") from None
        finally:
            self._free.append(client)

    def _free_client(self) -> httpx.AsyncClient:
        """Return a client that no request uses, with a connection that may still be open.

        One client for all would look at each of its connections at each request: at 1,000 of them
        that takes longer than all else.
        """
        with suppress(IndexError):
            return self._free.pop()
        timeout = httpx.Timeout(None, connect=self.connect_timeout)
        limits = httpx.Limits(keepalive_expiry=_IDLE_SECONDS)
        client = httpx.AsyncClient(timeout=timeout, limits=limits, verify=self._certificates)
        close_with(self._limit, client)  # copies of this adapter share both
        return client

    def _headers(self) -> dict[str, str]:
        headers = {}
        if self.header_name and self.header_value:
            headers[self.header_name] = self.header_value.get_secret_value()
        if self.token:
            headers["Authorization"] = f"Bearer {self.token.get_secret_value()}"
        if self.audience:
            headers["Authorization"] = f"Bearer {self._google_token(self.audience)}"
        return headers

    def _google_token(self, audience: str) -> str:
        """Return an ID token by which Google Cloud Run knows who asks, valid for some minutes."""
        try:
            # Only here: google-auth is an extra.
            from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
            from google.auth.transport.requests import Request
            from google.oauth2 import id_token
        except ImportError:
            raise SetupError(
                f"a Google ID token for {audience!r} needs google-auth: {GOOGLE_EXTRA}"
            ) from None
        try:
            with self._google_lock:
                if self._google is None:
                    fetch: Any = id_token.fetch_id_token_credentials  # has no types
                    self._google = fetch(audience, Request())
                if not self._google.valid:
                    self._google.refresh(Request())
                return str(self._google.token)
        except GoogleAuthError as error:
            reason = one_line((*error.args, error)[0])
            if not isinstance(error, DefaultCredentialsError):
                raise WorkerLost(f"Google gave no ID token for {audience!r}: {reason}") from None
            raise SetupError(
                f"there are no Google credentials for an ID token for {audience!r}: {reason}; set "
                "GOOGLE_APPLICATION_CREDENTIALS to a service account's file, or run where Google "
                "gives one"
            ) from None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header (RFC 9110, 10.2.3); None if there is none."""
    with suppress(InvalidHeader, ValueError, OverflowError):
        return float(Retry().parse_retry_after(headers.get("Retry-After", "")))
    return None


def _describe(response: httpx.Response) -> str:
    """Return an answer's status and the fix, in one line."""
    code = response.status_code
    text = f"answers {code} {httpx.codes.get_reason_phrase(code)}".rstrip()
    if error_kind(response) is not WorkerRefused:
        return text
    if response.is_redirect:
        return f"{text}: give the address that it leads to"
    return f"{text}: {_FIXES.get(code, _OTHER_FIX)}"


def _worker_at(url: httpx.URL) -> str:
    """Return a worker's name for errors: its address, without what may be secret in it."""
    return f"worker {url.copy_with(query=None, fragment=None)}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
