"""Objects under keys: the few operations that a job needs of a storage, or of a shared folder."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, NamedTuple

from prefect_renderfarm.blocks.errors import ObjectMissing
from prefect_renderfarm.blocks.storage.atomic_file import (
    create_atomic,
    is_temporary,
    link_atomic,
    write_atomic,
)


class StoredObject(NamedTuple):
    """An object in a store: its key, its bytes, and when it was written."""

    key: str
    size: int
    modified: datetime


class ObjectStore(ABC):
    """Objects under keys such as `renderfarm/film-1a2b3c4d5e6f/job.json`.

    All methods raise `StorageError` if the store does not answer, `StorageRefused` if asking again
    will not help, and `SetupError` for an operation that this kind of store lacks. `download` and
    `copy` raise `ObjectMissing`; `download` an `OSError` with the file's name if this machine's
    disk is full or cannot be written to.

    Attributes:
        root: The folder in which jobs have theirs.
        in_place: Whether commands write their files into the store; then none is sent or fetched.
        name: The store, in errors and logs.
    """

    root: ClassVar[str]
    in_place: ClassVar[bool]
    name: str

    @abstractmethod
    def read(self, key: str) -> bytes | None:
        """Return the bytes of a small object; None if it does not exist."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Write a small object: whole or not at all."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Write a small object unless one exists; return whether it was written. Atomic."""

    def link(self, key: str, seconds: int) -> str | None:
        """Return a URL by which anybody may fetch an object for some time; None: impossible."""
        return None

    def has(self, key: str) -> bool:
        """Return whether an object exists."""
        return self.read(key) is not None

    @abstractmethod
    def objects(self, folder: str) -> Iterator[StoredObject]:
        """Give the objects in a folder and below it."""

    @abstractmethod
    def find(self, keys: Collection[str]) -> dict[str, StoredObject]:
        """Return those of some objects that exist, by key, without a list of all that there are."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that do not exist are no error."""

    def upload(self, path: Path, key: str) -> bool:
        """Send a file; return whether the answer proves that the store has all of it."""
        self.write(key, path.read_bytes())
        return False

    def download(self, key: str, path: Path) -> None:
        """Fetch an object into a file, which appears whole or not at all."""
        if (data := self.read(key)) is None:
            raise ObjectMissing(f"{self.name} has no object {key!r}")
        write_atomic(path, data)

    @abstractmethod
    def copy(self, key: str, other: str) -> None:
        """Copy an object within the store."""


class FolderStore(ObjectStore):
    """Objects as files below a folder that all machines of a job share; errors are `OSError`."""

    root: ClassVar[str] = ".renderfarm"
    in_place: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"job folder {str(folder)!r}"

    def read(self, key: str) -> bytes | None:
        """Return the bytes of a file; None if it does not exist."""
        try:
            return (self.folder / key).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, key: str, data: bytes) -> None:
        """Write a file: whole or not at all."""
        write_atomic(self.folder / key, data)

    def create(self, key: str, data: bytes) -> bool:
        """Write a file unless one exists; return whether it was written."""
        return create_atomic(self.folder / key, data)

    def objects(self, folder: str) -> Iterator[StoredObject]:
        """Give the files in a folder and below it, but for those that are being written."""
        with suppress(FileNotFoundError), os.scandir(self.folder / folder) as entries:
            for entry in entries:
                key = f"{folder.rstrip('/')}/{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    yield from self.objects(key)
                elif not is_temporary(entry.name):
                    with suppress(FileNotFoundError):  # deleted meanwhile
                        yield _stored(key, entry.stat())

    def find(self, keys: Collection[str]) -> dict[str, StoredObject]:
        """Return those of some files that exist."""
        found = {}
        for key in keys:
            with suppress(FileNotFoundError):
                found[key] = _stored(key, (self.folder / key).stat())
        return found

    def delete(self, keys: Iterable[str]) -> None:
        """Delete files."""
        for key in keys:
            (self.folder / key).unlink(missing_ok=True)

    def copy(self, key: str, other: str) -> None:
        """Give a file another name."""
        try:
            link_atomic(self.folder / key, self.folder / other)
        except FileNotFoundError:
            raise ObjectMissing(f"{self.name} has no file {key!r}") from None


def _stored(key: str, found: os.stat_result) -> StoredObject:
    return StoredObject(key, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))
