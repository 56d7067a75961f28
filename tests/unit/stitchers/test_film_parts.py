"""What of a film is compared with its chunks, how a frame is found in it, and what it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest
from faulty_media import ffmpeg
from media_samples import Recipe, write_clip

from prefect_renderfarm.blocks import RemuxStitcher
from prefect_renderfarm.blocks.errors import MediaFault
from prefect_renderfarm.blocks.media.reader import read_media
from prefect_renderfarm.blocks.stitchers import film_content as module
from prefect_renderfarm.blocks.stitchers.film_content import (
    Beginning,
    check_content,
    check_encoded,
    read_beginnings,
    sample_of,
)

MP4, MKV, TS = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts"
OF_TRACKS = {"container", "tracks", "time base", "audio codec", "audio layout"}
HEADER, TAG, ASPECT = "codec header", "codec tag", "pixel aspect"


def properties(container: str = MP4, codec: str = "h264", aspect: str = "1") -> dict[str, Any]:
    """Return the properties of a file."""
    return {
        "container": container, "tracks": "video and audio", "codec": codec, TAG: "tag",
        "frame size": "160x96", ASPECT: aspect, "time base": "1/90000", HEADER: "00ff",
        "audio codec": "aac", "audio layout": "stereo",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("chunk", "film", "told", "found", "left_out"),
    [
        ("0.mp4", "f.mp4", {}, {}, ()),
        ("0.mp4", "f.MP4", {}, {}, ()),
        ("0.MP4", "f.mp4", {}, {}, ()),
        ("0.mp4", "f.mov", {}, {}, (TAG,)),
        ("0.mp4", "f.mp4", {"codec": "vp9"}, {}, ()),
        ("0.mp4", "f.mkv", {}, {"container": MKV}, (TAG,)),
        ("0.mp4", "f.mkv", {"codec": "vp9"}, {"container": MKV}, (TAG, HEADER)),
        ("0.ts", "f.mp4", {"container": TS}, {}, (TAG, HEADER)),
        ("0.mp4", "f.ts", {}, {"container": TS}, (TAG, HEADER)),
        ("0.ts", "f.ts", {"container": TS}, {"container": TS}, ()),
        # Only WebM rounds: by one of 160 columns, whatever the lines.
        ("0.webm", "f.webm", {"aspect": "4/3"}, {"aspect": "641/480"}, (ASPECT,)),
        ("0.webm", "f.WEBM", {"aspect": "641/480"}, {"aspect": "4/3"}, (ASPECT,)),
        ("0.webm", "f.webm", {"aspect": "1"}, {"aspect": "161/160"}, (ASPECT,)),
        ("0.webm", "f.webm", {"aspect": "1"}, {"aspect": "101/100"}, ()),
        ("0.webm", "f.webm", {"aspect": "81/80"}, {"aspect": "1"}, ()),
        ("0.mkv", "f.mkv", {"aspect": "1"}, {"aspect": "161/160"}, ()),
    ],
)  # fmt: skip
def test_properties_that_are_compared(
    chunk: str, film: str, told: dict[str, str], found: dict[str, str], left_out: tuple[str, ...]
) -> None:
    """All but those of the tracks' containers, and what a film's container tells otherwise."""
    first: Any = SimpleNamespace(path=Path(chunk), signature=properties(**told))
    compared = module._comparable(first, Path(film), properties(**found))
    assert set(first.signature) - set(compared) == OF_TRACKS | set(left_out)
    assert compared.items() <= first.signature.items()


@pytest.mark.parametrize(
    ("pixel_format", "told", "has"),
    [
        ("yuv420p", {}, False),
        ("yuv420p", {"alpha": "no"}, False),
        ("yuv420p", {"alpha": "yes"}, True),  # VP9 has it in a track of its own
        ("yuva420p", {"alpha": "no"}, True),
        ("rgba", {}, True),
    ],
)  # fmt: skip
def test_alpha(pixel_format: str, told: dict[str, str], has: bool) -> None:
    """A film has an alpha channel in its pixels, or says that it has one beside them."""
    assert module._has_alpha({"pixel format": pixel_format, **told}) is has


@pytest.mark.parametrize(
    ("pixel_format", "lost"), [("yuva420p", []), ("yuv420p", ["the alpha channel"])]
)
def test_alpha_of_an_encoded_film(tmp_path: Path, pixel_format: str, lost: list[str]) -> None:
    """A film that was encoded without the chunks' alpha channel lacks it."""
    recipe = Recipe(".mkv", "ffv1", pixel_format="yuva420p")
    first = read_media(write_clip(tmp_path / "0.mkv", 0, 1, recipe))
    made = Recipe(".mkv", "ffv1", pixel_format=pixel_format)
    assert check_encoded(write_clip(tmp_path / "f.mkv", 0, 1, made), first) == lost


