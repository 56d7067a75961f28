"""Repeated calls: again while a server does not answer, or at intervals."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_exponential,
)

from prefect_renderfarm.blocks.errors import ObjectMissing, StorageError, StorageRefused
from prefect_renderfarm.blocks.runtime.prefect_api import is_away, run_log

Answer = TypeVar("Answer")


def is_transient(error: BaseException) -> bool:
    """Return whether the same call may succeed a moment later."""
    if isinstance(error, StorageError):
        return not isinstance(error, ObjectMissing | StorageRefused)
    return is_away(error)


def retry(
    call: Callable[[], Answer],
    what: str,
    *,
    seconds: float = 15.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Answer:
    """Call a function, and again after 1, 2, 4, 8, 8 … s while it fails with a transient error.

    The clients of storages and of Prefect repeat each request a few times before that.

    Args:
        call: The function.
        what: What it asks for, in the log.
        seconds: Time from the first call after which the error counts.
        sleep: Waits for some seconds.

    Returns:
        What the function returned.

    Raises:
        Exception: The function's: one that is not transient, or the last one.
    """

    def log(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        pause = state.next_action.sleep if state.next_action else 0.0
        run_log().info("%s: tried again in %g s: %s", what, pause, error)

    attempts = Retrying(
        retry=retry_if_exception(is_transient),
        wait=wait_exponential(max=8),
        stop=stop_after_delay(seconds),
        sleep=sleep,
        before_sleep=log,
        reraise=True,
    )
    return attempts(call)


@contextmanager
def periodic(
    call: Callable[[], object], seconds: float, name: str, *, wait: bool = False
) -> Iterator[None]:
    """Inside the block, call a function at intervals.

    An error is logged once, and the calls go on. The thread has the run's context, so its log lines
    are the run's. Leaving the block ends the thread.

    Args:
        call: The function.
        seconds: Interval, from the end of one call to the begin of the next.
        name: The thread's name, and the function's in the log.
        wait: Whether leaving the block waits for a call that is under way.
    """
    over = threading.Event()
    log = run_log()

    def repeat() -> None:
        warned = False
        while not over.wait(seconds):
            try:
                call()
            except (Exception, SystemExit) as error:  # rich raises SystemExit at a broken pipe
                if not warned:
                    warned = True
                    with suppress(Exception, SystemExit):
                        log.warning("%s: %s; it is tried again", name, error)

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(repeat,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        if wait:
            thread.join()
