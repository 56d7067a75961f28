"""What a file tells people, what else is in it, and what its tracks tell of the picture."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faulty_media import ffmpeg
from media_samples import Recipe, write_clip

from prefect_renderfarm.blocks.errors import MediaFault
from prefect_renderfarm.blocks.media import model as module
from prefect_renderfarm.blocks.media.model import (
    Audio,
    Labels,
    Signature,
    difference,
    is_digest,
    layout_of,
    read_extras,
    read_labels,
    read_signature,
    told_by_picture,
)
from prefect_renderfarm.blocks.media.reader import open_media, read_media

SIDE_DATA = (
    "mastering display", "content light level", "ambient light", "Dolby Vision record",
    "stereo mode", "projection",
)  # fmt: skip


def track(cover: bool = False, **tags: str) -> Any:
    """Return a track with tags."""
    flags = Disposition(1 | cover * Disposition.attached_pic)
    return SimpleNamespace(metadata=tags, disposition=flags)


class Disposition(int):
    """What a track is for: libav's flags."""

    attached_pic = 1024


def container(
    data: Sequence[Any] = (), video: Sequence[Any] = (), others: int = 0, **tags: str
) -> Any:
    """Return a file with tags and tracks; with as many chapters, subtitles and attachments."""
    streams = SimpleNamespace(
        data=data, video=video, subtitles=[track()] * others, attachments=[track()] * others
    )
    return SimpleNamespace(metadata=tags, streams=streams, chapters=lambda: [{}] * others)


@pytest.mark.parametrize(
    ("tags", "video", "data", "audio", "labels"),
    [
        ({}, {}, [], None, Labels()),
        ({"title": "A"}, {"title": "B"}, [], {"title": "C"}, Labels(title="A")),
        ({"TITLE": "A"}, {}, [], None, Labels(title="A")),
        ({"title": ""}, {"timecode": ""}, [], None, Labels()),
        ({"timecode": "3"}, {"timecode": "1"}, [{"timecode": "2"}], {}, Labels(timecode="1")),
        ({"timecode": "3"}, {}, [{}, {"timecode": "2"}], {}, Labels(timecode="2")),
        ({"TIMECODE": "3"}, {}, [], {"timecode": "4"}, Labels(timecode="3")),
        ({"language": "fra"}, {"language": "jpn"}, [], {}, Labels(language="jpn")),
        ({}, {"language": "und"}, [], {"language": "und"}, Labels()),
        ({}, {}, [], {"language": "jpn"}, Labels(audio_language="jpn")),
    ],
)
def test_labels(
    tags: dict[str, str],
    video: dict[str, str],
    data: list[dict[str, str]],
    audio: dict[str, str] | None,
    labels: Labels,
) -> None:
    """The title is the file's, the timecode the one next to the video, a language the track's."""
    file = container([track(**each) for each in data], **tags)
    sound = None if audio is None else track(**audio)
    assert read_labels(file, track(**video), sound) == labels


def test_lost_labels() -> None:
    """A film lacks those of its first chunk that it tells otherwise, or not."""
    first = Labels("A", "01:00:00:00", "jpn", "fra")
    assert first.lost(first) == []
    assert Labels().lost(first) == []
    assert Labels(title="", language=None).lost(first) == []
    assert first.lost(Labels("B", "01:00:00:00", None, "jpn")) == [
        "title 'A'", "language 'jpn'", "audio language 'fra'"
    ]  # fmt: skip


def test_extras() -> None:
    """What no film gets is counted; a track with the timecode is a label."""
    assert read_extras(container()) == ()
    assert read_extras(container([track(timecode="1")], [track()])) == ()
    assert read_extras(container([track(), track(timecode="1")], [track(), track(True)], 1)) == (
        "1 chapter", "1 subtitle track", "1 data track", "1 attachment", "1 cover picture"
    )  # fmt: skip
    assert read_extras(container([track()] * 3, [track(True)] * 4, 2)) == (
        "2 chapters", "2 subtitle tracks", "3 data tracks", "2 attachments", "4 cover pictures"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("start", "audible"), [(0, 4800), (1, 4800), (Fraction(-1, 10), 4000), (-1, -3200)]
)
def test_samples_that_are_heard(start: Fraction | int, audible: int) -> None:
    """Those before the first frame are not; silence after it does not count."""
    assert Audio("aac", 8000, "mono", 4800, Fraction(start)).audible == audible


@pytest.mark.parametrize(
    ("names", "usual"),
    [
        (["FL", "FR"], True),
        (["FL", "FR", "LFE", "BFR"], True),
        (["FR", "FL"], False),
        (["FL", "FL"], False),
        (["FL", "AMBI0"], False),
    ],
)
def test_order_of_channels(names: list[str], usual: bool) -> None:
    """Channels that stand in an order of their own, or have no place, are refused."""
    layout = SimpleNamespace(
        name="+".join(names), channels=[SimpleNamespace(name=name) for name in names]
    )
    if usual:
        assert layout_of(SimpleNamespace(layout=layout)) == layout.name
        return
    with pytest.raises(MediaFault) as refused:
        layout_of(SimpleNamespace(layout=layout))
    assert str(refused.value).startswith(
        f"has audio with an unusual order of channels, {layout.name}: render a usual one, such as"
    )


