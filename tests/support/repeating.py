"""Look at something again and again while something else goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def repeating(look: Callable[[], object], seconds: float) -> Iterator[None]:
    """Inside the block, call a function every so many seconds, in a thread of its own.

    When it raises, it is called no more, and the error is raised at the end of the block.
    """
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(seconds):
            look()

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(repeat)
        try:
            yield
        finally:
            over.set()
        looking.result()
