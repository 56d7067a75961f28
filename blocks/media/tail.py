"""A file that is being written: read back, and flushed to the disk, while it grows."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

# Reading waits this long at the end of what is written.
_POLL_SECONDS = 0.02
# So much is flushed at once; what is left at the end takes a fraction of a second.
_FLUSH_BYTES = 32_000_000


class FileTail:
    """Reads a file to its end while another writes it. At the end it waits, until it is told.

    It has no `seek`, so libav reads it as it reads a pipe, from front to back.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._descriptor = os.open(path, os.O_RDONLY)
        self._position = 0
        self._whole = threading.Event()
        self._abandoned = False

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; none at the end of the whole file."""
        while not self._abandoned:
            whole = self._whole.is_set()  # asked first: what is written later is read, too
            data = os.pread(self._descriptor, size, self._position)
            if data or whole:
                self._position += len(data)
                return data
            self._whole.wait(_POLL_SECONDS)
        return b""

    def finish(self, *, abandon: bool = False) -> None:
        """Tell that nothing more will be written, or that nobody wants to know."""
        self._abandoned = abandon
        self._whole.set()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class SteadyFlush:
    """Flushes a file to the disk in the background while it grows.

    A disk tells of what it could not write once. So an error of any flush is raised, if not by
    `grown`, then by `close`.

    What is flushed at the end of a large file would otherwise take as long as writing it.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._flushed_at = 0
        self._under_way: Future[None] | None = None

    def grown(self, size: int) -> None:
        """Tell how many bytes are written so far."""
        if self._under_way is not None:
            if not self._under_way.done():
                return
            self._under_way.result()
        if size - self._flushed_at >= _FLUSH_BYTES:
            self._flushed_at = size
            self._under_way = self._thread.submit(os.fsync, self._descriptor)

    def close(self) -> None:
        """Wait for what is under way, and close."""
        self._thread.shutdown()
        os.close(self._descriptor)
        if self._under_way is not None:
            self._under_way.result()
