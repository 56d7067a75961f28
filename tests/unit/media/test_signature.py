"""The signature of a file: what it tells, and when two of them fit in one film."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest
from faulty_media import copied, in_track
from media_samples import Recipe, write_clip

from prefect_renderfarm.blocks.media.model import (
    Signature,
    difference,
    layout_of,
    pcm_bytes,
    read_signature,
)
from prefect_renderfarm.blocks.media.reader import open_media, read_media

MATRIX, PRIMARIES, TRANSFER = "colour matrix", "colour primaries", "colour transfer"


def read(path: Path) -> Signature:
    """Return the signature of a file."""
    with open_media(path) as container:
        streams = container.streams
        return read_signature(container, streams.video[0], next(iter(streams.audio), None))


def signature(size: str = "1920x1080", pixel_format: str | None = "yuv420p", **more: Any) -> Any:
    """Return a signature without colours, but for those given by `matrix` and the like."""
    colours = {
        f"colour {name}": more.pop(name, None) for name in ("matrix", "primaries", "transfer")
    }
    return {
        "frame size": size,
        "pixel format": pixel_format,
        "colour range": "limited",
        **colours,
    } | more


def test_video_and_audio(tmp_path: Path) -> None:
    """Every property of both tracks is in the signature."""
    path = write_clip(tmp_path / "a.mov", 0, 2, Recipe(".mov", audio="pcm_s16le"))
    found = dict(read(path))
    header = found.pop("codec header")
    assert isinstance(header, str)
    assert len(header) == 16
    assert found == {
        "container": "mov,mp4,m4a,3gp,3g2,mj2",
        "tracks": "video and audio",
        "codec": "h264",
        "codec tag": "avc1",
        "profile": "Main",
        "frame size": "160x96",
        "pixel format": "yuv420p",
        "pixel aspect": "1",
        "colour range": "limited",
        MATRIX: None,
        PRIMARIES: None,
        TRANSFER: None,
        "field order": "progressive",
        "alpha": "no",
        "rotation": "0 degrees",
        **dict.fromkeys(
            (
                "mastering display",
                "content light level",
                "ambient light",
                "Dolby Vision record",
                "stereo mode",
                "projection",
            ),
            "none",
        ),
        "time base": "1/15360",
        "audio codec": "pcm_s16le",
        "audio rate": 48_000,
        "audio channels": 2,
        "audio format": "s16",
        "audio layout": "stereo",
        "audio codec header": None,
    }


def test_headers_differ(tmp_path: Path) -> None:
    """Another header of the codec is another signature, and the same one is not."""
    paths = [
        write_clip(tmp_path / f"{n}.mp4", n, 1, Recipe(b_frames=b)) for n, b in enumerate([3, 3, 0])
    ]
    first, second, third = (read(path)["codec header"] for path in paths)
    assert first == second != third


def test_colours_and_header_of_the_audio(tmp_path: Path) -> None:
    """The three colours are told by their numbers in H.273, and the audio's header by its hash."""
    plain = write_clip(tmp_path / "plain.mp4", 0, 1, Recipe(audio="aac"))
    bits = "colour_primaries=9:transfer_characteristics=16:matrix_coefficients=10"
    found = read(copied("-bsf:v", f"h264_metadata={bits}")(plain, tmp_path))
    assert [found[name] for name in (PRIMARIES, TRANSFER, MATRIX)] == [9, 16, 10]
    assert len(str(found["audio codec header"])) == 16


@pytest.mark.parametrize(
    ("codec", "size"),
    [
        ("pcm_u8", 1), ("pcm_s16le", 2), ("pcm_s24be", 3), ("pcm_f32le", 4), ("pcm_f64be", 8),
        ("pcm_alaw", None), ("pcm_dvd", None), ("aac", None), ("pcm_s16le_planar", None),
    ],
)  # fmt: skip
def test_bytes_of_a_sample(codec: str, size: int | None) -> None:
    """Plain PCM has as many as its name says; other codecs have none of their own."""
    assert pcm_bytes(codec) == size


@pytest.mark.parametrize(
    ("name", "layout"), [("2 channels", "stereo"), ("3 channels", "3 channels"), ("5.1", "5.1")]
)
def test_usual_layout(name: str, layout: str) -> None:
    """A number of channels stands for the usual layout of so many, if there is one."""
    assert layout_of(SimpleNamespace(layout=SimpleNamespace(name=name))) == layout