def with_audio_first(source: Path, target: Path, language: str) -> Path:
    """Copy a file, its audio before its video, with the audio's language."""
    tracks = ("-c", "copy", "-map", "0:a", "-map", "0:v")
    return ffmpeg(source, target, *tracks, "-metadata:s:a", f"language={language}")


@pytest.mark.parametrize(
    "recipe",
    [Recipe(".mov", audio="pcm_s16le"),
     Recipe(".mov", "cfhd", audio="pcm_s16le", pixel_format="yuv422p10le")],
    ids=str,
)  # fmt: skip
def test_audio_beside_the_pictures(tmp_path: Path, recipe: Recipe) -> None:
    """Pictures are compared where audio comes first, too; its language is a label."""
    plain = [write_clip(tmp_path / f"plain{n}.mov", 2 * n, 2, recipe) for n in range(2)]
    chunks = [with_audio_first(each, tmp_path / f"{n}.mov", "jpn") for n, each in enumerate(plain)]
    once = tmp_path / "once.mov"
    RemuxStitcher(audio="none").stitch(chunks, once, fps=recipe.fps)
    sound = ("-i", str(chunks[0]), "-map", "1:a", "-map", "0:v", "-c", "copy")
    first = read_media(chunks[0])
    starts = list(zip(chunks, (0, 2), strict=True))
    beginnings = read_beginnings(starts, str(first.signature["codec"]))
    for language, lost in (("jpn", []), ("fra", ["audio language 'jpn'"])):
        film = tmp_path / f"{language}.mov"
        ffmpeg(once, film, *sound, "-metadata:s:a", f"language={language}")
        assert check_content(film, first, beginnings, "stereo") == lost
        assert check_encoded(film, first, "stereo") == lost
    words = "^has audio in the channels stereo, not quad, which pcm_s16le cannot tell here: "
    with pytest.raises(MediaFault, match=words):
        check_content(film, first, beginnings, "quad")
    with pytest.raises(MediaFault, match=words):
        check_encoded(film, first, "quad")


@pytest.mark.parametrize("codec", ["h264", "cfhd"])
@pytest.mark.parametrize("content", [b"", b"no film", None])
def test_chunk_without_a_picture(tmp_path: Path, codec: str, content: bytes | None) -> None:
    """A file that went away, or is no media file, has no first picture; that is no crash."""
    path = tmp_path / "0.mp4"
    if content is not None:
        path.write_bytes(content)
    [found] = read_beginnings([(path, 3)], codec)
    assert found == Beginning(path, 3, None, None)


@pytest.mark.parametrize("codec", ["libx264", "cfhd"])
def test_pictures_that_cannot_be_decoded(tmp_path: Path, codec: str) -> None:
    """A chunk of noise has no first picture, and a film of noise is refused."""
    form = "yuv420p" if codec == "libx264" else "yuv422p10le"
    path = write_clip(tmp_path / "0.mov", 0, 2, Recipe(".mov", codec, pixel_format=form))
    first, data = read_media(path), path.read_bytes()
    begin = data.index(b"mdat") + 4
    length = int.from_bytes(data[begin - 8 : begin - 4]) - 8
    path.write_bytes(data[:begin] + bytes(length) + data[begin + length :])
    [found] = read_beginnings([(path, 0)], str(first.signature["codec"]))
    assert found.picture is None
    with pytest.raises(MediaFault, match=r"^cannot be decoded at frame 0$"):
        check_encoded(path, first)


