"""A finished chunk: its manifest, and size and SHA-256 of its file."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, Field, ValidationError

from prefect_renderfarm.blocks.errors import MediaFault
from prefect_renderfarm.blocks.media.image_sequence import is_image_sequence, list_images


class ChunkResult(BaseModel, frozen=True):
    """A chunk that is done: its file is in its place, whole and checked."""

    id: int = Field(description="Number of the chunk.")
    identity: str = Field(default="", description="Hash of all that determines its pictures.")
    start_frame: int = Field(description="First frame of its range.")
    frame_count: int = Field(description="Number of frames, counted in the file.")
    output_file: str = Field(description="Its file, relative to the job folder.")
    path: Path = Field(description="Its file, as an absolute path where it was rendered.")
    size: int = Field(description="Size of the file, in bytes.")
    sha256: str = Field(description="SHA-256 of the file, in hexadecimal.")
    seconds: float = Field(description="Time that the successful attempt took, in seconds.")
    attempts: int = Field(default=1, description="Number of attempts it took.")
    worker: str = Field(default="", description="The machine or function that rendered it.")
    signature: dict[str, str | int | None] = Field(
        default={}, description="How the file is coded: the same in all chunks of a film."
    )
    billed_seconds: float | None = Field(default=None, description="Seconds that are charged for.")
    memory_mb: int | None = Field(default=None, description="Memory charged, in 1,048,576 bytes.")
    images: tuple[str, ...] | None = Field(default=None, description="Names of its images, if any.")
    stored_as: str | None = Field(default=None, description="The file's key in the storage.")
    log: str | None = Field(default=None, description="The key of its full log in the storage.")
    thumbnail: str | None = Field(default=None, description="The key of a JPEG of its first frame.")
    published_at: datetime | None = Field(default=None, description="When it counted as done.")

    def slim(self) -> Self:
        """Return the same with less memory: what is alike in all chunks of a film is shared.

        pydantic keeps a set of 2 kB with each object, of the names of the fields that were given.
        """
        alike = _signatures.setdefault(tuple(self.signature.items()), self.signature)
        values = self.__dict__ | {"signature": alike}
        return self.model_construct(_fields_set=_all_fields, **values)


_signatures: dict[tuple[tuple[str, str | int | None], ...], dict[str, str | int | None]] = {}
_all_fields = set(ChunkResult.model_fields)


def parse_manifest(data: bytes | str | None) -> ChunkResult | None:
    """Return the manifest in a JSON text; None if there is none, or half of one."""
    try:
        return ChunkResult.model_validate_json(data) if data else None
    except ValidationError:
        return None


def content(path: Path) -> tuple[int, str] | None:
    """Return size in bytes and SHA-256 of a chunk's output; None if it is not there.

    Those of an image sequence are of all images together, their names included.
    """
    if path.is_file():
        return path.stat().st_size, file_sha256(path)
    if not is_image_sequence(path):
        return None
    try:
        images = list(list_images(path).values())
    except MediaFault:
        return None
    lines = "".join(f"{file_sha256(image)}  {image.name}\n" for image in images)
    size = sum(image.stat().st_size for image in images)
    return size, hashlib.sha256(lines.encode()).hexdigest()


def remove(path: Path) -> None:
    """Remove a chunk's output; of a folder its images, and itself if it is empty then."""
    if path.is_file() or path.is_symlink() or not is_image_sequence(path):
        path.unlink(missing_ok=True)
        return
    with suppress(MediaFault):
        for image in list_images(path).values():
            image.unlink()
    if path.is_dir():
        with suppress(OSError):
            path.rmdir()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
