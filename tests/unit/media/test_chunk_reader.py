"""Reading chunk files by their sample tables tells the same as reading them in full."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from fault_table import TABLE, Fault
from faulty_media import Shop, bytes_of, wider
from media_samples import Recipe, write_clip

from prefect_renderfarm.blocks.chunks.render import ChunkReader
from prefect_renderfarm.blocks.errors import MediaFault
from prefect_renderfarm.blocks.media import reader as media_reader
from prefect_renderfarm.blocks.media.model import Media, Verify

FPS = Fraction(30)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Chunks for all tests here."""
    return Shop(tmp_path_factory.mktemp("shop"))


def told(reader: ChunkReader, path: Path) -> tuple[object, ...]:
    """Return what a reader says of a file, be it a fault."""
    try:
        media: Media = reader.read(path, FPS)
    except MediaFault as fault:
        return (str(fault),)
    return media.frames, media.fps, dict(media.signature), media.reorder, media.audio


@pytest.mark.parametrize("fault", TABLE, ids=lambda fault: fault.name)
def test_same_words(shop: Shop, fault: Fault) -> None:
    """Whatever a reader has read before, it says of a file what one says that begins with it."""
    bad = shop.bad(fault.name, fault.kind, fault.spoil)
    experienced = ChunkReader(Verify.PACKETS)
    for good in shop.good(fault.kind):
        assert told(experienced, good) == told(ChunkReader(Verify.PACKETS), good)
    assert told(experienced, bad) == told(ChunkReader(Verify.PACKETS), bad)


def test_alike_are_read_by_their_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libav opens the first chunk, and those that are coded or shown otherwise; no other."""
    opened: list[str] = []
    real = media_reader.read_apart

    def spy(function: Any, path: Path, *arguments: Any, **options: Any) -> Any:
        opened.append(path.name)
        return real(function, path, *arguments, **options)

    monkeypatch.setattr(media_reader, "read_apart", spy)
    reader = ChunkReader(Verify.PACKETS)
    for name, recipe in [("0", Recipe()), ("1", Recipe()), ("2", Recipe(width=192))]:
        assert reader.read(write_clip(tmp_path / f"{name}.mp4", 0, 6, recipe), FPS).frames == 6
    assert reader.read(bytes_of(wider)(tmp_path / "1.mp4", tmp_path), FPS).frames == 6
    assert opened == ["0.mp4", "2.mp4", "bad.mp4"]
