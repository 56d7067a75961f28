"""Input files in a worker's workspace, wherever they come from."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from prefect_renderfarm.blocks.assets.cache import AssetCache
from prefect_renderfarm.blocks.errors import (
    FatalWorkerError,
    StorageError,
    WorkerLost,
    WorkStopped,
)
from prefect_renderfarm.blocks.runtime.text import excerpt
from prefect_renderfarm.blocks.storage.chunk_files import file_sha256

Item = TypeVar("Item")

# The limit of Amazon S3 for a key.
_MAX_PATH_BYTES = 1_024
# Files that are transferred at once; the storage's client also splits large ones.
_WIDTH = 8


@dataclass(frozen=True, kw_only=True)
class WantedFile:
    """An input file for a workspace.

    Attributes:
        path: Its path in the workspace.
        size: Bytes.
        name: Its name in this machine's cache.
        get: Fetches it into a file, whole or not at all.
        source: Its name at its source, for errors.
        sha256: SHA-256 of its content, in hexadecimal; None if not known.
        executable: Whether it may be run.
    """

    path: str
    size: int
    name: str
    get: Callable[[Path], None]
    source: str
    sha256: str | None = None
    executable: bool = False


def place_files(
    files: Sequence[WantedFile], folder: Path, cache: AssetCache, stop: threading.Event
) -> None:
    """Put files into a workspace, several at once.

    Files of known content are read-only links into the cache; others are copies.

    Raises:
        WorkerLost: They do not fit on the disk.
        FatalWorkerError: A path leads out of the workspace, or two files have the same.
        StorageError: A file could not be fetched, or is not what it should be.
        WorkStopped: `stop` was set.
    """
    targets = [inside(folder, file.path) for file in files]
    size = sum({file.name: file.size for file in files if not cache.has(file.name)}.values())
    size += sum(file.size for file in files if file.sha256 is None)
    cache.make_room(size, {file.name for file in files})

    def place(pair: tuple[WantedFile, Path]) -> None:
        if stop.is_set():
            raise WorkStopped("assets: not fetched, because the job was stopped")
        _place(*pair, cache, stop)

    in_parallel(place, zip(files, targets, strict=True))


def in_parallel(call: Callable[[Item], object], items: Iterable[Item]) -> None:
    """Call a function for all items, a few at once; the first error ends it."""
    with ThreadPoolExecutor(_WIDTH) as pool:
        try:
            waiting = [pool.submit(call, item) for item in items]
            for done in as_completed(waiting):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder. Raises: FatalWorkerError: it leads out of it."""
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
    with disk_errors(f"asset {file.path!r}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        # Twice: a command may have altered the cached file, or another process removed it.
        for _ in range(2):
            cached = cache.fetch(file.name, file.get, stop)
            with suppress(FileNotFoundError):
                _link(file, cached, target)
                if _is_right(file, target):
                    return
                target.unlink()
            cache.drop(file.name)
    raise StorageError(
        f"asset {file.path!r}: {file.source} is not what was sent, by its size or SHA-256: delete "
        "it there and run render-job again"
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


def _is_right(file: WantedFile, path: Path) -> bool:
    if path.stat().st_size != file.size:
        return False
    return file.sha256 is None or file_sha256(path) == file.sha256
