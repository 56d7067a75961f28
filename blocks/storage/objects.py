"""Objects under keys: the few operations that a job needs of a storage, or of a shared folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True)
class StoredObject:
    """An object in a store.

    Attributes:
        key: Its key.
        size: Bytes.
        modified: When it was written.
    """

    key: str
    size: int
    modified: datetime


class ObjectStore(ABC):
    """Objects under keys such as `renderfarm/film-1a2b3c4d5e6f/job.json`.

    All methods raise `StorageError` if the store does not answer, `StorageRefused` if asking again
    will not help, and `SetupError` for an operation that this kind of store lacks.

    Attributes:
        root: The folder in which jobs have theirs.
        in_place: Whether commands write their files into the store; then none is sent or fetched.
        poll_seconds: How often to look whether an object is there.
        parallel_fetches: Number of objects to fetch at the same time.
        name: The store, in errors and logs.
    """

    root: ClassVar[str]
    in_place: ClassVar[bool]
    poll_seconds: ClassVar[float]
    parallel_fetches: ClassVar[int]
    name: str

    @abstractmethod
    def read(self, key: str) -> bytes | None:
        """Return the bytes of a small object; None if it does not exist."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Write a small object: whole or not at all."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Write a small object unless one exists; return whether it was written.

        Of several that create the same object at the same time, one does.
        """

    @abstractmethod
    def has(self, key: str) -> bool:
        """Return whether an object exists."""

    @abstractmethod
    def objects(self, folder: str) -> Iterator[StoredObject]:
        """Give the objects in a folder and below it."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that do not exist are no error."""

    @abstractmethod
    def upload(self, path: Path, key: str) -> None:
        """Send a file."""

    @abstractmethod
    def download(self, key: str, path: Path) -> None:
        """Fetch an object into a file, which appears whole or not at all.

        Raises:
            ObjectMissing: It does not exist.
            OSError: The disk of this machine is full or cannot be written to; with the file's name.
        """

    @abstractmethod
    def copy(self, key: str, other: str) -> None:
        """Copy an object within the store.

        Raises:
            ObjectMissing: It does not exist.
        """
