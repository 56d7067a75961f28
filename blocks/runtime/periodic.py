"""Calls at intervals, from a thread of their own."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from prefect_renderfarm.blocks.runtime.run_log import run_log


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
