"""A small picture of a media file's first frame, for people to look at."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from pathlib import Path

from av import CodecContext, VideoCodecContext

from prefect_renderfarm.blocks.errors import MediaFault
from prefect_renderfarm.blocks.media.image_sequence import complete_images, is_image_sequence
from prefect_renderfarm.blocks.media.reader import faults, open_media
from prefect_renderfarm.blocks.media.reader_process import read_apart

WIDTH = 160  # pixels
_MOST_HEIGHT = 320
# Of 2 to 31, the best to the worst: some 4,000 bytes a picture.
_QUALITY = "6"


def thumbnail(path: Path) -> bytes:
    """Return a JPEG of a file's first frame, 160 pixels wide; empty if it cannot be made."""
    with suppress(Exception):  # whatever it is: a chunk is as good without
        return read_apart(encode_first_frame, path.absolute())
    return b""


def encode_first_frame(path: Path) -> bytes:
    """Return what `thumbnail` does, with libav, in this process. Raises: MediaFault."""
    file = complete_images(path)[0] if is_image_sequence(path) else path
    with faults(), open_media(file) as container:
        for frame in container.decode(video=0):
            aspect = container.streams.video[0].sample_aspect_ratio or Fraction(1)
            height = round(WIDTH * frame.height / (frame.width * aspect) / 2) * 2
            small = frame.reformat(WIDTH, min(max(height, 2), _MOST_HEIGHT), "yuvj420p")
            encoder = CodecContext.create("mjpeg", "w")
            assert isinstance(encoder, VideoCodecContext)  # noqa: S101 -- for mypy
            encoder.width, encoder.height, encoder.pix_fmt = small.width, small.height, "yuvj420p"
            encoder.time_base = Fraction(1, 25)
            encoder.options = {"qmin": _QUALITY, "qmax": _QUALITY}
            small.pts = 0
            return b"".join(map(bytes, [*encoder.encode(small), *encoder.encode(None)]))
    raise MediaFault("has no frame")
