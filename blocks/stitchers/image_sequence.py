"""Assembly of image sequences: pictures are linked under new names, in one folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from prefect_renderfarm.blocks.errors import MediaFault, StitchInputError
from prefect_renderfarm.blocks.media.image_sequence import list_images, numbered
from prefect_renderfarm.blocks.media.model import Media
from prefect_renderfarm.blocks.stitchers.base import progress_report
from prefect_renderfarm.blocks.storage.atomic_file import exchange, remove_leftovers, scratch_folder


def check_sequence_folder(output: Path) -> None:
    """Refuse a sequence's folder that contains anything else.

    Raises:
        StitchInputError: It does.
    """
    folder = output.parent
    if not folder.is_dir():
        return
    images: set[str] = set()
    with suppress(MediaFault):
        images = {path.name for path in list_images(output).values()}
    others = [path.name for path in folder.iterdir() if path.name not in images]
    if others:
        raise StitchInputError(
            f"sequence {str(output)!r}: its folder also contains {others[0]!r}: name a folder of "
            "its own, which is replaced as a whole"
        )


def join_sequences(chunks: Sequence[Media], output: Path) -> int:
    """Replace the folder of `output` with the pictures of all chunks.

    Numbers start at the first chunk's first number. Pictures are linked if the disk allows it, else
    copied; the chunks stay.

    Returns:
        Size of all pictures in bytes.
    """
    number = min(list_images(chunks[0].path))
    folder, size, done, report = output.parent, 0, 0, progress_report()
    remove_leftovers(folder)
    with scratch_folder(folder) as scratch:
        new = scratch / "new"
        new.mkdir()
        for chunk in chunks:
            for image in chunk.images:
                target = numbered(new / output.name, number + done)
                try:
                    os.link(image, target)
                except OSError:
                    shutil.copy2(image, target)
                size += target.stat().st_size
                done += 1
            report(done, size)
        if folder.exists():
            exchange(new, folder)
        else:
            new.rename(folder)
    return size


def link_sequence(chunks: Sequence[Media], folder: Path) -> str:
    """Link the pictures of all chunks into an empty folder; return FFmpeg's name for them."""
    images = [image for chunk in chunks for image in chunk.images]
    name = f"%08d{images[0].suffix}"
    for number, image in enumerate(images):
        numbered(folder / name, number).symlink_to(image)
    return name
