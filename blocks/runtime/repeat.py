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

# So long a run goes on without the server: to start it anew, or to let a limit of requests pass.
SERVER_AWAY_SECONDS = 900.0


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

    The clients of storages and of Prefect repeat each request a few times before that. After
    `seconds` from the first call, the last error is raised. `what` names the request in the log.
    """

    def log(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        run_log().info("%s: tried again in %g s: %s", what, state.upcoming_sleep, error)

    attempts = Retrying(
        retry=retry_if_exception(is_transient),
        wait=wait_exponential(max=8),
        stop=stop_after_delay(seconds),
        sleep=sleep,
        before_sleep=log,
        reraise=True,
    )
    return attempts(call)


def once_a_minute(log: Callable[[str], object]) -> Callable[[str | Callable[[], str]], None]:
    """Return a function that logs the first text, or what it makes, and then one a minute."""
    due = time.monotonic()

    def tell(text: str | Callable[[], str]) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + 60.0
            log(text if isinstance(text, str) else text())

    return tell


@contextmanager
def periodic(
    call: Callable[[], object], seconds: float, name: str, *, wait: bool = False
) -> Iterator[None]:
    """Inside the block, call a function some seconds after the begin, or its last call's end.

    An error is logged once, and the calls go on. The thread has the run's context, so its log lines
    are the run's. Leaving the block ends the thread, and waits for a running call if `wait` is set.
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