def test_order_of_tracks_and_layout(tmp_path: Path) -> None:
    """The tracks are told in their order; Matroska's PCM tells no layout."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as output:
        audio = output.add_stream("pcm_s16le", rate=8000, layout="stereo")
        video = output.add_stream("mpeg4", rate=30)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        output.mux(video.encode(av.VideoFrame(64, 48, "yuv420p")))
        silence = av.AudioFrame("s16", "stereo", 800)
        silence.sample_rate = 8000
        output.mux(audio.encode(silence))
        for stream in (video, audio):
            output.mux(stream.encode(None))
    found = read(path)
    assert found["tracks"] == "audio and video"
    assert (found["audio rate"], found["audio channels"], found["audio layout"]) == (8000, 2, None)


@pytest.mark.parametrize(
    ("options", "before", "name", "value"),
    [
        (("-aspect", "3:1"), (), "pixel aspect", "9/5"),
        ((), ("-display_rotation", "90"), "rotation", "270 degrees"),
        ((), ("-display_rotation", "30"), "rotation", "330 degrees"),
        ((), ("-display_hflip",), "rotation", "180 degrees and mirrored"),
    ],
)
def test_presentation(
    tmp_path: Path, options: tuple[str, ...], before: tuple[str, ...], name: str, value: str
) -> None:
    """The shape of pixels and the display matrix of the container are told."""
    plain = write_clip(tmp_path / "plain.mp4", 0, 1, Recipe(codec="mpeg4"))
    assert read(copied(*options, before=before)(plain, tmp_path))[name] == value


@pytest.mark.parametrize(
    ("codec", "pixel_format", "full", "told"),
    [
        ("mpeg4", "yuv420p", None, "limited"),
        ("mpeg4", "yuv420p", 1, "full"),
        ("mpeg4", "yuv420p", 0, "limited"),
        ("mjpeg", "yuvj420p", None, "full"),
        ("ffv1", "bgr0", None, "full"),
        ("ffv1", "gray", None, "limited"),
    ],
)
def test_colour_range(
    tmp_path: Path, codec: str, pixel_format: str, full: int | None, told: str
) -> None:
    """The range is what players take, also of files that do not tell it."""
    path = write_clip(tmp_path / "a.mkv", 0, 1, Recipe(".mkv", codec, pixel_format=pixel_format))
    if full is not None:
        path = in_track(full=full)(path, tmp_path)
    assert read(path)["colour range"] == told


def test_same_or_unknown() -> None:
    """What one of two files does not tell is no difference; what both tell is."""
    first = signature(codec="h264", profile="Main")
    assert difference(first, first) is None
    assert difference(first, dict(first)) is None
    for unknown in (None, ""):
        assert difference(first, first | {"profile": unknown}) is None
        assert difference(first | {"profile": unknown}, first) is None
        later = {"profile": unknown, "time base": "1/30"}
        assert (
            difference(first | {"time base": "1/24"}, first | later) == "time base 1/30, not 1/24"
        )
    assert difference(first, first | {"profile": "High"}) == "profile High, not Main"
    assert difference(first, first | {"codec": "hevc"}) == "codec hevc, not h264"
    assert difference(first, {key: first[key] for key in first if key != "profile"}) is None
    assert difference(signature(matrix=1), signature(matrix=9)) == "colour matrix 9, not 1"


@pytest.mark.parametrize(
    ("size", "pixel_format", "name", "value"),
    [
        ("1920x1080", "yuv420p", MATRIX, 1),
        ("1280x534", "yuv420p10le", PRIMARIES, 1),
        ("720x577", "yuv420p", TRANSFER, 1),
        ("1279x576", "yuv420p", MATRIX, 5),
        ("720x480", "yuv420p", MATRIX, 6),
        ("720x576", "yuv420p", PRIMARIES, 5),
        ("720x480", "yuv420p", PRIMARIES, 6),
        ("720x480", "yuv420p", TRANSFER, 6),
        ("720x480", "yuv420p", TRANSFER, 1),
        ("64x48", None, MATRIX, 5),
        ("64x48", "gbrp", MATRIX, 0),
        ("64x48", "rgb24", PRIMARIES, 1),
        ("1920x1080", "bgr0", TRANSFER, 13),
        ("1920x1080", "bgr0", TRANSFER, 1),
    ],
)
def test_usual_colours_beside_none(
    size: str, pixel_format: str | None, name: str, value: int
) -> None:
    """A chunk without colours fits one that tells those which players assume of it."""
    plain = signature(size, pixel_format)
    assert difference(plain, plain | {name: value}) is None
    assert difference(plain | {name: value}, plain) is None


@pytest.mark.parametrize(
    ("size", "pixel_format", "name", "value"),
    [
        ("1920x1080", "yuv420p10le", MATRIX, 9),
        ("1920x1080", "yuv420p10le", PRIMARIES, 9),
        ("1920x1080", "yuv420p10le", TRANSFER, 16),
        ("1920x1080", "yuv420p", MATRIX, 5),
        ("1280x534", "yuv420p", MATRIX, 6),
        ("720x577", "yuv420p", PRIMARIES, 5),
        ("1920x1080", "yuv420p", TRANSFER, 6),
        ("1279x576", "yuv420p", MATRIX, 1),
        ("720x480", "yuv420p", PRIMARIES, 1),
        ("64x48", "gbrp", MATRIX, 1),
        ("1920x1080", "bgr0", PRIMARIES, 9),
    ],
)
def test_other_colours_beside_none(size: str, pixel_format: str, name: str, value: int) -> None:
    """A chunk without colours does not fit one with others, whichever comes first."""
    plain = signature(size, pixel_format)
    assert difference(plain, plain | {name: value}) == f"{name} {value}, not unspecified"
    assert difference(plain | {name: value}, plain) == f"{name} unspecified, not {value}"


@pytest.mark.parametrize("codec", ["mpeg4", "libvpx-vp9"])
def test_colours_without_a_probe(tmp_path: Path, codec: str) -> None:
    """Colours that only the container tells count, also for a file that is read without a probe."""
    plain = write_clip(tmp_path / "plain.mkv", 0, 2, Recipe(".mkv", codec))
    hdr = in_track(9, 16, 9)(plain, tmp_path).rename(tmp_path / "hdr.mkv")
    full = in_track(5, 6, 5, full=1)(plain, tmp_path)
    for pair, words in (
        ((plain, hdr), "colour matrix 9, not unspecified"),
        ((hdr, plain), "colour matrix unspecified, not 9"),
        ((full, plain), "colour range limited, not full"),
        ((plain, full), "colour range full, not limited"),
    ):
        first = read_media(pair[0])
        assert difference(first.signature, read_media(pair[1], first=first).signature) == words
