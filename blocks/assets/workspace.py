"""Input files in a worker's workspace, and the cache through which this machine fetches them."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

from prefect_renderfarm.blocks.errors import FatalWorkerError, StorageError, WorkerLost, WorkStopped
from prefect_renderfarm.blocks.runtime.text import excerpt
from prefect_renderfarm.blocks.storage.atomic_file import remove_all_leftovers
from prefect_renderfarm.blocks.storage.manifest import file_sha256
from prefect_renderfarm.blocks.storage.objects import ObjectStore

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_MAX_PATH_BYTES = 1_024  # the limit of Amazon S3 for a key
_WIDTH = 8  # files that are transferred at once; the storage's client also splits large ones
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


def require_chosen_disk() -> None:
    """Raise WorkerLost if the folder of TMPDIR is full: Python would fill the disk of /tmp then.

    TEMP and TMP count where it is not set, as for `tempfile.gettempdir`
    (https://docs.python.org/3/library/tempfile.html).
    """
    chosen = next(filter(None, map(os.environ.get, ("TMPDIR", "TEMP", "TMP"))), None)
    if chosen and (folder := Path(chosen)).is_dir():
        require_room(folder)


class AssetCache:
    """Fetched files by name, in a folder that this user's workers on this machine share.

    Threads and processes may use it at once, and any of them may be killed: a file is there whole
    or not at all, and one of them fetches it. It holds at most 20 GB beyond what one chunk needs,
    and nothing that no chunk has used for a week.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.gettempdir(), f"renderfarm-assets-{os.getuid()}")
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
        """Return a file's path; if it is not in the cache, let `get` write it, whole or not at all.

        Its name begins with two hexadecimal digits. `stop` ends the wait for another worker that
        fetches it.
        """
        path = self.folder / name
        while not path.exists():
            # One of 256 locks, which are never removed: a lock that is removed locks nothing.
            with (self.folder / f"lock-{name[:2]}").open("ab") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if stop.wait(_POLL_SECONDS):
                        raise WorkStopped("assets: not fetched, the job was stopped") from None
                    continue
                except OSError:  # a file system without locks: then it may be fetched twice
                    pass
                if not path.exists():
                    get(path)
                break
        # The time of access says what was used last; that of the content stays.
        with suppress(FileNotFoundError):
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        return path

    def drop(self, name: str) -> None:
        """Remove a file, such as a damaged one."""
        (self.folder / name).unlink(missing_ok=True)

    def make_room(self, size: int, keep: Collection[str]) -> None:
        """Remove the longest unused files, not `keep`, until `size` fits. Raises: WorkerLost."""
        remove_all_leftovers(self.folder, older_than=_LEFTOVER_SECONDS)
        entries = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                if not path.name.startswith((".", "lock-")):
                    entries.append((path.stat(), path))
        now, total = time.time(), sum(found.st_size for found, _ in entries)
        for found, path in sorted(entries, key=lambda entry: entry[0].st_atime):
            free = shutil.disk_usage(self.folder).free
            tight = total + size > _MAX_BYTES or free < size + MIN_FREE_BYTES
            if path.name not in keep and (tight or now - found.st_atime > _MAX_SECONDS):
                path.unlink(missing_ok=True)
                total -= found.st_size
        require_room(self.folder, size)


class WantedFile(NamedTuple):
    """An input file for a workspace: `path` is its path there, `name` its name in the cache."""

    path: str
    size: int
    name: str
    store: ObjectStore
    key: str  # in the store
    sha256: str | None = None
    executable: bool = False


def place_files(
    files: Sequence[WantedFile], folder: Path, cache: AssetCache, stop: threading.Event
) -> None:
    """Put files into a workspace: links into the cache where the content is known, else copies."""
    targets = [inside(folder, file.path) for file in files]
    size = sum({file.name: file.size for file in files if not cache.has(file.name)}.values())
    size += sum(file.size for file in files if file.sha256 is None)
    cache.make_room(size, {file.name for file in files})
    in_parallel(lambda pair: _place(*pair, cache, stop), zip(files, targets, strict=True))


def in_parallel(call: Callable[[Item], Answer], items: Iterable[Item]) -> list[Answer]:
    """Call a function for all items, a few at once; after an error it is called no more."""
    with ThreadPoolExecutor(_WIDTH) as pool:
        return list(pool.map(call, items))


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder; raise FatalWorkerError if it leads out of it."""
    path = PurePosixPath(name)
    if not path.name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise FatalWorkerError(
            f"asset {excerpt(name)} is outside the workspace: give it another name"
        )
    if len(name.encode(errors="replace")) > _MAX_PATH_BYTES:
        raise FatalWorkerError(f"asset {excerpt(name)}: its path is too long: rename it")
    target = folder / path
    if not target.parent.resolve().is_relative_to(folder.resolve()):
        raise FatalWorkerError(f"asset {excerpt(name)}: a symbolic link leads out of the workspace")
    return target


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn errors of this machine's disk into a WorkerLost, of paths into a FatalWorkerError."""
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise FatalWorkerError(f"{what}: another asset has that path: rename one") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise FatalWorkerError(f"{what}: its path is too long: rename it") from None
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = ": free some space, or set TMPDIR to another disk" if full else ""
        raise WorkerLost(f"{what}: the worker's disk refuses it: {error}{fix}") from None


def _place(file: WantedFile, target: Path, cache: AssetCache, stop: threading.Event) -> None:
    if stop.is_set():
        raise WorkStopped("assets: not fetched, because the job was stopped")
    with disk_errors(f"asset {file.path!r}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        # Twice: a command may have altered the cached file, or another process removed it.
        for _ in range(2):
            cached = cache.fetch(file.name, partial(file.store.download, file.key), stop)
            with suppress(FileNotFoundError):
                _link(file, cached, target)
                if target.stat().st_size == file.size and (
                    file.sha256 is None or file_sha256(target) == file.sha256
                ):
                    return
                target.unlink()
            cache.drop(file.name)
    raise StorageError(
        f"asset {file.path!r}: {file.key!r} in {file.store.name} is not what was sent, by its size "
        "or SHA-256: delete it there and run render-job again"
    )


def _link(file: WantedFile, cached: Path, target: Path) -> None:
    if file.sha256 is None:
        if target.exists():
            raise FileExistsError(target)
        shutil.copyfile(cached, target)
        return
    cached.chmod(0o555 if file.executable else 0o444)
    try:
        os.link(cached, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # not every file system has hard links
        shutil.copy(cached, target)
