"""End a flow run whose worker is gone: nobody could cancel it any more."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.runtime import deployment

from prefect_renderfarm.blocks.runtime.periodic import periodic
from prefect_renderfarm.blocks.runtime.run_log import run_log

_POLL_SECONDS = 1.0


@contextmanager
def ending_with_its_worker() -> Iterator[None]:
    """Inside the block, end a deployed run in good order when the process that started it dies.

    A process worker that is killed leaves its flow runs running, and with them their renderers;
    cancelling would go through the worker. A process whose parent dies gets another parent. In a
    container, and for a flow that is called from Python, nothing is watched.
    """
    parent = os.getppid()
    if deployment.id is None or parent <= 1:
        yield
        return
    main = threading.main_thread().ident or 0
    ended = False

    def look() -> None:
        nonlocal ended
        if not ended and os.getppid() != parent:
            ended = True
            _print_nowhere()
            run_log().error("the worker that started this run is gone: the run ends, too")
            # Prefect ends a run in good order on SIGTERM; only the main thread can take it.
            signal.pthread_kill(main, signal.SIGTERM)

    with periodic(look, _POLL_SECONDS, "worker watch"):
        yield


def _print_nowhere() -> None:
    """Turn standard output and error, pipes to the worker, away from where nobody reads.

    Prefect prints its log with rich, which ends the thread that meets a broken pipe.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
