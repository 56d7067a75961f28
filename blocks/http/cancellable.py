"""Calls that cannot be interrupted, such as a request to a provider, but need not be waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillRunning
from typing import TypeVar

from prefect_renderfarm.blocks.errors import WorkStopped

_POLL_SECONDS = 0.1
Value = TypeVar("Value")


def call_until_stopped(call: Callable[[], Value], stop: threading.Event, name: str) -> Value:
    """Make a call in a thread of its own, and wait for it until the job is stopped.

    Args:
        call: What to call. After a stop it goes on alone, and what comes of it is dropped; a
            process that ends does not wait for it.
        stop: Ends the waiting when set, within 0.1 s.
        name: What is waited for, in the error.

    Returns:
        What the call returned; what it raises is raised.

    Raises:
        WorkStopped: `stop` was set before the call had ended.
    """
    if stop.is_set():
        raise WorkStopped(f"{name}: not asked for, because its job was stopped")
    future: Future[Value] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # raised where the call is waited for
            future.set_exception(error)

    threading.Thread(target=run, name=f"request for {name}", daemon=True).start()
    while True:
        try:
            return future.result(_POLL_SECONDS)
        except StillRunning:
            if future.done():
                raise  # a TimeoutError of the call's own
            if stop.is_set():
                raise WorkStopped(
                    f"{name}: no longer waited for, because its job was stopped; what the worker "
                    "has begun runs to its end"
                ) from None
