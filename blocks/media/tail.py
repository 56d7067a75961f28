"""A file that is being written: read back, and flushed to the disk, while it grows."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

_POLL_SECONDS = 0.02
# Flushed at once; what is left at the end of the file takes a fraction of a second.
_FLUSH_BYTES = 32_000_000


class TailReader:
    """Reads a file to its end while another thread writes it; waits at the end until `finish`.

    It has no `seek`, so libav reads it as it reads a pipe, from front to back.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._descriptor = os.open(path, os.O_RDONLY)
        self._position = 0
        self._complete = threading.Event()
        self._abandoned = False

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; none at the end of the complete file."""
        while not self._abandoned:
            complete = self._complete.is_set()  # first: what is written later is read, too
            data = os.pread(self._descriptor, size, self._position)
            if data or complete:
                self._position += len(data)
                return data
            self._complete.wait(_POLL_SECONDS)
        return b""

    def finish(self, *, abandon: bool = False) -> None:
        """Note that the file is complete, or that the rest is not needed."""
        self._abandoned = abandon
        self._complete.set()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class BackgroundFlush:
    """Flushes a file to the disk in the background while it grows.

    One flush at the end of a large file would take as long as writing it. A disk reports lost data
    once, so an error of any flush is raised, if not by `grown`, then by `close`.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._flushed_at = 0
        self._running: Future[None] | None = None

    def grown(self, size: int) -> None:
        """Note how many bytes are written so far."""
        if self._running is not None:
            if not self._running.done():
                return
            self._running.result()
        if size - self._flushed_at >= _FLUSH_BYTES:
            self._flushed_at = size
            self._running = self._thread.submit(os.fsync, self._descriptor)

    def close(self) -> None:
        """Wait for a flush that is running, and close."""
        self._thread.shutdown()
        os.close(self._descriptor)
        if self._running is not None:
            self._running.result()
