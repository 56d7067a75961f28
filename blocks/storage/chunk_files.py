"""A chunk's output as a thing to hash and to remove: a file, or an image sequence."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from prefect_renderfarm.blocks.errors import MediaFault
from prefect_renderfarm.blocks.media.image_sequence import is_image_sequence, list_images


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