def test_sample_of_few_chunks() -> None:
    """Of up to five chunks of a codec that may remember, each is looked at."""
    for count in range(1, 6):
        starts = [(Path(str(n)), n) for n in range(count)]
        assert sample_of(starts, "cfhd", complete=True) == starts


TICK = Fraction(1, 4000)
ORIGIN = 900


class Reel:
    """A film whose demuxer lands so many seconds behind the time for which it is sent."""

    def __init__(self, seconds: list[Fraction | float | None], late: float = 0) -> None:
        self.streams = SimpleNamespace(video=[SimpleNamespace(time_base=TICK)])
        self.video: Any = self.streams.video[0]
        self.seeks: list[float] = []
        self.frames_read = 0
        self._late = late
        self._frames = [
            SimpleNamespace(pts=None if each is None else ORIGIN + round(each / TICK))
            for each in seconds
        ]

    def seek(self, offset: int, *, stream: Any) -> None:
        """Go to a time of the video track."""
        assert stream is self.video
        self.seeks.append(float((offset - ORIGIN) * TICK))

    def read(self, container: Any, video: Any) -> Iterator[Any]:
        """Give the frames from there on."""
        assert container is self
        assert video is self.video
        begin = ORIGIN + (Fraction(self.seeks[-1]) + Fraction(self._late)) / TICK
        for frame in self._frames:
            if frame.pts is None or frame.pts >= begin or self.seeks[-1] == 0:
                self.frames_read += 1
                yield frame

    def find(self, seconds: float, lead: Fraction | int = 0) -> float | None:
        """Return the time of the frame that is found for one, in seconds."""
        found = module._found_at(self, ORIGIN, Fraction(seconds), Fraction(lead), self.read)
        return None if found is None else float((found.pts - ORIGIN) * TICK)


@pytest.mark.parametrize(
    ("late", "seconds", "lead", "seeks"),
    [
        (0, 20, 0, [20]),
        (0, 20, 0.5, [19.5]),
        (0.5, 20, 0, [20, 19]),
        (5, 20, 0, [20, 19, 10]),
        (15, 20, 0, [20, 19, 10, 0]),
        (0, 0.25, 0.5, [0]),
        (5, 5, 0.5, [4.5, 3.5, 0]),
    ],
)  # fmt: skip
def test_frame_is_sought_from_ever_further_back(
    late: float, seconds: float, lead: float, seeks: list[float]
) -> None:
    """A demuxer without an index may land too late: it is sent back by 1 s, 10 s, all the way."""
    reel = Reel([n / 4 for n in range(200)], late)
    assert reel.find(seconds, Fraction(lead)) == seconds
    assert reel.seeks == seeks


def test_frame_that_is_not_there() -> None:
    """Reading ends with the first frame behind its time; those without a time are passed over."""
    reel = Reel([None, 0, 0.25, None, 0.75, 1, 1.25])
    assert reel.find(0.5) is None
    assert reel.seeks == [0.5, 0, 0, 0]
    assert reel.frames_read == 3 + 3 * 5
    assert reel.find(5) is None


@pytest.mark.parametrize(("ticks", "found"), [(-3, False), (-2, True), (2, True), (3, False)])
def test_time_of_a_frame_is_rounded(ticks: int, found: bool) -> None:
    """By half a millisecond, which is half of Matroska's clock."""
    time = Fraction(1, 2) + ticks * TICK
    assert Reel([0, time, 1]).find(0.5) == (float(time) if found else None)


class Packets:
    """A container whose packets do what they are told."""

    def __init__(self, *decodes: Callable[[], list[str]], **each: Any) -> None:
        self._packets = [SimpleNamespace(decode=decode, **each) for decode in decodes]

    def demux(self, _: Any) -> list[Any]:
        """Return all packets."""
        return self._packets


def fails() -> list[str]:
    """Decode what needs another frame before it."""
    raise av.InvalidDataError(1, "")


