"""Objects as files in a folder that all machines of a job share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from prefect_renderfarm.blocks.errors import ObjectMissing
from prefect_renderfarm.blocks.storage.atomic_file import (
    atomic_file,
    create_atomic,
    is_temporary,
    link_atomic,
    write_atomic,
)
from prefect_renderfarm.blocks.storage.objects import ObjectStore, StoredObject


class FolderStore(ObjectStore):
    """Objects as files in a folder; errors are those of the system, an `OSError`.

    Args:
        folder: The folder, absolute; a key is a path below it.
    """

    root: ClassVar[str] = ".renderfarm"
    in_place: ClassVar[bool] = True
    poll_seconds: ClassVar[float] = 0.05
    parallel_fetches: ClassVar[int] = 1

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

    def has(self, key: str) -> bool:
        """Return whether a file exists."""
        return (self.folder / key).is_file()

    def objects(self, folder: str) -> Iterator[StoredObject]:
        """Give the files in a folder and below it, but for those that are being written."""
        with suppress(FileNotFoundError), os.scandir(self.folder / folder) as entries:
            for entry in entries:
                key = f"{folder.rstrip('/')}/{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    yield from self.objects(key)
                elif not is_temporary(entry.name):
                    with suppress(FileNotFoundError):  # deleted meanwhile
                        found = entry.stat()
                        modified = datetime.fromtimestamp(found.st_mtime, UTC)
                        yield StoredObject(key, found.st_size, modified)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete files."""
        for key in keys:
            (self.folder / key).unlink(missing_ok=True)

    def upload(self, path: Path, key: str) -> None:
        """Copy a file into the folder."""
        with atomic_file(self.folder / key) as temporary:
            shutil.copyfile(path, temporary)

    def download(self, key: str, path: Path) -> None:
        """Copy a file out of the folder. Raises: ObjectMissing."""
        source = self.folder / key
        if not source.is_file():
            raise ObjectMissing(f"{self.name} has no file {key!r}")
        with atomic_file(path) as temporary:
            shutil.copyfile(source, temporary)

    def copy(self, key: str, other: str) -> None:
        """Give a file another name. Raises: ObjectMissing."""
        try:
            link_atomic(self.folder / key, self.folder / other)
        except FileNotFoundError:
            raise ObjectMissing(f"{self.name} has no file {key!r}") from None
