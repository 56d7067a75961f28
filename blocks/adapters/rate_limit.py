"""How often and how many at once: a provider's limits, kept by this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prefect_renderfarm.blocks.errors import WorkStopped

_POLL_SECONDS = 0.1


class RateLimit:
    """Lets so many requests begin a second, and so many be under way at once.

    Args:
        a_second: Requests that may begin in a second; None: any number.
        in_flight: Requests that may be under way at once; None: any number.
    """

    def __init__(self, a_second: float | None = None, in_flight: int | None = None) -> None:
        self._gap = 0.0 if a_second is None else 1 / a_second
        self._places = None if in_flight is None else threading.BoundedSemaphore(in_flight)
        self._lock = threading.Lock()
        self._next = 0.0

    @contextmanager
    def slot(self, stop: threading.Event) -> Iterator[None]:
        """Wait for a place, and hold it inside the block.

        Raises:
            WorkStopped: `stop` was set meanwhile.
        """
        while self._places is not None and not self._places.acquire(timeout=_POLL_SECONDS):
            _raise_if(stop)
        try:
            self._wait_for_turn(stop)
            yield
        finally:
            if self._places is not None:
                self._places.release()

    def _wait_for_turn(self, stop: threading.Event) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        if stop.wait(turn - now) or stop.is_set():
            _raise_if(stop)


def _raise_if(stop: threading.Event) -> None:
    if stop.is_set():
        raise WorkStopped("a request was not sent, because its job was stopped")
