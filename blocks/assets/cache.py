"""Input files that this machine has fetched, kept for the next chunks."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prefect_renderfarm.blocks.errors import FatalWorkerError, WorkerLost, WorkStopped
from prefect_renderfarm.blocks.storage.atomic_file import remove_all_leftovers

# With less than this free, a command would most likely fail with another message.
MIN_FREE_BYTES = 64_000_000
# Files beyond this size or age are removed. AWS Lambda gives a function 10 GB at most.
_MAX_BYTES = 20_000_000_000
_MAX_SECONDS = 7 * 86_400
# boto3 renames a file of its own to the one it fetches, which drops that one's lock.
_LEFTOVER_SECONDS = 60.0
_POLL_SECONDS = 0.05


def require_room(folder: Path, size: int = 0) -> None:
    """Raise WorkerLost unless a disk takes so many bytes and has some left to work with."""
    free = shutil.disk_usage(folder).free
    if free < size + MIN_FREE_BYTES:
        needed = f", and {size:,} are needed" if size else ""
        raise WorkerLost(
            f"the worker's disk at {str(folder)!r} has only {free:,} bytes free{needed}: free "
            "some, or set TMPDIR to another disk"
        )


class AssetCache:
    """Fetched files by name, in a folder that this user's workers on this machine share.

    Threads and processes may use it at once, and any of them may be killed: a file is there whole
    or not at all, and one of them fetches it. It holds at most 20 GB beyond what one chunk needs,
    and nothing that no chunk has used for a week.

    Raises:
        FatalWorkerError: The folder can be written by another user.
    """

    def __init__(self, folder: Path | None = None) -> None:
        name = f"renderfarm-assets-{os.getuid()}"
        self.folder = Path(tempfile.gettempdir()) / name if folder is None else folder
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self.folder.lstat()
        private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o022
        if not private or found.st_uid != os.getuid():
            raise FatalWorkerError(
                f"the folder of fetched assets {str(self.folder)!r} can be written by others: "
                "remove it, or set TMPDIR to another folder"
            )

    def has(self, name: str) -> bool:
        """Return whether a file is in the cache."""
        return (self.folder / name).exists()

    def fetch(self, name: str, get: Callable[[Path], None], stop: threading.Event) -> Path:
        """Return a file's path; fetch it if it is not in the cache.

        Args:
            name: Its name, beginning with two hexadecimal digits.
            get: Writes the file, whole or not at all.
            stop: Ends the wait for another worker that fetches it, with WorkStopped.
        """
        path = self.folder / name
        if not path.exists():
            with self._lock(name, stop):
                if not path.exists():
                    get(path)
        # The time of access says what was used last; that of the content stays.
        with suppress(FileNotFoundError):
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        return path

    def drop(self, name: str) -> None:
        """Remove a file, such as a damaged one."""
        (self.folder / name).unlink(missing_ok=True)

    def make_room(self, size: int, keep: Collection[str]) -> None:
        """Remove the least recently used files until so many bytes fit on the disk, except `keep`.

        Raises:
            WorkerLost: They do not fit.
        """
        now = time.time()
        entries = sorted(self._entries(), key=lambda entry: entry[1].st_atime)
        total = sum(found.st_size for _, found in entries)
        for path, found in entries:
            free = shutil.disk_usage(self.folder).free
            tight = total + size > _MAX_BYTES or free < size + MIN_FREE_BYTES
            if path.name not in keep and (tight or now - found.st_atime > _MAX_SECONDS):
                path.unlink(missing_ok=True)
                total -= found.st_size
        require_room(self.folder, size)

    def _entries(self) -> Iterator[tuple[Path, os.stat_result]]:
        remove_all_leftovers(self.folder, older_than=_LEFTOVER_SECONDS)
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                if not path.name.startswith((".", "lock-")):
                    yield path, path.stat()

    @contextmanager
    def _lock(self, name: str, stop: threading.Event) -> Iterator[None]:
        """Hold one of 256 locks, which are never removed: a lock that is removed locks nothing."""
        flags = os.O_RDWR | os.O_CREAT
        descriptor = os.open(self.folder / f"lock-{name[:2]}", flags, mode=0o600)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if stop.wait(_POLL_SECONDS):
                        raise WorkStopped("assets: not fetched, the job was stopped") from None
                except OSError:  # a file system without locks: then it may be fetched twice
                    break
            yield
        finally:
            os.close(descriptor)