@pytest.mark.parametrize(("failed", "read"), [(0, ["a"]), (300, ["a"]), (301, [])])
def test_packets_that_need_others_before_them(failed: int, read: list[str]) -> None:
    """A few may fail behind a seek; a film of nothing else is not read to its end."""
    assert list(module._frames(Packets(*[fails] * failed, lambda: ["a"]), None)) == read


def test_decoder_that_gives_no_frame() -> None:
    """One that fails has none, nor has one that keeps the frame though it is asked for it."""
    for rest, found in (([], None), (["a"], "a")):
        video = SimpleNamespace(codec_context=SimpleNamespace(decode=lambda _, rest=rest: rest))
        for decode, expected in ((list, found), (lambda: ["b"], "b"), (fails, None)):
            packet = SimpleNamespace(decode=decode)
            assert module._decode_alone(video, packet) == expected


@pytest.mark.parametrize(
    ("size", "key", "counts"), [(0, True, False), (5, False, False), (5, True, True)]
)
def test_key_packets(size: int, key: bool, counts: bool) -> None:
    """Neither the empty packet at the end of a film is one, nor one that needs others."""
    container = Packets(list, size=size, is_keyframe=key)
    assert len(list(module._key_packets(container, None))) == counts


def coded(codec: str, packet: bytes, header: bytes | None = None) -> str | None:
    """Return the digest of what decides how a packet is decoded."""
    video = SimpleNamespace(codec_context=SimpleNamespace(extradata=header))
    return module._coded(video, packet, codec)


def test_what_decides_how_a_packet_is_decoded() -> None:
    """Its bytes and the header; of codecs that may need more, and of damaged packets, nothing."""
    for codec in ("vp9", "av1"):
        known = {coded(codec, *given) for given in ((b"a", b"h"), (b"b", b"h"), (b"a", b"i"))}
        assert None not in known
        assert len(known) == 3
        assert coded(codec, b"a", None) == coded(codec, b"a", b"")
    for codec in ("ffv1", "prores"):
        assert coded(codec, b"a", b"h") is None
    header = b"\1\x64\0\x1f\xff\xe1\0\4\x67abc\1\0\4\x68abc"
    assert coded("h264", b"\0\0\0\2\x65a", header) is not None
    for damaged in (b"\0\0", b"\0\0\0\0", b"\1"):
        assert coded("h264", damaged, header[:5]) is None


def test_pictures_of_other_shape() -> None:
    """They are others, though each of their pixels is the same."""
    shapes = ((32, 64, "gray"), (64, 32, "gray"), (32, 64, "pal8"), (32, 32, "gray16le"))
    digests = set()
    for width, height, form in shapes:
        frame = av.VideoFrame(width, height, form)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        digests.add(module._picture(frame))
    assert len(digests) == len(shapes)


class Sound:
    """A film's container, whose audio decodes to these layouts once it is read from its start."""

    streams: Any
    codec_context = SimpleNamespace(name="libopus")

    def __init__(self, *layouts: str) -> None:
        self._layouts = layouts
        self._at: int | None = None

    def seek(self, offset: int) -> None:
        """Go to a time of the film."""
        self._at = offset

    def decode(self, audio: Any) -> Iterator[Any]:
        """Give audio from there on."""
        assert audio is self
        assert self._at == 0
        return (SimpleNamespace(layout=av.AudioLayout(name)) for name in self._layouts)


@pytest.mark.parametrize(
    ("found", "wanted", "lost"),
    [
        (["stereo"], None, []),
        (["stereo", "mono"], "stereo", []),
        (["5.1(side)"], "5.1", []),
        (["5.1"], "5.1(side)", []),
        (["4 channels"], "quad", ["the layout quad of its audio's channels"]),
        ([], "quad", []),  # which the comparison of lengths refuses
    ],
)  # fmt: skip
def test_layout_of_the_films_audio(found: list[str], wanted: str | None, lost: list[str]) -> None:
    """It is that of the chunks; a film that tells only a number of channels lacks it."""
    sound = Sound(*found)
    assert module._lost_layout(sound, sound, wanted) == lost
    assert module._lost_layout(sound, None, wanted) == []


