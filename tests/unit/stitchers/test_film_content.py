"""A film is compared with its chunks: properties, labels, and the pictures at its seams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from faulty_media import ffmpeg
from media_samples import Recipe, write_chunks, write_clip

from prefect_renderfarm.blocks import FfmpegStitcher, RemuxStitcher
from prefect_renderfarm.blocks.errors import MediaFault
from prefect_renderfarm.blocks.media.model import Media
from prefect_renderfarm.blocks.media.reader import read_media
from prefect_renderfarm.blocks.stitchers import film_content
from prefect_renderfarm.blocks.stitchers.film_content import (
    check_content,
    check_encoded,
    read_beginnings,
    sample_of,
)

COUNTS = (3, 1, 4, 2)
STARTS = (0, 3, 4, 8)


def check(film: Path, first: Media, starts: Sequence[tuple[Path, int]]) -> list[str]:
    """Compare a film with chunks, each with the number of the film's frame at which it starts."""
    return check_content(film, first, read_beginnings(starts, str(first.signature["codec"])))


def film_of(folder: Path, recipe: Recipe) -> tuple[Path, Media, list[tuple[Path, int]]]:
    """Return a film, its first chunk as it was read, and where its chunks start."""
    paths = write_chunks(folder, COUNTS, recipe)
    film = folder / f"film{recipe.ending}"
    RemuxStitcher().stitch(paths, film, fps=recipe.fps)
    return film, read_media(paths[0], recipe.fps), list(zip(paths, STARTS, strict=True))


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".ts", ".mov"])
@pytest.mark.parametrize("fps", [Fraction(30), Fraction(24000, 1001)])
def test_right_film(tmp_path: Path, ending: str, fps: Fraction) -> None:
    """Each seam is found, by its frame's time."""
    film, first, starts = film_of(tmp_path, Recipe(ending, fps=fps))
    assert check(film, first, starts) == []


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".ts"])
def test_other_pictures(tmp_path: Path, ending: str) -> None:
    """A chunk that is not the one in the film is named, with the frame."""
    film, first, starts = film_of(tmp_path, Recipe(ending))
    other = write_clip(tmp_path / f"other{ending}", 50, 4, Recipe(ending))
    for number, start in enumerate(STARTS):
        wrong = [*starts[:number], (other, start), *starts[number + 1 :]]
        with pytest.raises(
            MediaFault, match=rf"shows another picture than 'other\{ending}' at frame {start}$"
        ):
            check(film, first, wrong)
    second = write_clip(tmp_path / f"second{ending}", 0, 1, Recipe(ending))
    third = write_clip(tmp_path / f"third{ending}", 0, 1, Recipe(ending))
    assert second.stat().st_size == third.stat().st_size
    assert check(film, first, [(second, 0), *starts[1:]]) == []


def test_film_that_ends_early(tmp_path: Path) -> None:
    """A seam behind the end of a film cannot be decoded."""
    film, first, starts = film_of(tmp_path, Recipe())
    with pytest.raises(MediaFault, match="cannot be decoded at frame 11"):
        check(film, first, [starts[0], (starts[3][0], 11)])


def test_chunk_that_cannot_be_decoded(tmp_path: Path) -> None:
    """A film of such a chunk is refused, by the chunk's name."""
    film, first, starts = film_of(tmp_path, Recipe(".mkv"))
    broken = tmp_path / "broken.mkv"
    data = starts[1][0].read_bytes()
    broken.write_bytes(data[:-200] + bytes(200))
    head, *rest = starts
    ffmpeg(starts[1][0], broken, "-c", "copy", "-bsf:v", "noise=amount=1")
    with pytest.raises(MediaFault, match=r"broken\.mkv"):
        check(film, first, [head, (broken, 3), *rest[1:]])


@pytest.mark.parametrize(
    ("option", "words"),
    [(("-aspect", "3:1"), "pixel aspect 9/5, not 1"),
     (("-tag:v", "avc3"), "codec tag avc3, not avc1")],
)  # fmt: skip
def test_other_property(tmp_path: Path, option: tuple[str, str], words: str) -> None:
    """What a film tells of itself must be what its chunks tell."""
    film, first, starts = film_of(tmp_path, Recipe())
    changed = ffmpeg(film, tmp_path / "changed.mp4", "-c", "copy", *option)
    with pytest.raises(MediaFault) as refused:
        check(changed, first, starts)
    assert str(refused.value) == (
        f"has {words}: a .mp4 film may have no place for it, let its name end in .mkv"
    )


def test_lost_labels(tmp_path: Path) -> None:
    """Labels of the first chunk that the film has not are told."""
    film, _, starts = film_of(tmp_path, Recipe())
    labelled = ffmpeg(
        starts[0][0], tmp_path / "l.mp4", "-c", "copy", "-metadata", "title=A", "-metadata:s:v",
        "language=jpn",
    )  # fmt: skip
    lost = check(film, read_media(labelled), [(labelled, 0), *starts[1:]])
    assert lost == ["title 'A'", "language 'jpn'"]


