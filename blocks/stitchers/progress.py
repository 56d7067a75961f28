"""How far an assembly is: told by stitchers, shown by whoever watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# Takes the number of frames and of bytes that are written so far.
Watcher = Callable[[int, int], None]


def _nobody(_frames: int, _size: int) -> None:
    return


_watcher: ContextVar[Watcher] = ContextVar("assembly_progress", default=_nobody)


def watcher() -> Watcher:
    """Return whom to tell of the progress of an assembly that runs here, from any thread."""
    return _watcher.get()


@contextmanager
def watching(watch: Watcher) -> Iterator[None]:
    """Inside the block, have assemblies in this thread tell their progress to `watch`."""
    token = _watcher.set(watch)
    try:
        yield
    finally:
        _watcher.reset(token)
