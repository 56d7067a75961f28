"""Image sequences: frames as numbered pictures, in a folder or under a name with a number in it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av

from prefect_renderfarm.blocks.errors import MediaFault
from prefect_renderfarm.blocks.media.model import Signature, difference, specified

IMAGE_ENDINGS = (".png", ".exr", ".jpg", ".jpeg", ".tif", ".tiff", ".dpx", ".tga", ".bmp",
                 ".webp")  # fmt: skip
# As FFmpeg's image2 demuxer and most renderers write it.
_NUMBER = re.compile(r"%(?:0(\d+))?d")


def is_image_sequence(path: Path) -> bool:
    """Return whether a path names pictures: a folder, or a file with a picture's ending."""
    return path.suffix.lower() in IMAGE_ENDINGS or path.is_dir()


def has_number(path: Path) -> bool:
    """Return whether a path stands for many pictures, such as `film/%05d.png`."""
    return path.suffix.lower() in IMAGE_ENDINGS and bool(_NUMBER.search(path.name))


def numbered(path: Path, number: int) -> Path:
    """Return the path of one picture of a sequence such as `film/%05d.png`."""
    return path.with_name(_NUMBER.sub(lambda m: f"{number:0{m[1] or 1}d}", path.name))


def list_images(path: Path) -> dict[int, Path]:
    """Return the pictures of a sequence by their number, in order; MediaFault if there are none.

    The path is a folder, a name such as `film/%05d.png`, or one picture, whose number is 0.
    """
    if path.is_file():
        return {0: path}
    if path.is_dir():
        # Systems put hidden files beside pictures: macOS `._00001.png` on shared disks.
        found = sorted(
            file
            for file in path.iterdir()
            if file.suffix.lower() in IMAGE_ENDINGS and not file.name.startswith(".")
        )
        images: dict[int, Path] = {}
        for file in found:
            numbers = re.findall(r"\d+", file.stem)
            if not numbers:
                raise MediaFault(f"holds an image without a number, {file.name!r}")
            other = images.setdefault(int(numbers[-1]), file)
            if other is not file or file.suffix != found[0].suffix:
                other = other if other is not file else found[0]
                raise MediaFault(
                    f"holds several image sequences, with {other.name!r} and {file.name!r}: write "
                    "one into each folder"
                )
    else:
        parts = _NUMBER.split(path.name)
        if len(parts) != 3:
            raise MediaFault("does not exist")
        digits = rf"(\d{{{parts[1] or 1},}})"
        pattern = re.compile(re.escape(parts[0]) + digits + re.escape(parts[2]))
        names = path.parent.iterdir() if path.parent.is_dir() else ()
        images = {int(match[1]): file for file in names if (match := pattern.fullmatch(file.name))}
    if not images:
        raise MediaFault("holds no images")
    return dict(sorted(images.items()))


def complete_images(path: Path) -> tuple[Path, ...]:
    """Return the pictures of a sequence in order; MediaFault if a number is missing."""
    images = list_images(path)
    first, last = min(images), max(images)
    for number in range(first, last):
        if number not in images:
            raise MediaFault(f"has no image {number}, but images {first} to {last}")
    return tuple(images.values())


def read_images(images: Sequence[Path], *, decode: bool) -> Signature:
    """Return the signature that all pictures share; with `decode` of all, else of the first."""
    first = _read_image(images[0])
    if decode:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for image, found in zip(images, pool.map(_read_image, images), strict=True):
                if fault := difference(first, found):
                    raise MediaFault(f"has image {image.name!r} with {fault}")
    return first


def _read_image(path: Path) -> Signature:
    options = {"protocol_whitelist": "file", "err_detect": "crccheck+bitstream+buffer+explode",
               "pattern_type": "none"}  # fmt: skip
    try:
        with av.open(str(path.absolute()), options=options) as container:
            frame = next(container.decode(video=0))
            context = container.streams.video[0].codec_context
            if frame.is_corrupt:
                raise MediaFault(f"has a damaged image {path.name!r}")
            return {
                "tracks": "video",
                "codec": context.name,
                "frame size": f"{frame.width}x{frame.height}",
                "pixel format": frame.format.name,
                "colour primaries": specified(frame.color_primaries),
                "colour transfer": specified(frame.color_trc),
            }
    except FileNotFoundError:
        raise MediaFault(f"has no image {path.name!r} any more") from None
    except (av.FFmpegError, OSError, ValueError, StopIteration) as error:
        reason = getattr(error, "strerror", None) or "no picture in it"
        raise MediaFault(f"has a damaged image {path.name!r} ({reason})") from None