def test_encoded_film(tmp_path: Path) -> None:
    """What an encoded film lacks is told; what it changes on purpose is not."""
    chunk = write_clip(tmp_path / "0.mp4", 0, 4, Recipe())
    wide = ffmpeg(chunk, tmp_path / "wide.mp4", "-c", "copy", "-aspect", "3:1")
    film = tmp_path / "film.mkv"
    stitcher = FfmpegStitcher(video_codec="ffv1", output_options={"vf": "setsar=1,scale=80:48"})
    report = stitcher.stitch([wide], film, fps=30)
    assert report.dropped == ("pixel aspect 9/5",)
    assert check_encoded(film, read_media(chunk)) == []
    film.write_bytes(film.read_bytes()[:800])
    with pytest.raises(MediaFault):
        check_encoded(film, read_media(chunk))


def test_codec_that_may_remember(tmp_path: Path) -> None:
    """Of other codecs more seams are looked at, each behind the frame before it."""
    recipe = Recipe(".mov", "cfhd", pixel_format="yuv422p10le")
    film, first, starts = film_of(tmp_path, recipe)
    assert check(film, first, starts) == []
    other = write_clip(tmp_path / "other.mov", 50, 2, recipe)
    with pytest.raises(MediaFault, match=r"another picture than 'other\.mov' at frame 8"):
        check(film, first, [*starts[:3], (other, 8)])


@pytest.mark.parametrize(
    ("codec", "ending"),
    [("libx264", ".mp4"), ("libx265", ".ts"), ("libvpx-vp9", ".mkv"), ("libsvtav1", ".mp4"),
     *(pytest.param(*each, marks=pytest.mark.long) for each in
       (("libx264", ".mkv"), ("libx264", ".ts"), ("libx265", ".mp4"), ("libx265", ".mkv"),
        ("libvpx-vp9", ".mp4"), ("libsvtav1", ".mkv")))],
)  # fmt: skip
def test_frames_that_need_no_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, ending: str
) -> None:
    """A decoder that is given the same bytes shows the same, whatever container has them."""
    paths = write_chunks(tmp_path, COUNTS, Recipe(".mp4", codec))
    film = tmp_path / f"film{ending}"
    RemuxStitcher().stitch(paths, film, fps=30)
    first, starts = read_media(paths[0], Fraction(30)), list(zip(paths, STARTS, strict=True))[:2]
    beginnings = read_beginnings(starts, str(first.signature["codec"]))
    decoded: list[int] = []
    real = film_content._decode_alone

    def spy(video: Any, packet: Any) -> Any:
        decoded.append(packet.size)
        return real(video, packet)

    monkeypatch.setattr(film_content, "_decode_alone", spy)
    assert check_content(film, first, beginnings) == []
    assert not decoded
    unlike = [replace(each, coded=f"not {each.coded}") for each in beginnings]
    assert check_content(film, first, unlike) == []
    assert len(decoded) == 2


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_damaged_film(tmp_path: Path, ending: str) -> None:
    """Bytes of a first frame that were lost on the way into the film are found."""
    film, first, starts = film_of(tmp_path, Recipe(ending))
    with av.open(str(film)) as container:
        packets = [each for each in container.demux(video=0) if each.is_keyframe]
        places = [packet.pos + packet.size // 2 for packet in packets[:2] if packet.pos is not None]
    whole = film.read_bytes()
    assert len(places) == 2
    for place, start in zip(places, STARTS[:2], strict=True):
        film.write_bytes(whole[:place] + bytes(20) + whole[place + 20 :])
        with pytest.raises(MediaFault, match=rf"at frame {start}$"):
            check(film, first, starts)


def test_sample() -> None:
    """The first two chunks are in each sample; of some codecs the last one, and some between."""
    starts = [(Path(str(n)), n) for n in range(64)]
    assert [start for _, start in sample_of(starts, "h264", complete=True)] == [0, 1]
    assert sample_of(starts[:1], "h264", complete=True) == starts[:1]
    assert [start for _, start in sample_of(starts, "cfhd", complete=True)] == [0, 1, 22, 42, 63]
    for count in (1, 2, 5, 6, 7):
        found = sample_of(starts[:count], "cfhd", complete=True)
        assert len(found) == min(count, 5)
        assert found[0] == starts[0]
        assert found[-1] == starts[count - 1]
        assert sorted(set(found)) == found


def test_sample_of_a_film_that_grows() -> None:
    """Two chunks decide for most codecs; for others all chunks must have come."""
    starts = [(Path(str(n)), n) for n in range(4)]
    assert sample_of(starts[:1], "h264", complete=False) == []
    assert sample_of(starts[:2], "h264", complete=False) == starts[:2]
    assert sample_of(starts[:3], "h264", complete=False) == starts[:2]
    assert sample_of(starts[:3], "cfhd", complete=False) == []
