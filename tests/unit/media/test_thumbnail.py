"""The small picture of a media file's first frame."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_samples import Recipe, frame_picture, write_clip
from PIL import Image

from prefect_renderfarm.blocks.media.thumbnail import thumbnail

RED = (200, 20, 20)


def decoded(jpeg: bytes) -> np.ndarray:
    """Return the picture of a JPEG."""
    with av.open(io.BytesIO(jpeg), format="jpeg_pipe") as container:
        [frame] = container.decode(video=0)
        return frame.to_ndarray(format="rgb24")


@pytest.mark.parametrize(
    "recipe",
    [Recipe(), Recipe(".mov", "prores_ks", pixel_format="yuv422p10le"), Recipe(".mkv", "ffv1")],
    ids=str,
)
def test_first_frame(tmp_path: Path, recipe: Recipe) -> None:
    """It is the first frame and no other, 160 pixels wide, in some kilobytes."""
    jpeg = thumbnail(write_clip(tmp_path / f"clip{recipe.ending}", 7, 5, recipe))
    assert 500 < len(jpeg) < 20_000
    picture = decoded(jpeg).astype(int)
    assert picture.shape == (96, 160, 3)
    errors = [np.abs(picture - frame_picture(7 + n, 160, 96)).mean() for n in range(5)]
    assert min(errors) == errors[0]


def test_shape(tmp_path: Path) -> None:
    """Pixels that are not square are made so; a tall picture is cut down."""
    path = tmp_path / "clip.mp4"
    for width, height, aspect, shape in (
        (320, 180, Fraction(1), (90, 160, 3)),
        (160, 120, Fraction(4, 3), (90, 160, 3)),
        (16, 600, Fraction(1), (320, 160, 3)),
    ):
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", 24)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.sample_aspect_ratio = aspect
            frame = av.VideoFrame(width, height, "yuv420p")
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
        assert decoded(thumbnail(path)).shape == shape


def test_pictures(tmp_path: Path) -> None:
    """Of numbered pictures it is the first one, also with transparency."""
    for number, colour in enumerate((RED, (0, 0, 255))):
        Image.new("RGBA", (64, 36), (*colour, 255)).save(tmp_path / f"{number:04d}.png")
    mean = decoded(thumbnail(tmp_path / "%04d.png")).mean(axis=(0, 1))
    assert np.abs(mean - RED).max() < 12


def test_nothing_to_see(tmp_path: Path) -> None:
    """A file that is missing, damaged, or without video has none."""
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(write_clip(tmp_path / "clip.mp4", 0, 5, Recipe()).read_bytes()[:300])
    for path in (tmp_path / "none.mp4", broken, tmp_path / "%04d.png"):
        assert thumbnail(path) == b""
