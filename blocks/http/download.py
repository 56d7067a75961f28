"""Files that a job names by an https URL: fetched within limits, and only from where it is allowed.

A host's addresses are looked up once, checked, and connected to as they are, so that what its name
leads to a moment later makes no difference. Each redirect is checked like the first URL.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar
from urllib.request import getproxies, proxy_bypass

import httpx

from prefect_renderfarm.blocks.http.client import Status, kind_of, wait_until_stopped
from prefect_renderfarm.blocks.http.url_rules import HOSTS_VARIABLE, UrlRefused, UrlRules
from prefect_renderfarm.blocks.runtime.text import one_line

_MOST_REDIRECTS = 5
_CONNECT_SECONDS = 10.0
# Longest silence of a server.
_SILENCE_SECONDS = 60.0
_CLOSE_SECONDS = 5.0
_PART_BYTES = 1 << 20
Value = TypeVar("Value")


class DownloadFailed(Exception):
    """A file could not be had. The message holds nothing of the URL's query.

    Args:
        message: What is wrong.
        again: Whether another attempt may succeed.
    """

    def __init__(self, message: str, *, again: bool = False) -> None:
        super().__init__(message)
        self.again = again


@dataclass(frozen=True)
class _Limits:
    most_bytes: int
    seconds: float
    deadline: float
    stop: threading.Event

    def wait_for(self, step: Awaitable[Value]) -> Value:
        """Wait for a step of a download. Raises: DownloadFailed, WorkStopped."""
        with _failures(self.seconds):
            return wait_until_stopped(_in_time(step, self.deadline), self.stop)


class Download:
    """An answer that has begun, and its parts as they come.

    Attributes:
        headers: The answer's headers.
        size: Bytes, as far as the server says; else 0.
    """

    def __init__(self, response: httpx.Response, limits: _Limits) -> None:
        self.headers = response.headers
        self.size = int(response.headers.get("content-length", 0))
        self._response = response
        self._limits = limits

    def require_plain(self) -> None:
        """Refuse an answer that is no file, is too large, or is packed. Raises: DownloadFailed."""
        if not self._response.is_success:
            raise DownloadFailed(
                f"the server answered {self._response.status_code}",
                again=kind_of(self._response) is not Status.REFUSED,
            )
        # A packed answer of any size may hold gigabytes, and none was asked for.
        packing = self.headers.get("content-encoding", "identity")
        if packing != "identity":
            raise DownloadFailed(
                f"the server packs it ({one_line(packing, 20)}): store it as it is"
            )
        self._require_size(self.size)

    def parts(self) -> Iterator[bytes]:
        """Give the file's parts.

        Raises:
            DownloadFailed: It is too large, took too long, or the connection was lost.
            WorkStopped: The job was stopped.
        """
        parts = self._response.aiter_raw(_PART_BYTES)
        size = 0
        while part := self._limits.wait_for(anext(parts, b"")):
            size += len(part)
            self._require_size(size)
            yield part

    def _require_size(self, size: int) -> None:
        if size > self._limits.most_bytes:
            raise DownloadFailed(f"it has more than {self._limits.most_bytes:,} bytes")


@contextmanager
def open_download(
    url: str, most_bytes: int, seconds: float, stop: threading.Event | None = None
) -> Iterator[Download]:
    """Begin to fetch a file from where `url_guard` allows it.

    Args:
        url: Its https URL.
        most_bytes: Bytes after which it is given up.
        seconds: Longest time from here to the last part, in seconds.
        stop: Gives it up when set.

    Raises:
        DownloadFailed: It cannot be had.
        SetupError: The rules cannot be understood.
        WorkStopped: `stop` was set.
    """
    limits = _Limits(most_bytes, seconds, time.monotonic() + seconds, stop or threading.Event())
    # Without the environment: its proxies are the transport's business.
    client = httpx.AsyncClient(
        transport=_CheckedTransport(UrlRules.of()),
        timeout=httpx.Timeout(min(_SILENCE_SECONDS, seconds), connect=_CONNECT_SECONDS),
        headers={"Accept-Encoding": "identity"},
        trust_env=False,
    )
    try:
        download = Download(limits.wait_for(_send(client, url)), limits)
        download.require_plain()
        yield download
    finally:
        with suppress(Exception):
            closing = _in_time(client.aclose(), time.monotonic() + _CLOSE_SECONDS)
            wait_until_stopped(closing, threading.Event())


class _CheckedTransport(httpx.AsyncBaseTransport):
    """Connects to checked addresses only; each request over a connection of its own.

    The connection is made to an address, while the certificate has to be the name's. It is not
    kept: another name at the same address needs a certificate of its own.
    """

    def __init__(self, rules: UrlRules) -> None:
        self._rules = rules
        self._used: list[httpx.AsyncHTTPTransport] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = self._rules.host_of(request.url)
        proxy = getproxies().get("https")
        if proxy and not proxy_bypass(host):
            if not self._rules.named(host):
                raise UrlRefused(
                    "behind a proxy, which looks hosts up by itself, only those are fetched from "
                    f"that {HOSTS_VARIABLE} names"
                )
            return await self._transport(proxy).handle_async_request(request)
        port = request.url.port or 443
        addresses = self._rules.allowed(host, await _look_up(host, port))
        failure: httpx.HTTPError | None = None
        for address in addresses:
            try:
                return await self._transport().handle_async_request(
                    httpx.Request(
                        request.method,
                        request.url.copy_with(host=address),
                        headers=request.headers,  # with the name as Host
                        stream=request.stream,
                        extensions=request.extensions | {"sni_hostname": host},
                    )
                )
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
        assert failure is not None  # noqa: S101 -- there is an address
        raise failure

    async def aclose(self) -> None:
        for transport in self._used:
            await transport.aclose()

    def _transport(self, proxy: str | None = None) -> httpx.AsyncHTTPTransport:
        transport = httpx.AsyncHTTPTransport(
            limits=httpx.Limits(max_keepalive_connections=0), proxy=proxy
        )
        self._used.append(transport)
        return transport


async def _look_up(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpx.ConnectError(f"its host is not found: {error}") from None
    return [str(address[0]) for *_, address in found]


async def _send(client: httpx.AsyncClient, url: str) -> httpx.Response:
    """Send a request, and those that it is redirected to; what such an answer says is not read."""
    request: httpx.Request | None = client.build_request("GET", url)
    for _ in range(_MOST_REDIRECTS + 1):
        assert request is not None  # noqa: S101
        response = await client.send(request, stream=True)
        request = response.next_request
        if request is None:
            return response
        await response.aclose()
    raise UrlRefused(f"it is redirected more than {_MOST_REDIRECTS} times")


async def _in_time(waiting: Awaitable[Value], deadline: float) -> Value:
    async with asyncio.timeout(deadline - time.monotonic()):
        return await waiting


@contextmanager
def _failures(seconds: float) -> Iterator[None]:
    try:
        yield
    except UrlRefused as error:
        raise DownloadFailed(str(error)) from None
    except TimeoutError:
        raise DownloadFailed(f"it took longer than {seconds:g} s", again=True) from None
    except httpx.InvalidURL as error:
        raise DownloadFailed(one_line(error)) from None
    except httpx.HTTPError as error:
        raise DownloadFailed(one_line(str(error) or type(error).__name__), again=True) from None
