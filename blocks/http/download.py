"""Files that a job names by an https URL: fetched within limits, and only from allowed hosts.

A host's addresses are looked up once, checked, and connected to as they are: a name that leads
elsewhere a moment later (DNS rebinding) makes no difference. Redirects are checked like the URL.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx

from prefect_renderfarm.blocks.http.client import Status, status_of, wait_until_stopped
from prefect_renderfarm.blocks.http.url_rules import HOSTS_VARIABLE, UrlRefused, UrlRules
from prefect_renderfarm.blocks.runtime.text import one_line

_MAX_REDIRECTS = 5
_CONNECT_SECONDS = 10.0
# Longest silence of a server.
_SILENCE_SECONDS = 60.0
_CLOSE_SECONDS = 5.0
_PART_BYTES = 1 << 20


class DownloadFailed(Exception):
    """A file could not be fetched; `again`: another attempt may succeed.

    The message holds nothing of the URL's query.
    """

    def __init__(self, message: str, *, again: bool = False) -> None:
        super().__init__(message)
        self.again = again


class Download:
    """An answer whose body is still to be read.

    Attributes:
        headers: The answer's headers.
        size: Number of bytes; 0 if the server does not say.
    """

    def __init__(
        self, response: httpx.Response, max_bytes: int, wait: Callable[[Awaitable[Any]], Any]
    ) -> None:
        self.headers = response.headers
        self.size = int(response.headers.get("content-length", 0))
        self._response = response
        self._max_bytes = max_bytes
        self._wait = wait
        if not response.is_success:
            raise DownloadFailed(
                f"the server answered {response.status_code}",
                again=status_of(response) is not Status.REFUSED,
            )
        # A small compressed answer may hold gigabytes, and none was asked for.
        encoding = self.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise DownloadFailed(
                f"the server compresses it ({one_line(encoding, 20)}): serve it as it is"
            )
        self._require_size(self.size)

    def parts(self) -> Iterator[bytes]:
        """Yield the file's parts. Raises: DownloadFailed, WorkStopped."""
        parts = self._response.aiter_raw(_PART_BYTES)
        size = 0
        while part := self._wait(anext(parts, b"")):
            size += len(part)
            self._require_size(size)
            yield part

    def _require_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise DownloadFailed(f"it has more than {self._max_bytes:,} bytes")


@contextmanager
def open_download(
    url: str, max_bytes: int, seconds: float, stop: threading.Event | None = None
) -> Iterator[Download]:
    """Begin to fetch a file, if `url_rules` allows it.

    Args:
        url: Its https URL.
        max_bytes: Size above which it is given up.
        seconds: Longest time from here to the last part, in seconds.
        stop: Gives it up when set.

    Raises:
        DownloadFailed: It cannot be fetched.
        SetupError: The variables of `url_rules` are not valid.
        WorkStopped: `stop` was set.
    """
    deadline, stopped = time.monotonic() + seconds, stop or threading.Event()

    def wait(step: Awaitable[Any]) -> Any:
        try:
            return wait_until_stopped(_in_time(step, deadline), stopped)
        except UrlRefused as error:
            raise DownloadFailed(str(error)) from None
        except TimeoutError:
            raise DownloadFailed(f"it took longer than {seconds:g} s", again=True) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            text = one_line(str(error) or type(error).__name__)
            raise DownloadFailed(text, again=isinstance(error, httpx.HTTPError)) from None

    # Without the environment: the transport reads its proxies.
    client = httpx.AsyncClient(
        transport=_CheckedTransport(UrlRules.of()),
        timeout=httpx.Timeout(min(_SILENCE_SECONDS, seconds), connect=_CONNECT_SECONDS),
        headers={"Accept-Encoding": "identity"},
        trust_env=False,
    )
    try:
        yield Download(wait(_send(client, url)), max_bytes, wait)
    finally:
        with suppress(Exception):
            closing = _in_time(client.aclose(), time.monotonic() + _CLOSE_SECONDS)
            wait_until_stopped(closing, threading.Event())


class _CheckedTransport(httpx.AsyncBaseTransport):
    """Connects to checked addresses only; each request over a connection of its own.

    The connection is made to an address, but the certificate has to be the name's. It is not kept:
    another name at the same address needs a certificate of its own.
    """

    def __init__(self, rules: UrlRules) -> None:
        self._rules = rules
        self._used: list[httpx.AsyncHTTPTransport] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = self._rules.host_of(request.url)
        proxy = getproxies().get("https")
        if proxy and not proxy_bypass(host):
            if not self._rules.names_host(host):
                raise UrlRefused(
                    "behind a proxy, which looks up hosts itself, only hosts are allowed that "
                    f"{HOSTS_VARIABLE} lists by name"
                )
            return await self._transport(proxy).handle_async_request(request)
        failure: httpx.HTTPError = httpx.ConnectError("its host has no address")
        found = await _look_up(host, request.url.port or 443)
        for address in self._rules.allowed(host, found):
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
        raise failure

    async def aclose(self) -> None:
        for transport in self._used:
            await transport.aclose()

    def _transport(self, proxy: str | None = None) -> httpx.AsyncHTTPTransport:
        limits = httpx.Limits(max_keepalive_connections=0)
        self._used.append(httpx.AsyncHTTPTransport(limits=limits, proxy=proxy))
        return self._used[-1]


async def _look_up(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpx.ConnectError(f"its host is not found: {error}") from None
    return [str(address[0]) for *_, address in found]


async def _send(client: httpx.AsyncClient, url: str) -> httpx.Response:
    """Send a request, and follow redirects without reading their bodies."""
    request = client.build_request("GET", url)
    for _ in range(_MAX_REDIRECTS + 1):
        response = await client.send(request, stream=True)
        if response.next_request is None:
            return response
        request = response.next_request
        await response.aclose()
    raise UrlRefused(f"it is redirected more than {_MAX_REDIRECTS} times")


async def _in_time(step: Awaitable[Any], deadline: float) -> Any:
    async with asyncio.timeout(deadline - time.monotonic()):
        return await step
