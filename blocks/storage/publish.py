"""How a film takes its name: whole or not at all, with an error that names a full disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect_renderfarm.blocks.errors import AssemblyError
from prefect_renderfarm.blocks.storage.atomic_file import atomic_file, remove_leftovers

# Less than this is free: the disk may well be why a film could not be written.
_NEARLY_FULL_BYTES = 1_000_000


@contextmanager
def publishing(output: Path) -> Iterator[Path]:
    """Give the path of a temporary file to write a film to; then give it its name.

    What a killed process left of this film is removed first.

    Raises:
        AssemblyError: The film cannot be written; the message names the disk and its free space.
    """
    remove_leftovers(output)
    # The inner one looks at the disk while what fills it is still there.
    with _naming_errors(output), atomic_file(output) as film, naming_the_disk(output):
        yield film


@contextmanager
def naming_the_disk(output: Path) -> Iterator[None]:
    """Turn the system's errors into an AssemblyError that tells of the disk.

    Raises:
        AssemblyError: What is written in the block cannot be.
    """
    try:
        with _naming_errors(output):
            yield
    except AssemblyError as error:
        # Some programs do not tell that their last bytes found no room.
        told = isinstance(error.__cause__, OSError)
        if not told and type(error) is AssemblyError and _free_bytes(output) < _NEARLY_FULL_BYTES:
            raise AssemblyError(f"film {str(output)!r}: {error}; {disk_of(output)}") from error
        raise


@contextmanager
def _naming_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AssemblyError(
            f"film {str(output)!r} cannot be written: {error.strerror or error}; {disk_of(output)}"
        ) from error


def _free_bytes(output: Path) -> int:
    return shutil.disk_usage(_existing(output)).free


def disk_of(output: Path) -> str:
    """Return, for a message, which disk a file is on or would be, and how full that is."""
    folder = _existing(output)
    usage = shutil.disk_usage(folder)
    while not folder.is_mount():
        folder = folder.parent
    return f"the disk at {str(folder)!r} has {usage.free:,} of {usage.total:,} bytes free"


def _existing(output: Path) -> Path:
    return next(folder for folder in output.parents if folder.is_dir())
