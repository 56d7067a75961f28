"""One image sequence made of many: pictures linked under new names, in a folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from prefect_renderfarm.blocks.errors import MediaFault, StitchInputError
from prefect_renderfarm.blocks.media.image_sequence import list_images, numbered
from prefect_renderfarm.blocks.media.model import Media
from prefect_renderfarm.blocks.stitchers.progress import watcher
from prefect_renderfarm.blocks.storage.atomic_file import exchange, remove_leftovers, scratch_folder


def check_sequence_folder(output: Path) -> None:
    """Refuse a folder for a sequence in which there is anything else.

    Raises:
        StitchInputError: There is.
    """
    folder = output.parent
    if not folder.is_dir():
        return
    ours: set[str] = set()
    with suppress(MediaFault):
        ours = {path.name for path in list_images(output).values()}
    others = [path.name for path in folder.iterdir() if path.name not in ours]
    if others:
        raise StitchInputError(
            f"sequence {str(output)!r}: its folder also holds {others[0]!r}: name a folder of its "
            "own, which is replaced as a whole"
        )


def join_sequences(chunks: Sequence[Media], output: Path) -> int:
    """Put the pictures of all chunks into the folder of `output`, which they replace as a whole.

    They are numbered from the first chunk's first number on. Pictures are linked where the disk
    allows it, else copied; the chunks stay.

    Returns:
        Size of all pictures in bytes.
    """
    number = min(list_images(chunks[0].path))
    folder, size, done, tell = output.parent, 0, 0, watcher()
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
            tell(done, size)
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