def matrix(*numbers: int) -> bytes:
    """Return a display matrix as libav has it, with the numbers that turn and mirror."""
    a, b, c, d = (number << 16 for number in numbers)
    return struct.pack("=9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)


class SideData(bytes):
    """Data beside a picture."""

    type: Any


def picture(**told: bytes) -> Any:
    """Return a decoded picture with side data."""
    data = [SideData(value) for value in told.values()]
    for each, name in zip(data, told, strict=True):
        each.type = SimpleNamespace(name=name)
    return SimpleNamespace(side_data=data)


@pytest.mark.parametrize(
    ("told", "rotation", "some"),
    [
        ({}, "0 degrees", ()),
        ({"DISPLAYMATRIX": matrix(1, 0, 0, 1)}, "0 degrees", ()),
        ({"DISPLAYMATRIX": matrix(0, 1, -1, 0)}, "90 degrees", ()),
        ({"DISPLAYMATRIX": matrix(-1, 0, 0, -1)}, "180 degrees", ()),
        ({"DISPLAYMATRIX": matrix(0, -1, 1, 0)}, "270 degrees", ()),
        ({"DISPLAYMATRIX": matrix(-1, 0, 0, 1)}, "180 degrees and mirrored", ()),
        ({"DISPLAYMATRIX": matrix(0, 1, 1, 0)}, "90 degrees and mirrored", ()),
        ({"MASTERING_DISPLAY_METADATA": b""}, "0 degrees", ("mastering display",)),
        ({"CONTENT_LIGHT_LEVEL": b"1", "A53_CC": b"2"}, "0 degrees", ("content light level",)),
        ({"AMBIENT_VIEWING_ENVIRONMENT": b"1"}, "0 degrees", ("ambient light",)),
        ({"STEREO3D": b"1", "SPHERICAL": b"2"}, "0 degrees", ("stereo mode", "projection")),
    ],
)
def test_what_a_picture_tells(told: dict[str, bytes], rotation: str, some: Sequence[str]) -> None:
    """How it is turned, and of other data only that there are some."""
    found = told_by_picture(picture(**told))
    assert found["rotation"] == rotation
    assert {name for name, value in found.items() if value == "some"} == set(some)
    assert {name for name, value in found.items() if value == "none"} == (
        set(SIDE_DATA) - {"Dolby Vision record"} - set(some)
    )


def read(path: Path) -> Signature:
    """Return the signature of a file's video by its header alone."""
    with open_media(path) as file:
        return read_signature(file, file.streams.video[0], None)


@pytest.mark.parametrize("codec", ["libx264", "ffv1"])
def test_stereo_mode_of_a_track(tmp_path: Path, codec: str) -> None:
    """It is told by a digest, so that two that differ are told apart."""
    plain = write_clip(tmp_path / "plain.mkv", 0, 1, Recipe(".mkv", codec))
    found = {}
    for mode in ("left_right", "top_bottom"):
        path = tmp_path / f"{mode}.mkv"
        ffmpeg(plain, path, "-c", "copy", "-metadata:s:v", f"stereo_mode={mode}")
        found[mode] = read(path)
        assert is_digest(found[mode]["stereo mode"])
        assert {found[mode][name] for name in SIDE_DATA if name != "stereo mode"} == {"none"}
        assert difference(read(plain), found[mode]) == (
            f"stereo mode {found[mode]['stereo mode']}, not none"
        )
    assert difference(found["left_right"], found["top_bottom"]) == (
        "another stereo mode than expected"
    )


def test_codec_without_a_place_in_mp4(tmp_path: Path) -> None:
    """Of its tracks nothing is known but what the first picture tells."""
    path = write_clip(tmp_path / "a.webm", 0, 1, Recipe(".webm", "libvpx"))
    found = read(path)
    assert {found[name] for name in ("rotation", *SIDE_DATA)} == {None}
    found = read_media(path).signature
    assert found["rotation"] == "0 degrees"
    assert {found[name] for name in SIDE_DATA} == {"none", None}


@pytest.mark.parametrize(("mode", "alpha"), [("1", "yes"), ("0", "no"), (None, "no")])
def test_alpha_beside_the_pixels(tmp_path: Path, mode: str | None, alpha: str) -> None:
    """WebM says of a track that it has an alpha channel, which its pixel format does not."""
    plain = write_clip(tmp_path / "plain.webm", 0, 1, Recipe(".webm", "libvpx-vp9"))
    tag = () if mode is None else ("-metadata:s:v", f"alpha_mode={mode}")
    assert read(ffmpeg(plain, tmp_path / "a.webm", "-c", "copy", *tag))["alpha"] == alpha


def test_codec_with_a_place_in_quicktime(tmp_path: Path) -> None:
    """Where mp4 has none, QuickTime has, for ProRes: what it tells is known without a picture."""
    recipe = Recipe(".mkv", "prores_ks", pixel_format="yuv422p10le")
    plain = write_clip(tmp_path / "plain.mkv", 0, 1, recipe)
    turned = tmp_path / "turned.mkv"
    ffmpeg(plain, turned, "-c", "copy", before=("-display_rotation", "90"))
    assert (read(plain)["rotation"], read(turned)["rotation"]) == ("0 degrees", "270 degrees")


@pytest.mark.parametrize(
    ("number", "pixel_format", "matrix"),
    [(0, "yuv420p", None), (0, "gbrp", 0), (2, "yuv420p", None), (2, "gbrp", None),
     (9, "yuv420p10le", 9)],
)  # fmt: skip
def test_matrix_of_rgb(number: int, pixel_format: str, matrix: int | None) -> None:
    """It is none of other video, though Flash video says so."""
    context = SimpleNamespace(colorspace=number, pix_fmt=pixel_format)
    assert module._colour_matrix(context) == matrix


@pytest.mark.parametrize(
    ("value", "digest"),
    [("0123456789abcdef", True), ("0123456789abcde", False), ("0123456789abcdef0", False),
     ("0123456789ABCDEF", False), ("none", False), (16, False), (None, False)],
)  # fmt: skip
def test_digest(value: str | int | None, digest: bool) -> None:
    """A digest has sixteen hexadecimal digits; it is not shown to people."""
    assert is_digest(value) is digest
