"""Chunks of differing encoder settings are refused, at once and while a film grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from media_samples import Recipe, frame_hashes, write_clip

from prefect_renderfarm.blocks import (
    AssemblyError,
    FfmpegStitcher,
    RemuxStitcher,
    StitchInputError,
    VideoStitcher,
)
from prefect_renderfarm.blocks.errors import NotAppendableError
from prefect_renderfarm.blocks.media.model import Media
from prefect_renderfarm.blocks.stitchers import checked

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


def grow(chunks: list[Path], film: Path, count: int | None = None) -> None:
    """Make a film of chunks, of which so many are appended, one by one; None: all."""
    with RemuxStitcher().grow(chunks, film, fps=30, frame_counts=[6] * len(chunks)) as growing:
        for _ in chunks[:count]:
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


def test_chunk_that_cannot_be_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk with more B-frames in a row than those before it needs all chunks at once."""
    chunks = [write_clip(tmp_path / f"{n}.mp4", 6 * n, 6, Recipe()) for n in range(3)]
    depths = dict(zip(chunks, (3, 3, 4), strict=True))
    real = checked.read_media

    def read_media(path: Path, *args: Any, **options: Any) -> Media:
        return replace(real(path, *args, **options), reorder=depths[path])

    monkeypatch.setattr(checked, "read_media", read_media)
    with pytest.raises(NotAppendableError, match=r"2\.mp4' has more B-frames in a row"):
        grow(chunks, tmp_path / "film.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.mp4", "1.mp4", "2.mp4"]
    depths[chunks[2]] = 3
    grow(chunks, tmp_path / "film.mp4")
    assert frame_hashes(tmp_path / "film.mp4") == [
        each for path in chunks for each in frame_hashes(path)
    ]


def test_film_that_lacks_a_chunk(tmp_path: Path) -> None:
    """A film to which not all chunks were appended is not published."""
    chunks = [write_clip(tmp_path / f"{n}.mp4", 6 * n, 6, Recipe()) for n in range(2)]
    film = tmp_path / "film.mp4"
    for number in range(2):
        with pytest.raises(StitchInputError, match=f"{2 - number} of 2 chunks were not appended"):
            grow(chunks, film, number)
        assert not film.exists()


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
