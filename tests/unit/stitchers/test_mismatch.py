"""Chunks of differing encoder settings are refused, at once and while a film grows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from media_samples import Recipe, write_clip

from prefect_renderfarm.blocks import (
    AssemblyError,
    FfmpegStitcher,
    RemuxStitcher,
    StitchInputError,
    VideoStitcher,
)

MAKERS: list[Callable[[], VideoStitcher]] = [RemuxStitcher, FfmpegStitcher]


@pytest.fixture
def mixed(tmp_path: Path) -> list[Path]:
    """Chunks of one codec with differing parameter sets."""
    return [
        write_clip(tmp_path / "0.mp4", 0, 6, Recipe()),
        write_clip(tmp_path / "1.mp4", 6, 6, Recipe(b_frames=0)),
        write_clip(tmp_path / "2.mp4", 12, 6, Recipe()),
    ]


@pytest.mark.parametrize("make", MAKERS)
def test_differing_headers(
    make: Callable[[], VideoStitcher], mixed: list[Path], tmp_path: Path
) -> None:
    """The chunk is named, and what differs."""
    with pytest.raises(StitchInputError, match=r"1\.mp4.*number 2 of 3.*profile Constrained"):
        make().stitch(mixed, tmp_path / "film.mp4", fps=30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.mp4", "1.mp4", "2.mp4"]


def grow(chunks: list[Path], film: Path) -> None:
    """Make a film chunk by chunk."""
    with RemuxStitcher().grow(chunks, film, fps=30, frame_counts=[6] * len(chunks)) as growing:
        for _ in chunks:
            growing.append()


def test_growing_film_refuses_them_too(mixed: list[Path], tmp_path: Path) -> None:
    """A film that grows chunk by chunk is given up at the chunk that differs."""
    film = tmp_path / "film.mp4"
    with pytest.raises(StitchInputError, match=r"1\.mp4.*profile"):
        grow(mixed, film)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.mp4", "1.mp4", "2.mp4"]


@pytest.mark.parametrize("make", MAKERS)
def test_differing_headers_of_hevc(make: Callable[[], VideoStitcher], tmp_path: Path) -> None:
    """Parameter sets of HEVC count as those of H.264 do."""
    chunks = [
        write_clip(tmp_path / "0.mkv", 0, 6, Recipe(".mkv", "libx265")),
        write_clip(tmp_path / "1.mkv", 6, 6, Recipe(".mkv", "libx265", b_frames=0)),
    ]
    with pytest.raises(StitchInputError, match=r"1\.mkv.*codec header"):
        make().stitch(chunks, tmp_path / "film.mkv", fps=30)


def test_document_of_an_earlier_version() -> None:
    """A saved block with the former field `on_mismatch` loads; another unknown field is refused."""
    saved = {"block_type_slug": "remux-stitcher", "on_mismatch": "libx264", "faststart": True}
    assert RemuxStitcher.model_validate(saved) == RemuxStitcher(faststart=True)
    with pytest.raises(ValueError, match="no_such_field"):
        RemuxStitcher(no_such_field=1)  # type: ignore[call-arg]


def test_container_that_cannot_hold_the_codec(tmp_path: Path) -> None:
    """A codec that the film's container refuses is named, with the fix."""
    chunks = [write_clip(tmp_path / f"{n}.mkv", 6 * n, 6, Recipe(ending=".mkv")) for n in range(2)]
    with pytest.raises(AssemblyError, match=r"\.webm film cannot hold h264.*\.mkv"):
        RemuxStitcher().stitch(chunks, tmp_path / "film.webm", fps=30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.mkv", "1.mkv"]
