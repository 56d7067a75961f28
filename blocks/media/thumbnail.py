"""A small picture of a media file's first frame, for people to look at."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from av import CodecContext

from prefect_renderfarm.blocks.media.image_sequence import complete_images, is_image_sequence
from prefect_renderfarm.blocks.media.reader import open_media
from prefect_renderfarm.blocks.media.reader_process import read_apart

_WIDTH = 160  # pixels
_MOST_HEIGHT = 320
# Of 2 to 31, the best to the worst: some 4,000 bytes a picture.
_QUALITY = "6"


def thumbnail(path: Path) -> bytes:
    """Return a JPEG of a file's first frame, 160 pixels wide; empty if it cannot be made."""
    with suppress(Exception):  # whatever it is: a chunk is as good without
        return read_apart(encode_first_frame, path.absolute())
    return b""


def encode_first_frame(path: Path) -> bytes:
    """Return what `thumbnail` does, with libav, in this process."""
    file = complete_images(path)[0] if is_image_sequence(path) else path
    with open_media(file) as container:
        frame = next(container.decode(video=0))
        aspect = container.streams.video[0].sample_aspect_ratio or 1
    height = round(_WIDTH * frame.height / (frame.width * aspect) / 2) * 2
    small = frame.reformat(_WIDTH, min(max(height, 2), _MOST_HEIGHT), "yuvj420p")
    encoder: Any = CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = small.width, small.height, "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    encoder.options = {"qmin": _QUALITY, "qmax": _QUALITY}
    small.pts = 0
    return b"".join(map(bytes, [*encoder.encode(small), *encoder.encode(None)]))
