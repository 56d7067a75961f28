"""Files that appear under their name whole or not at all."""

from __future__ import annotations

import ctypes
import fcntl
import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from prefect_renderfarm.blocks.errors import AssemblyError

_NEARLY_FULL_BYTES = 1_000_000  # with less free, the disk may be why a film was not written
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{32}\.part(\..*)?", re.DOTALL)  # the digits of an UUID


@contextmanager
def atomic_file(final: Path) -> Iterator[Path]:
    """Give the path of a temporary file in the folder of `final` to write; then rename it.

    When the block ends well, the file is flushed to the disk and takes the place of `final` in one
    step (POSIX rename()), and the rename is flushed, too. Else the temporary file is removed and
    `final` is as it was. The temporary name keeps the ending of `final`.
    """
    with _held(final) as temporary:
        yield temporary
        _flush(temporary)  # by its name: a program may have put another file there
        temporary.replace(final)
        _flush(final.parent)


def scratch_folder(final: Path) -> AbstractContextManager[Path]:
    """Give an empty folder beside `final` for files that are needed while `final` is made."""
    return _held(final, folder=True)


def write_atomic(final: Path, data: bytes) -> None:
    """Write a small file so that it appears whole or not at all."""
    with atomic_file(final) as temporary:
        temporary.write_bytes(data)


def create_atomic(final: Path, data: bytes) -> bool:
    """Write a small file, whole or not at all, unless one exists; return whether it was written."""
    with _held(final) as temporary, suppress(FileExistsError):
        temporary.write_bytes(data)
        _flush(temporary)
        try:
            os.link(temporary, final)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            os.close(os.open(final, os.O_CREAT | os.O_EXCL))
            temporary.replace(final)
        _flush(final.parent)
        return True
    return False


def link_atomic(source: Path, final: Path) -> None:
    """Give a file another name, in one step: by a hard link, or where there are none by a copy.

    A link is not flushed: after a power failure the name may be missing, never the file half there.
    """
    with suppress(OSError):  # there is no such folder yet, or such a name already, or no links
        os.link(source, final)
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(final)
    try:
        os.link(source, temporary)
        temporary.replace(final)
    except OSError:
        write_atomic(final, source.read_bytes())
    finally:
        # POSIX rename() leaves it if both names are links to the same file.
        temporary.unlink(missing_ok=True)


def temporary_name(final: Path) -> Path:
    """Return a new temporary name beside `final`."""
    return final.with_name(f"{_stem(final)}{uuid4().hex}.part{final.suffix}")


def remove_leftovers(final: Path) -> None:
    """Remove temporary files and folders of `final` that no living process holds."""
    start, end = re.escape(_stem(final)), re.escape(f".part{final.suffix}")
    _remove_free(final.parent, re.compile(f"{start}[0-9a-f]{{32}}{end}"), math.inf)


def remove_all_leftovers(folder: Path, older_than: float = 3600.0) -> None:
    """Remove temporary files and folders that nobody holds or has written to for some seconds.

    The age counts, because not every network file system tells one machine what another one holds.
    """
    _remove_free(folder, _TEMPORARY, time.time() - older_than)


def is_temporary(name: str) -> bool:
    """Return whether a file or folder with this name is one that is not finished."""
    return _TEMPORARY.fullmatch(name) is not None


def _remove_free(folder: Path, name: re.Pattern[str], before: float) -> None:
    try:
        with os.scandir(folder) as found:
            paths = [Path(entry.path) for entry in found if name.fullmatch(entry.name)]
    except OSError:  # a folder that cannot be listed: whoever writes there will report why
        return
    for path in paths:
        with suppress(OSError):
            if path.stat().st_mtime >= before:
                continue
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
            finally:
                os.close(descriptor)


def exchange(new: Path, old: Path) -> None:
    """Let two folders change places, in one step where the system can (Linux, renameat2())."""
    with suppress(OSError, AttributeError):
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        at_here, exchanging = -100, 2
        if rename(at_here, os.fsencode(new), at_here, os.fsencode(old), exchanging) == 0:
            return
    aside = temporary_name(old)
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
    aside.rename(new)


def _stem(final: Path) -> str:
    # File systems count bytes: of a long name only the beginning fits, in whole characters.
    return f".{final.stem.encode(errors='ignore')[:100].decode(errors='ignore')}."


@contextmanager
def _held(final: Path, *, folder: bool = False) -> Iterator[Path]:
    """Make a temporary file or folder and lock it, so that others see that somebody is at work."""
    if not final.parent.is_dir():
        final.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        while True:
            path = temporary_name(final)
            for _ in range(2):  # what a signal raises may end the first, and comes once
                stack.callback(_remove, path)
            if folder:
                path.mkdir()
            try:
                flags = os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_EXCL
                descriptor = os.open(path, flags, 0o666)
            except FileNotFoundError:
                if folder:  # another process took it for a leftover
                    continue
                raise
            stack.callback(os.close, descriptor)
            with suppress(OSError):  # not every network file system has locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists():  # else it was removed before it was locked
                break
        yield path


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except (IsADirectoryError, PermissionError):  # Linux' and macOS' word for a folder
        if not path.is_dir():
            raise
        shutil.rmtree(path, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def publishing(output: Path) -> Iterator[Path]:
    """Give the path of a temporary file to write a film to; then give it its name.

    What a killed process left of this film is removed first. See `naming_the_disk` for errors.
    """
    remove_leftovers(output)
    # The inner one looks at the disk while what fills it is still there.
    with naming_the_disk(output), atomic_file(output) as film, naming_the_disk(output):
        yield film


@contextmanager
def naming_the_disk(output: Path) -> Iterator[None]:
    """Turn the system's errors into an AssemblyError that names the disk and its free space."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise AssemblyError(
            f"film {str(output)!r} cannot be written: {reason}; {disk_of(output)}"
        ) from error
    except AssemblyError as error:
        # Some programs do not report that their last bytes found no room.
        named = isinstance(error.__cause__, OSError | AssemblyError)
        full = shutil.disk_usage(_existing(output)).free < _NEARLY_FULL_BYTES
        if named or not full or type(error) is not AssemblyError:
            raise
        raise AssemblyError(f"film {str(output)!r}: {error}; {disk_of(output)}") from error


def disk_of(output: Path) -> str:
    """Return, for a message, which disk a file is on or would be, and how full that is."""
    folder = _existing(output)
    usage = shutil.disk_usage(folder)
    disk = next(place for place in (folder, *folder.parents) if place.is_mount())
    return f"the disk at {str(disk)!r} has {usage.free:,} of {usage.total:,} bytes free"


def _existing(output: Path) -> Path:
    return next(folder for folder in output.parents if folder.is_dir())
