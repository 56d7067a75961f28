"""Requests that can be given up at any moment, and what their answers mean."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from functools import cache
from http import HTTPStatus
from typing import Any, TypeVar

import httpx

from prefect_renderfarm.blocks.errors import WorkStopped

Value = TypeVar("Value")

_POLL_SECONDS = 0.1
# Servers keep an idle connection for 5 s and longer; one that they just closed costs an attempt.
_IDLE_SECONDS = 4.0


class Status(Enum):
    """What to do about an answer."""

    ANSWER = auto()  # read it
    BUSY = auto()  # ask again in a while
    LOST = auto()  # another attempt may succeed
    REFUSED = auto()  # another attempt would end in the same way


# Client errors that pass without a change: RFC 9110, 15.5.9, and RFC 8470, section 5.2.
_PASSING = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY})
_FIXES: dict[int, str] = {  # RFC 9110, 15.5
    HTTPStatus.UNAUTHORIZED: "check the token or key",
    HTTPStatus.FORBIDDEN: "check the token or key, and what it may do",
    HTTPStatus.NOT_FOUND: "check the path of the URL",
    HTTPStatus.METHOD_NOT_ALLOWED: "check that the URL is a worker's",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "raise the worker's limit, or shorten the command",
}


def status_of(response: httpx.Response) -> Status:
    """Return what to do about an answer."""
    code = response.status_code
    if response.is_success:
        return Status.ANSWER
    if code == HTTPStatus.TOO_MANY_REQUESTS:  # RFC 6585, section 4
        return Status.BUSY
    return Status.LOST if code >= 500 or code in _PASSING else Status.REFUSED


def describe(response: httpx.Response) -> str:
    """Return an answer's status and the fix, in one line."""
    code = response.status_code
    text = f"answers {code} {httpx.codes.get_reason_phrase(code)}".rstrip()
    if response.is_redirect:
        return f"{text}: give the address that it leads to"
    fix = _FIXES.get(code)
    if fix is None and status_of(response) is Status.REFUSED:
        fix = "check that the URL is that of a worker of the same version"
    return f"{text}: {fix}" if fix else text


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header (RFC 9110, 10.2.3); None if there is none."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    # RFC 9110, 5.6.7: dates are in UTC, also those whose form does not say so.
    date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


class _WithoutQueries(logging.Filter):
    """Removes queries, which may be secret, from httpx's log of each request."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                each.copy_with(query=None, fragment=None) if isinstance(each, httpx.URL) else each
                for each in record.args
            )
        return True


logging.getLogger("httpx").addFilter(_WithoutQueries())


class HttpConnections:
    """Up to `width` connections to a worker, which are kept; safe to use from several threads."""

    def __init__(self, width: int, connect_timeout: float) -> None:
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=connect_timeout),
            limits=httpx.Limits(
                max_connections=width,
                max_keepalive_connections=width,
                keepalive_expiry=_IDLE_SECONDS,
            ),
        )
        weakref.finalize(self, _close, self._client).atexit = False

    def send(
        self, method: str, url: httpx.URL, *, timeout: float, stop: threading.Event, **request: Any
    ) -> httpx.Response:
        """Send a request and wait for the whole answer, whatever its status.

        When a request is given up, its connection is closed, so that the server notices.

        Args:
            method: Such as POST.
            url: The whole address.
            timeout: Longest time until the answer is complete, in seconds.
            stop: Gives the request up when set.
            request: Headers and body, as httpx takes them.

        Raises:
            TimeoutError: The answer was not complete in time.
            httpx.HTTPError: There was no connection, or no answer.
            WorkStopped: `stop` was set.
        """

        async def send() -> httpx.Response:
            async with asyncio.timeout(timeout):
                return await self._client.request(method, url, **request)

        return wait_until_stopped(send(), stop)


def wait_until_stopped(request: Coroutine[Any, Any, Value], stop: threading.Event) -> Value:
    """Run a request in the event loop of all requests; give it up within 0.1 s of a stop.

    Returns:
        Its result; its error is raised here.

    Raises:
        WorkStopped: `stop` was set.
    """
    future = asyncio.run_coroutine_threadsafe(request, _loop())
    return _result(future, stop, "a request was given up, because its job was stopped")


def call_until_stopped(call: Callable[[], Value], stop: threading.Event, name: str) -> Value:
    """Make a call that cannot be interrupted; wait no longer for it within 0.1 s of a stop.

    It then runs to its end in its thread, for which a process that ends does not wait.

    Args:
        call: Returns the result; its error is raised here.
        stop: Ends the waiting when set.
        name: What the call is for, in the error.

    Raises:
        WorkStopped: `stop` was set.
    """
    if stop.is_set():
        raise WorkStopped(f"{name}: not requested, because its job was stopped")
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
    try:
        while not stop.is_set():
            if concurrent.futures.wait([future], _POLL_SECONDS).done:
                return future.result()
    finally:
        future.cancel()
    raise WorkStopped(message)


_starting = threading.Lock()


def _loop() -> asyncio.AbstractEventLoop:
    """Return the event loop, in a thread of its own, of all requests of this process."""
    with _starting:
        return _started_loop()


@cache
def _started_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="renderfarm-http", daemon=True).start()
    return loop


def _close(client: httpx.AsyncClient) -> None:
    loop = _loop()
    loop.call_soon_threadsafe(lambda: loop.create_task(client.aclose()))