@pytest.mark.parametrize(
    ("found", "wanted"), [("quad", "4.0"), ("5.1", "6.0"), ("7.1", "7.1(wide)"), ("mono", "stereo")]
)
def test_other_layout_of_the_films_audio(found: str, wanted: str) -> None:
    """A film whose channels are at other places is refused, with what to do."""
    sound = Sound(found)
    with pytest.raises(MediaFault) as refused:
        module._lost_layout(sound, sound, wanted)
    assert str(refused.value).startswith(
        f"has audio in the channels {found}, not {wanted}, which libopus cannot tell here: set "
    )


@pytest.mark.parametrize("codec", ["ffv1", "libx264", "libvpx"])
def test_rotation(tmp_path: Path, codec: str) -> None:
    """A film of copied packets must turn its pictures as its chunks; FFmpeg turns them itself."""
    film = write_clip(tmp_path / "film.mkv", 0, 1, Recipe(".mkv", codec))
    turned = ffmpeg(film, tmp_path / "turned.mkv", "-c", "copy", before=("-display_rotation", "90"))
    first = read_media(turned)
    beginnings = read_beginnings([(turned, 0)], str(first.signature["codec"]))
    assert check_content(turned, first, beginnings) == []
    with pytest.raises(MediaFault) as refused:
        check_content(film, first, beginnings)
    assert str(refused.value) == (
        "has rotation 0 degrees, not 270 degrees: a .mkv film may have no place for it"
    )
    assert check_encoded(film, first) == []


@pytest.mark.parametrize(
    ("codec", "lost"), [("ffv1", "stereo mode"), ("libvpx", "stereo mode some")]
)
def test_stereo_mode_of_an_encoded_film(tmp_path: Path, codec: str, lost: str) -> None:
    """It is kept or told, whether the container or only a picture tells it."""
    flat = write_clip(tmp_path / "flat.mkv", 0, 1, Recipe(".mkv", codec))
    deep = tmp_path / "deep.mkv"
    ffmpeg(flat, deep, "-c", "copy", "-metadata:s:v", "stereo_mode=left_right")
    assert check_encoded(deep, read_media(deep)) == []
    assert check_encoded(flat, read_media(deep)) == [lost]
    assert check_encoded(deep, read_media(flat)) == []


def test_light_of_an_encoded_film(tmp_path: Path) -> None:
    """Messages of light in the first frame are kept or told, wherever the audio stands."""
    recipe = Recipe(".mp4", "libx265", audio="aac")
    dark = write_clip(tmp_path / "dark.mp4", 0, 1, recipe)
    display = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)"
    options = f"log-level=none:pools=1:hdr10=1:repeat-headers=1:master-display={display}"
    light = tmp_path / "light.mp4"
    encode = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", options, "-c:a", "copy")
    ffmpeg(dark, light, "-map", "0:a", "-map", "0:v", *encode)
    first = read_media(light)
    assert check_encoded(light, first) == []
    assert check_encoded(dark, first) == ["light of the frames"]
    assert check_encoded(light, read_media(dark)) == []


@pytest.mark.parametrize(
    ("ending", "options", "own"),
    [
        (".mp4", (), True),
        (".mp4", ("-aspect", "3:1"), False),
        (".ts", (), True),
        (".ts", ("-bsf:v", "h264_metadata=sample_aspect_ratio=1/1"), True),
        (".ts", ("-bsf:v", "h264_metadata=sample_aspect_ratio=9/5"), False),
    ],
)
def test_aspect_that_the_codec_tells(
    tmp_path: Path, ending: str, options: tuple[str, ...], own: bool
) -> None:
    """Equal bytes show the same only where the aspect is the codec's, not another beside it."""
    plain = write_clip(tmp_path / "plain.mp4", 0, 1, Recipe())
    chunk = ffmpeg(plain, tmp_path / f"0{ending}", "-c", "copy", *options)
    [found] = read_beginnings([(chunk, 0)], "h264")
    assert found.picture is not None
    assert (found.coded is not None) is own
