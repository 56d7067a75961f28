"""Requests that can be given up at any moment, and downloads of files that a job names.

A download is fetched within limits, and only from hosts that `url_rules` allows. A host's addresses
are looked up once, checked, and connected to as they are: a name that leads elsewhere a moment
later (DNS rebinding) makes no difference. Redirects are checked like the URL.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import socket
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.request import getproxies, proxy_bypass

import httpx

from prefect_renderfarm.blocks.errors import (
    WorkerBusy,
    WorkerError,
    WorkerLost,
    WorkerRefused,
    WorkStopped,
)
from prefect_renderfarm.blocks.http.url_rules import HOSTS_VARIABLE, UrlRefused, UrlRules
from prefect_renderfarm.blocks.runtime.text import one_line

Value = TypeVar("Value")

_POLL_SECONDS = 0.1
# Client errors that pass without a change: RFC 9110, 15.5.9, and RFC 8470, section 5.2.
_PASSING = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY})
_MAX_REDIRECTS = 5
_CONNECT_SECONDS = 10.0
# Longest silence of a server.
_SILENCE_SECONDS = 60.0
_CLOSE_SECONDS = 5.0
_PART_BYTES = 1 << 20

# Who waits for a call, and what ends the wait: one thread looks at all, and not each at its own.
_waiting: dict[threading.Event, threading.Event] = {}
_loop: asyncio.AbstractEventLoop | None = None
_loop_lock = threading.RLock()  # a finalizer may interrupt its holder


def error_kind(response: httpx.Response) -> type[WorkerError] | None:
    """Return the error that an answer stands for; None if it is a success."""
    code = response.status_code
    if response.is_success:
        return None
    if code == HTTPStatus.TOO_MANY_REQUESTS:  # RFC 6585, section 4
        return WorkerBusy
    return WorkerLost if code >= 500 or code in _PASSING else WorkerRefused


def _without_queries(record: logging.LogRecord) -> bool:
    """Remove queries, which may be secret, from httpx's log of a request."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            each.copy_with(query=None, fragment=None) if isinstance(each, httpx.URL) else each
            for each in record.args
        )
    return True


logging.getLogger("httpx").addFilter(_without_queries)


def wait_until_stopped(
    step: Awaitable[Value], timeout: float, stop: threading.Event, name: str
) -> Value:
    """Await a step in the event loop of all requests; give it up within 0.1 s of a stop.

    Its connection is then closed, so that the server notices. Raises TimeoutError, WorkStopped.
    """
    waiting = asyncio.wait_for(step, timeout)
    future = asyncio.run_coroutine_threadsafe(waiting, _event_loop())
    return _result(future, stop, f"{name}: ended, because its job was stopped")


def call_until_stopped(call: Callable[[], Value], stop: threading.Event, name: str) -> Value:
    """Make a call that cannot be interrupted; within 0.1 s of a stop, raise WorkStopped.

    It then runs to its end in its thread, for which a process that ends does not wait.
    """
    future: concurrent.futures.Future[Value] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # raised where the result is waited for
            future.set_exception(error)

    threading.Thread(target=run, name=f"request for {name}", daemon=True).start()
    return _result(
        future, stop, f"{name}: no longer waited for, because its job was stopped; what the worker "
        "has begun runs to its end",
    )  # fmt: skip


def _result(future: concurrent.futures.Future[Value], stop: threading.Event, message: str) -> Value:
    over = threading.Event()
    future.add_done_callback(lambda _: over.set())
    _event_loop()  # which looks for stops
    _waiting[over] = stop
    try:
        over.wait()
        if not stop.is_set():
            return future.result()
    finally:
        del _waiting[over]
        future.cancel()
    raise WorkStopped(message)


def _look_for_stops(loop: asyncio.AbstractEventLoop) -> None:
    for over, stop in list(_waiting.items()):
        if stop.is_set():
            over.set()
    loop.call_later(_POLL_SECONDS, _look_for_stops, loop)


def _event_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop, in a thread of its own, of all requests of this process."""
    global _loop
    with _loop_lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _loop.call_soon(_look_for_stops, _loop)
            threading.Thread(target=_loop.run_forever, name="renderfarm-http", daemon=True).start()
        return _loop


def close_with(owner: object, client: httpx.AsyncClient) -> None:
    """Close a client's connections once its owner is gone."""
    run = asyncio.run_coroutine_threadsafe
    weakref.finalize(owner, lambda: run(client.aclose(), _event_loop())).atexit = False


class DownloadFailed(Exception):
    """A file could not be fetched; `again`: another attempt may succeed. Shows no URL's query."""

    def __init__(self, message: str, *, again: bool = False) -> None:
        super().__init__(message)
        self.again = again


class Download:
    """An answer whose body is still to be read; `size` is 0 if the server does not say."""

    def __init__(
        self, response: httpx.Response, max_bytes: int, wait: Callable[[Awaitable[Any]], Any]
    ) -> None:
        self.headers = response.headers
        self.size = int(response.headers.get("content-length", 0))
        self._response, self._max_bytes, self._wait = response, max_bytes, wait
        if (kind := error_kind(response)) is not None:
            raise DownloadFailed(
                f"the server answered {response.status_code}", again=kind is not WorkerRefused
            )
        # A small compressed answer may hold gigabytes, and none was asked for.
        encoding = self.headers.get("content-encoding", "identity")
        if encoding != "identity":
            what = one_line(encoding, 20)
            raise DownloadFailed(f"the server compresses it ({what}): serve it as it is")
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
    """Begin to fetch a file of at most `max_bytes`, in at most `seconds` up to its last part.

    Raises DownloadFailed if it cannot be, or may not; SetupError as `UrlRules`; and WorkStopped.
    """
    deadline, stopped = time.monotonic() + seconds, stop or threading.Event()

    def wait(step: Awaitable[Any]) -> Any:
        try:
            return wait_until_stopped(step, deadline - time.monotonic(), stopped, "a download")
        except TimeoutError:
            raise DownloadFailed(f"it took longer than {seconds:g} s", again=True) from None
        except (httpx.HTTPError, httpx.InvalidURL, UrlRefused) as error:
            text = one_line(str(error) or type(error).__name__, 400)
            raise DownloadFailed(text, again=isinstance(error, httpx.HTTPError)) from None

    # Without the environment: the transport reads its proxies.
    client = httpx.AsyncClient(
        transport=_CheckedTransport(UrlRules()),
        timeout=httpx.Timeout(min(_SILENCE_SECONDS, seconds), connect=_CONNECT_SECONDS),
        headers={"Accept-Encoding": "identity"},
        trust_env=False,
    )
    try:
        yield Download(wait(_send(client, url)), max_bytes, wait)
    finally:
        with suppress(Exception):
            wait_until_stopped(client.aclose(), _CLOSE_SECONDS, threading.Event(), "a download")


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
        loop, port = asyncio.get_running_loop(), request.url.port or 443
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(f"its host is not found: {error}") from None
        for address in self._rules.allowed(host, [str(place[0]) for *_, place in found]):
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
        self._used.append(httpx.AsyncHTTPTransport(proxy=proxy))
        return self._used[-1]


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
