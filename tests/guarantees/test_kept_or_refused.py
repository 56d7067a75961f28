"""Right, or refused by name: what chunks tell of themselves is in the film, or there is no film."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import pytest
from encoder_samples import (
    FPS,
    FRAMES,
    picture_hashes,
    pictures,
    run_ffmpeg,
    seen,
    write_chunks,
)

from prefect_renderfarm.blocks import (
    AssemblyError,
    FfmpegStitcher,
    RemuxStitcher,
    StitchInputError,
    VideoStitcher,
)
from prefect_renderfarm.blocks.media.model import BOTTOM_FIRST, TOP_FIRST
from prefect_renderfarm.blocks.media.reader import field_order
from prefect_renderfarm.blocks.stitchers.base import StitchReport

LONG = pytest.mark.long
X265 = "-c:v libx265 -preset ultrafast -x265-params log-level=0"
PQ = "setparams=color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc"
VP9 = "-c:v libvpx-vp9 -deadline realtime -cpu-used 8"


@pytest.fixture(params=[RemuxStitcher, FfmpegStitcher], ids=["remux", "ffmpeg"])
def make(request: pytest.FixtureRequest) -> Callable[..., VideoStitcher]:
    """Each stitcher in turn."""
    maker: Callable[..., VideoStitcher] = request.param
    return maker


def stitch(stitcher: VideoStitcher, chunks: list[Path], film: Path) -> StitchReport:
    """Assemble chunks of `FRAMES` frames, and see that the film has their pictures."""
    counts = [FRAMES] * len(chunks)
    report = stitcher.stitch(chunks, film, fps=FPS, frame_counts=counts)
    assert picture_hashes(film) == [each for path in chunks for each in picture_hashes(path)]
    return report


def prores(profile: str) -> str:
    """Return options for a profile of ProRes."""
    pixels = "yuva444p10le" if profile.startswith("4444") else "yuv422p10le"
    return f"-c:v prores_ks -profile:v {profile} -pix_fmt {pixels}"


# Options of the encoder, filters, ending of the chunks, endings of films that must be equal.
TAGS = [
    (prores("4444"), ".mov", ".mov .mkv"),
    *(pytest.param(prores(profile), ".mov", ".mov .mkv", marks=LONG)
      for profile in ("proxy", "lt", "standard", "hq", "4444xq")),
    (f"{X265} -tag:v hvc1", ".mp4", ".mp4 .mov .m4v"),
    (f"{X265} -tag:v hev1", ".mp4", ".mp4 .mov"),
    ("-c:v libx264 -tag:v avc3", ".mp4", ".mp4 .mov"),
    pytest.param("-c:v hap -format hap_alpha", ".mov", ".mov", marks=LONG),
    pytest.param("-c:v hap -format hap_q", ".mov", ".mov", marks=LONG),
    ("-c:v dnxhd -profile:v dnxhr_lb -pix_fmt yuv422p", ".mov", ".mov"),
    ("-c:v mpeg2video -tag:v xd5e", ".mov", ".mov"),
    ("-c:v mpeg4 -tag:v XVID", ".mov", ".mov"),
    pytest.param("-c:v mpeg4 -tag:v DIVX", ".mov", ".mov", marks=LONG),
    pytest.param("-c:v mpeg4", ".mov", ".mov .mp4", marks=LONG),
    ("-c:v v210", ".mov", ".mov"),
    pytest.param("-c:v mjpeg -pix_fmt yuvj422p", ".mov", ".mov", marks=LONG),
]  # fmt: skip


ROTATIONS = [
    ("libvpx", ".webm", ".webm"),
    *(pytest.param(*each, marks=LONG) for each in (
        ("libx264", ".mp4", ".mp4 .mov .mkv"),
        ("utvideo", ".mkv", ".mkv"),
        ("libx264", ".mkv", ".mp4 .mov .mkv"),
        ("libx265", ".mp4", ".mp4 .mkv"),
        ("libvpx", ".mkv", ".webm .mkv"),
        ("libvpx-vp9", ".webm", ".webm .mp4"),
        ("huffyuv", ".mkv", ".mkv"),
        ("ffv1", ".mkv", ".mkv"),
        ("prores_ks", ".mov", ".mov .mkv"),
    )),
]  # fmt: skip


@pytest.mark.parametrize(("codec", "ending", "endings"), ROTATIONS)
def test_rotation(
    tmp_path: Path, make: Callable[..., VideoStitcher], codec: str, ending: str, endings: str
) -> None:
    """A film is turned as its chunks are; another chunk is refused, also where no header tells."""
    plain = write_chunks(tmp_path, ending, f"-c:v {codec}", count=2)
    turned = [path.with_stem(f"turned{path.stem}") for path in plain]
    for path, target in zip(plain, turned, strict=True):
        run_ffmpeg("-display_rotation", "90", "-i", path, "-c", "copy", target)
    for film in (tmp_path / f"film{each}" for each in endings.split()):
        stitch(make(), turned, film)
        with av.open(str(film)) as container:
            assert {frame.rotation for frame in container.decode(video=0)} == {90}
        with pytest.raises(StitchInputError, match="rotation 0 degrees, not 270 degrees"):
            stitch(make(), [turned[0], plain[1]], film)
        with pytest.raises(StitchInputError, match="rotation 270 degrees, not 0 degrees"):
            stitch(make(), [plain[0], turned[1]], film)


@pytest.mark.parametrize(("options", "ending", "endings"), TAGS)
def test_codec_tag(
    make: Callable[..., VideoStitcher], options: str, ending: str, endings: str, tmp_path: Path
) -> None:
    """The film has the tag of its chunks: it tells the profile of ProRes, and where H.265's are."""
    chunks = write_chunks(tmp_path, ending, options)
    for number, film_ending in enumerate(endings.split()):
        film = tmp_path / f"film{number}{film_ending}"
        stitch(make(), chunks, film)
        assert seen(film).tag == seen(chunks[0]).tag


@pytest.mark.parametrize("ending", [".mkv", ".ts"])
@pytest.mark.parametrize(
    "film", ["film.mp4", *(pytest.param(name, marks=LONG) for name in ("film.mov", "film.m4v"))]
)
def test_hevc_without_a_tag(
    make: Callable[..., VideoStitcher], ending: str, film: str, tmp_path: Path
) -> None:
    """H.265 of other containers becomes what Apple's players take."""
    chunks = write_chunks(tmp_path, ending, X265)
    stitch(make(), chunks, tmp_path / film)
    assert seen(tmp_path / film).tag == "hvc1"


ASPECTS = [
    (prores("standard"), ".mov", ".mov .mkv"),
    ("-c:v libx264 -preset ultrafast", ".mp4", ".mp4 .mov .mkv .ts"),
    pytest.param("-c:v libx264 -preset ultrafast", ".ts", ".mp4 .mkv .ts", marks=LONG),
    pytest.param(X265, ".mkv", ".mp4 .mkv .ts", marks=LONG),
    (VP9, ".webm", ".webm .mkv .mp4"),
    pytest.param("-c:v libsvtav1 -preset 13", ".mkv", ".mkv .mp4", marks=LONG),
    pytest.param("-c:v ffv1", ".mkv", ".mkv", marks=LONG),
    pytest.param("-c:v mjpeg -pix_fmt yuvj420p", ".mov", ".mov .mkv", marks=LONG),
    ("-c:v utvideo", ".mkv", ".mkv"),
    pytest.param("-c:v png", ".mov", ".mov .mkv", marks=LONG),
    pytest.param("-c:v mpeg4", ".mp4", ".mp4 .mkv", marks=LONG),
]


@pytest.mark.parametrize(("options", "ending", "endings"), ASPECTS)
def test_pixel_aspect(
    make: Callable[..., VideoStitcher], options: str, ending: str, endings: str, tmp_path: Path
) -> None:
    """Anamorphic chunks make an anamorphic film, wherever the aspect is told."""
    chunks = write_chunks(tmp_path, ending, options, "setsar=4/3")
    expected = seen(chunks[0]).aspect
    assert abs(expected - Fraction(4, 3)) < Fraction(1, 100)
    for number, film_ending in enumerate(endings.split()):
        film = tmp_path / f"film{number}{film_ending}"
        stitch(make(), chunks, film)
        assert seen(film).aspect == expected


def test_alpha_of_vp9(make: Callable[..., VideoStitcher], tmp_path: Path) -> None:
    """Transparency is kept, with its mark; mp4 has no place for it."""
    chunks = write_chunks(tmp_path, ".webm", f"{VP9} -pix_fmt yuva420p", "format=yuva420p")
    for name in ("film.webm", "film.mkv"):
        stitch(make(), chunks, tmp_path / name)
        assert seen(tmp_path / name).alpha
        assert alpha_hash(tmp_path / name) == alpha_hash(*chunks)
    with pytest.raises(StitchInputError, match=r"a \.mp4 film cannot hold the transp"):
        stitch(make(), chunks, tmp_path / "film.mp4")
    assert not (tmp_path / "film.mp4").exists()


def alpha_hash(*paths: Path) -> str:
    """Return a hash of the transparency of files, one after the other, as libvpx decodes it."""
    inputs = [word for path in paths for word in ("-c:v", "libvpx-vp9", "-i", path)]
    streams = "".join(f"[{number}:v]" for number in range(len(paths)))
    out = paths[0].with_suffix(".md5")
    joined = f"{streams}concat=n={len(paths)},alphaextract"
    run_ffmpeg(*inputs, "-filter_complex", joined, "-f", "md5", out)
    return out.read_text()


@pytest.mark.parametrize(
    ("options", "ending", "film"),
    [
        ("-c:v utvideo", ".mkv", "film.mkv"),
        pytest.param("-c:v huffyuv -pix_fmt yuv422p", ".mkv", "film.mkv", marks=LONG),
        ("-c:v png", ".mov", "film.mkv"),
        pytest.param("-c:v cfhd -pix_fmt yuv422p10le", ".mov", "film.mkv", marks=LONG),
        pytest.param("-c:v dvvideo -s 720x576 -pix_fmt yuv420p", ".mov", "film.mkv", marks=LONG),
        pytest.param("-c:v magicyuv", ".avi", "film.mkv", marks=LONG),
        pytest.param("-c:v v210", ".mov", "film.mkv", marks=LONG),
        ("-c:v ffv1", ".mkv", "film.mov"),
        pytest.param("-c:v qtrle -pix_fmt gray", ".mov", "film.mov", marks=LONG),
        pytest.param("-c:v smc -pix_fmt pal8", ".mov", "film.mov", marks=LONG),
        pytest.param("-c:v rawvideo -pix_fmt pal8", ".mov", "film.mov", marks=LONG),
        pytest.param("-c:v huffyuv -pix_fmt yuv422p", ".mov", "film.mov", marks=LONG),
        pytest.param("-c:v utvideo", ".avi", "film.mov", marks=LONG),
        pytest.param("-c:v ffvhuff", ".avi", "film.mov", marks=LONG),
    ],
)
def test_codecs_of_other_containers(
    make: Callable[..., VideoStitcher], options: str, ending: str, film: str, tmp_path: Path
) -> None:
    """Codecs that Matroska and QuickTime store in the way of AVI, or of each other, are joined."""
    chunks = write_chunks(tmp_path, ending, options)
    stitch(make(), chunks, tmp_path / film)


def test_mastering_display_of_vp9(make: Callable[..., VideoStitcher], tmp_path: Path) -> None:
    """Matroska tells it in a place of its own."""
    display = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L({},1)"
    chunks = []
    for number, nits in enumerate((1000, 1000, 4000)):
        source = tmp_path / f"{number}.mp4"
        light = f":hdr10=1:master-display={display.format(nits * 10_000)}:max-cll=1000,400"
        run_ffmpeg(*pictures(number * FRAMES, PQ), *f"{X265}{light} -pix_fmt yuv420p10le".split(),
                   source)  # fmt: skip
        chunks.append(tmp_path / f"{number}.webm")
        run_ffmpeg("-i", source, *VP9.split(), chunks[-1])
    stitch(make(), chunks[:2], tmp_path / "film.webm")
    for order in (chunks, chunks[::-1]):
        with pytest.raises(StitchInputError, match="mastering display"):
            stitch(make(), order, tmp_path / "refused.webm")


@pytest.mark.parametrize("ending", [".y4m", ".nut"])
def test_raw_video(make: Callable[..., VideoStitcher], ending: str, tmp_path: Path) -> None:
    """QuickTime takes raw 4:2:0 without a word, and nobody can decode it; Matroska keeps it."""
    codec = "wrapped_avframe" if ending == ".y4m" else "rawvideo"
    chunks = write_chunks(tmp_path, ending, f"-c:v {codec} -pix_fmt yuv420p")
    with pytest.raises((AssemblyError, StitchInputError)) as refusal:
        stitch(make(), chunks, tmp_path / "film.mov")
    assert "cannot be decoded" in str(refusal.value) or "cannot hold" in str(refusal.value)
    stitch(make(), chunks, tmp_path / "film.mkv")


def test_b_frames_in_avi(tmp_path: Path) -> None:
    """AVI has no display times: frames out of order are joined by their codec's, or refused."""
    chunks = write_chunks(tmp_path, ".avi", "-c:v libx264 -bf 2")
    stitch(RemuxStitcher(), chunks, tmp_path / "film.mkv")
    with pytest.raises(StitchInputError, match="B-frames in AVI, which has no"):
        stitch(FfmpegStitcher(), chunks, tmp_path / "refused.mkv")
    stitch(FfmpegStitcher(video_codec="ffv1"), chunks, tmp_path / "encoded.mkv")


def test_frames_that_repeat_others(make: Callable[..., VideoStitcher], tmp_path: Path) -> None:
    """Theora writes no data for a frame that equals the one before."""
    path = tmp_path / "0.ogv"
    still = ["-f", "lavfi", "-i", "color=red:s=64x48:r=25:d=0.4"]
    run_ffmpeg(*still, "-c:v", "libtheora", path)
    with pytest.raises(StitchInputError, match="repeats frame 0 by a frame without data"):
        make().stitch([path], tmp_path / "film.mkv", fps=FPS)


def test_clock_of_a_transport_stream(make: Callable[..., VideoStitcher], tmp_path: Path) -> None:
    """A film that is longer than 26.5 hours is refused before anything is rendered."""
    stitcher = make()
    stitcher.check_length(tmp_path / "film.mkv", 27 * 3600 * 25, Fraction(25))
    stitcher.check_length(tmp_path / "film.ts", 26 * 3600 * 25, Fraction(25))
    with pytest.raises(StitchInputError, match=r"would last 27\.0 hours, and .* ends after 26\.5"):
        stitcher.check_length(tmp_path / "film.ts", 27 * 3600 * 25, Fraction(25))


def test_undecodable_film(make: Callable[..., VideoStitcher], tmp_path: Path) -> None:
    """QuickTime's RLE goes into Matroska without a word, and nobody can decode it there."""
    chunks = write_chunks(tmp_path, ".mov", "-c:v qtrle")
    with pytest.raises(AssemblyError, match="film cannot be decoded at frame 0; it is not publ"):
        stitch(make(), chunks, tmp_path / "film.mkv")
    assert not (tmp_path / "film.mkv").exists()


def test_notes_of_an_encoder(make: Callable[..., VideoStitcher], tmp_path: Path) -> None:
    """Chunks of x265 are joined if only the note of its settings differs."""
    settings = ["frame-threads=1", "frame-threads=3", "crf=20"]
    for ending in (".mp4", ".mkv"):
        chunks = []
        for number, setting in enumerate(settings):
            chunks.append(tmp_path / f"{number}{ending}")
            run_ffmpeg(*pictures(number * FRAMES), *f"{X265}:{setting}".split(), chunks[-1])
        stitch(make(), chunks, tmp_path / f"film{ending}")
    other = tmp_path / "other.mp4"
    run_ffmpeg(*pictures(0), *f"{X265}:sao=1".split(), other)
    chunks = [tmp_path / "0.mp4", other]
    with pytest.raises(StitchInputError, match="codec header"):
        stitch(make(), chunks, tmp_path / "refused.mp4")


INTERLACED = [
    (prores("standard"), ".mov"),
    ("-c:v libx264 -preset ultrafast", ".mp4"),
    pytest.param("-c:v libx264 -preset ultrafast", ".mkv", marks=LONG),
    pytest.param("-c:v mpeg2video", ".mkv", marks=LONG),
    ("-c:v ffv1", ".mkv"),
    pytest.param("-c:v v210", ".mov", marks=LONG),
    pytest.param("-c:v dnxhd -s 1920x1080 -b:v 120M -pix_fmt yuv422p", ".mov", marks=LONG),
    # Only their container tells the order.
    ("-c:v utvideo", ".mkv"),
    *(pytest.param(f"-c:v {options}", ending, marks=LONG) for options, ending in (
        ("huffyuv -pix_fmt yuv422p", ".mkv"),
        ("ffvhuff", ".mkv"),
        ("mjpeg -pix_fmt yuvj422p", ".mov"),
        ("jpeg2000", ".mov"),
        ("png", ".mov"),
        ("magicyuv", ".mkv"),
    )),
]  # fmt: skip


@pytest.mark.parametrize("others", ["bff", "prog"])
@pytest.mark.parametrize(("options", "ending"), INTERLACED)
def test_order_of_fields(
    make: Callable[..., VideoStitcher], options: str, ending: str, others: str, tmp_path: Path
) -> None:
    """Fields stay as they are; a chunk with others is refused."""
    interlaced = options if "mjpeg" in options else f"{options} -flags +ildct+ilme"
    top = write_chunks(tmp_path, ending, interlaced, "setfield=tff", count=2)
    film = tmp_path / f"film{ending}"
    if others == "bff":
        stitch(make(), top, film)
        assert seen(film).fields == seen(top[0]).fields
    (tmp_path / "other").mkdir()
    other = write_chunks(
        tmp_path / "other", ending, interlaced if others == "bff" else options,
        f"setfield={others}", count=1,
    )  # fmt: skip
    for chunks in ([*top, *other], [*other, *top]):
        with pytest.raises(StitchInputError, match=r"field|codec header|profile"):
            stitch(make(), chunks, tmp_path / f"refused{ending}")


def light(codec: str, nits: int) -> str:
    """Return options by which an encoder tells a mastering display among the frames."""
    places = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)"
    if codec == "libx264":
        display = f"mastering-display={places}L({nits * 10_000},1)"
        return f"-c:v libx264 -preset ultrafast -pix_fmt yuv420p10le -x264-params {display}"
    if codec == "libx265":
        display = f"repeat-headers=1:hdr10=1:master-display={places}L({nits * 10_000},1)"
        return f"{X265}:{display} -pix_fmt yuv420p10le"
    display = f"G(0.265,0.69)B(0.15,0.06)R(0.68,0.32)WP(0.3127,0.329)L({nits},0.01)"
    return f"-c:v libsvtav1 -preset 12 -svtav1-params mastering-display={display}"


LIGHTS = [
    ("libx264", ".mp4"),
    *(pytest.param(*each, marks=LONG) for each in (
        ("libsvtav1", ".mp4"), ("libx265", ".ts"),
        ("libx264", ".mkv"), ("libx264", ".ts"), ("libsvtav1", ".mkv"), ("libsvtav1", ".webm"),
        ("libx265", ".mp4"), ("libx265", ".mkv"),
    )),
]  # fmt: skip


@pytest.mark.parametrize(("codec", "ending"), LIGHTS)
def test_mastering_display_among_the_frames(
    make: Callable[..., VideoStitcher], codec: str, ending: str, tmp_path: Path
) -> None:
    """A chunk graded on another display, or on none, is refused where only its frames tell."""
    parts = []
    plain = {
        "libx264": "-c:v libx264 -preset ultrafast -pix_fmt yuv420p10le",
        "libx265": f"{X265} -pix_fmt yuv420p10le",
        "libsvtav1": "-c:v libsvtav1 -preset 12",
    }
    for number, options in enumerate((light(codec, 1000), light(codec, 4000), plain[codec])):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        parts.append(write_chunks(folder, ending, options, count=2))
    bright, brighter, none = parts
    film = tmp_path / f"film{ending}"
    stitch(make(), bright, film)
    for chunks in ([*bright, brighter[0]], [bright[0], none[1]], [none[0], bright[1]]):
        with pytest.raises(StitchInputError, match=r"light|mastering|codec header"):
            stitch(make(), chunks, tmp_path / f"refused{ending}")


def test_aspect_that_the_container_takes_back(
    make: Callable[..., VideoStitcher], tmp_path: Path
) -> None:
    """Square pixels of the container count, not others of the codec."""
    chunks = []
    for number, path in enumerate(
        write_chunks(tmp_path, ".mp4", "-c:v libx264", "setsar=4/3", count=2)
    ):
        chunks.append(tmp_path / f"square{number}.mp4")
        run_ffmpeg("-i", path, "-c", "copy", "-aspect", "16:9", chunks[-1])
    assert seen(chunks[0]).aspect == 1
    for ending in (".mp4", ".mov", ".mkv"):
        film = tmp_path / f"film{ending}"
        stitch(make(), chunks, film)
        assert seen(film).aspect == 1
    with pytest.raises(AssemblyError, match=r"pixel aspect 4/3, not 1.*let its name end in \.mkv"):
        make().stitch(chunks, tmp_path / "film.ts", fps=FPS)


@pytest.mark.parametrize(
    ("options", "ending", "film"),
    [("-c:v libvpx -deadline realtime", ".webm", "film.webm"),
     pytest.param("-c:v libvpx -deadline realtime", ".webm", "film.mkv", marks=LONG),
     pytest.param(prores("standard"), ".mkv", "film.mkv", marks=LONG),
     pytest.param("-c:v libx264", ".mp4", "film.ts", marks=LONG)],
)  # fmt: skip
def test_full_range(
    make: Callable[..., VideoStitcher], options: str, ending: str, film: str, tmp_path: Path
) -> None:
    """It is kept, also where only the container tells it."""
    chunks = write_chunks(tmp_path, ending, f"{options} -color_range pc", "setparams=range=pc")
    stitch(make(), chunks, tmp_path / film)
    with av.open(str(tmp_path / film)) as container:
        assert container.streams.video[0].codec_context.color_range == 2


@pytest.mark.parametrize(
    ("options", "ending", "film"),
    [("-c:v mpeg2video -bf 2", ".mpg", "film.mkv"),
     pytest.param("-c:v libx264 -bf 2", ".mxf", "film.mov", marks=LONG),
     pytest.param("-c:v libx264 -bf 2", ".ts", "film.mkv", marks=LONG)],
)  # fmt: skip
def test_ntsc_chunks_are_encoded(options: str, ending: str, film: str, tmp_path: Path) -> None:
    """Frame by frame, whatever clocks their containers have."""
    counts, fps, chunks, first = (5, 1, 7), Fraction(24000, 1001), [], 0
    for count in counts:
        chunks.append(tmp_path / f"{first}{ending}")
        source = f"testsrc2=s=320x180:r={fps},trim=start_frame={first}:end_frame={first + count}"
        run_ffmpeg("-f", "lavfi", "-i", f"{source},setpts=PTS-STARTPTS", *options.split(),
                   "-pix_fmt", "yuv420p", chunks[-1])  # fmt: skip
        first += count
    made = tmp_path / film
    FfmpegStitcher(video_codec="ffv1").stitch(chunks, made, fps=fps, frame_counts=counts)
    assert picture_hashes(made) == [each for path in chunks for each in picture_hashes(path)]


@pytest.mark.parametrize("ending", [".mp4", pytest.param(".mkv", marks=LONG)])
def test_cover_picture(make: Callable[..., VideoStitcher], ending: str, tmp_path: Path) -> None:
    """It is no part of the film, and named."""
    cover = tmp_path / "cover.jpg"
    run_ffmpeg(*pictures(0), "-frames:v", "1", "-update", "1", cover)
    chunks = []
    for number, path in enumerate(write_chunks(tmp_path, ending, "-c:v libx264", count=2)):
        chunks.append(tmp_path / f"covered{number}{ending}")
        attached = ["-attach", cover, "-metadata:s:t", "mimetype=image/jpeg", "-c", "copy"]
        mapped = ["-i", cover, "-map", "0", "-map", "1", "-c", "copy", "-disposition:v:1",
                  "attached_pic"]  # fmt: skip
        run_ffmpeg("-i", path, *(attached if ending == ".mkv" else mapped), chunks[-1])
    film = tmp_path / f"film{ending}"
    report = make().stitch(chunks, film, fps=FPS)
    assert report.dropped == ("1 cover picture",)
    assert picture_hashes(film) == [each for path in chunks for each in picture_hashes(path)]


def test_untagged_video_of_flv(make: Callable[..., VideoStitcher], tmp_path: Path) -> None:
    """FLV tells the matrix of RGB for what is YUV."""
    chunks = write_chunks(tmp_path, ".flv", X265, count=2)
    stitch(make(), chunks, tmp_path / "film.mp4")


def test_fields_in_avi(tmp_path: Path) -> None:
    """Their times are libav's guess: only the remuxer puts them onto the grid."""
    options = "-c:v libx264 -preset ultrafast -flags +ilme+ildct -bf 0"
    chunks = write_chunks(tmp_path, ".avi", options, "setfield=tff", count=2)
    stitch(RemuxStitcher(), chunks, tmp_path / "film.mkv")
    with pytest.raises(StitchInputError, match="may have B-frames in AVI"):
        FfmpegStitcher().stitch(chunks, tmp_path / "refused.mkv", fps=FPS)


@pytest.mark.parametrize("source", ["utvideo", *(pytest.param(each, marks=LONG) for each in
                                                 ("v210", "png"))])  # fmt: skip
@pytest.mark.parametrize("field", ["tff", "bff"])
@pytest.mark.parametrize("codec", ["libx264", *(pytest.param(each, marks=LONG) for each in
                                                ("mpeg2video", "prores_ks"))])  # fmt: skip
def test_interlaced_film_is_encoded_as_such(
    source: str, field: str, codec: str, tmp_path: Path
) -> None:
    """An encoder is told of the fields, and of their order, which pictures may not tell."""
    ending = ".mkv" if source == "utvideo" else ".mov"
    chunks = write_chunks(tmp_path, ending, f"-c:v {source}", f"setfield={field}")
    film = tmp_path / "film.mov"
    report = FfmpegStitcher(video_codec=codec).stitch(chunks, film, fps=FPS)
    with av.open(str(film)) as container:
        picture = next(container.decode(video=0))
    assert field_order(picture) == {"tff": TOP_FIRST, "bff": BOTTOM_FIRST}[field]
    assert seen(film).fields in (2, 3, 4, 5)
    assert report.dropped == ()
    if codec == "libx264":
        vp9 = FfmpegStitcher(video_codec="libvpx-vp9")
        report = vp9.stitch(chunks, tmp_path / "f.webm", fps=FPS)
        assert any("field order" in each for each in report.dropped)


def test_turned_pictures_are_encoded_upright(tmp_path: Path) -> None:
    """FFmpeg turns them: nothing is lost."""
    [plain] = write_chunks(tmp_path, ".mp4", "-c:v libx264", count=1)
    turned = tmp_path / "turned.mp4"
    run_ffmpeg("-display_rotation", "90", "-i", plain, "-c", "copy", turned)
    report = FfmpegStitcher(video_codec="libx264").stitch([turned], tmp_path / "f.mp4", fps=FPS)
    assert report.dropped == ()
    with av.open(str(tmp_path / "f.mp4")) as container:
        picture = next(container.decode(video=0))
    assert (picture.width, picture.height, picture.rotation) == (180, 320, 0)


@pytest.mark.parametrize(("options", "ending"), [(VP9, ".webm"), (X265, ".mp4"), (X265, ".mkv")])
def test_colours_of_hdr(
    make: Callable[..., VideoStitcher], options: str, ending: str, tmp_path: Path
) -> None:
    """Chunks in BT.2020 and PQ do not follow chunks without colours, nor the other way round."""
    (tmp_path / "plain").mkdir()
    plain = write_chunks(tmp_path / "plain", ending, options, count=1)
    hdr = write_chunks(tmp_path, ending, options, PQ, count=2)
    film = tmp_path / f"film{ending}"
    stitch(make(), hdr, film)
    assert seen(film).colours == seen(hdr[0]).colours == (9, 16, 9)
    for chunks in ([*plain, *hdr], [*hdr, *plain]):
        with pytest.raises(StitchInputError, match=r"colour|codec header"):
            stitch(make(), chunks, tmp_path / f"refused{ending}")


def with_box(source: Path, target: Path, box: bytes) -> Path:
    """Copy an mp4 file whose index stands last, and add a box to the sample entry of its video."""
    data = bytearray(source.read_bytes())
    entry = data.index(b"stsd") + 12
    (size,) = struct.unpack_from(">I", data, entry)
    data[entry + size : entry + size] = box
    around = [entry, *(data.index(kind) - 4 for kind in (b"moov", b"trak", b"mdia", b"minf",
                                                          b"stbl", b"stsd"))]  # fmt: skip
    for place in around:
        struct.pack_into(">I", data, place, struct.unpack_from(">I", data, place)[0] + len(box))
    target.write_bytes(data)
    return target


def display_box(nits: int) -> bytes:
    """Return a mastering display of so many cd/m² at most: ISO/IEC 14496-12, 12.1.8."""
    primaries = (13250, 34500, 7500, 3000, 34000, 16000, 15635, 16450)
    return struct.pack(">I4s8H2I", 32, b"mdcv", *primaries, nits * 10_000, 1)


# Profile 8.1, level 3, with RPU and base layer: Dolby Vision Streams Within ISO BMFF, 3.
DOLBY = struct.pack(">I4sBBHB19x", 32, b"dvvC", 1, 0, 8 << 9 | 3 << 3 | 0b101, 1 << 4)


def test_mastering_display(make: Callable[..., VideoStitcher], tmp_path: Path) -> None:
    """The display on which a film was graded is kept; a chunk graded on another is refused."""
    plain = write_chunks(tmp_path, ".mp4", f"{X265} -pix_fmt yuv420p10le", PQ)
    same = [with_box(path, tmp_path / f"same{path.name}", display_box(1000)) for path in plain]
    stitch(make(), same, tmp_path / "film.mp4")
    assert display_box(1000)[8:] in (tmp_path / "film.mp4").read_bytes()
    other = with_box(plain[1], tmp_path / "other.mp4", display_box(4000))
    for chunk in (other, plain[1]):
        with pytest.raises(StitchInputError, match="mastering display"):
            stitch(make(), [same[0], chunk, same[2]], tmp_path / "refused.mp4")


def test_dolby_vision(make: Callable[..., VideoStitcher], tmp_path: Path) -> None:
    """mp4 and Matroska keep the record of Dolby Vision; QuickTime has no place for it."""
    plain = write_chunks(tmp_path, ".mp4", f"{X265} -pix_fmt yuv420p10le", PQ)
    chunks = [with_box(path, tmp_path / f"dv{path.name}", DOLBY) for path in plain]
    for name in ("film.mp4", "film.mkv"):
        stitch(make(), chunks, tmp_path / name)
    assert DOLBY[8:16] in (tmp_path / "film.mp4").read_bytes()
    with pytest.raises(StitchInputError, match=r"\.mov film cannot hold the record of Dolby"):
        stitch(make(), chunks, tmp_path / "film.mov")
    with pytest.raises(StitchInputError, match="Dolby Vision record"):
        stitch(make(), [chunks[0], plain[1]], tmp_path / "refused.mp4")


LABELS = "-metadata title=Nightfall -metadata:s:v language=jpn -timecode 01:00:00:00"


@pytest.mark.parametrize("name", ["film.mov", "film.mp4", "film.mkv"])
def test_labels(make: Callable[..., VideoStitcher], name: str, tmp_path: Path) -> None:
    """Title, language and timecode are those of the first chunk."""
    chunks = write_chunks(tmp_path, ".mov", f"-c:v libx264 -preset ultrafast {LABELS}")
    report = stitch(make(), chunks, tmp_path / name)
    film = seen(tmp_path / name)
    assert (film.title, film.timecode) == ("Nightfall", "01:00:00:00")
    assert film.language == "jpn"
    assert report.dropped == ()


def test_what_is_lost_is_told(make: Callable[..., VideoStitcher], tmp_path: Path) -> None:
    """Subtitles, chapters, fonts and labels that a film cannot have are in the report."""
    plain = write_chunks(tmp_path, ".mp4", "-c:v libx264 -preset ultrafast", count=2)
    subtitles, chapters = tmp_path / "s.srt", tmp_path / "c.txt"
    subtitles.write_text("1\n00:00:00,000 --> 00:00:00,100\nHello\n")
    chapters.write_text(
        ";FFMETADATA1\ntitle=Nightfall\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=100\n"
    )
    font = tmp_path / "font.ttf"
    font.write_bytes(b"no font")
    chunks = []
    for path in plain:
        chunks.append(path.with_suffix(".mkv"))
        run_ffmpeg(
            *("-i", path, "-i", subtitles, "-i", chapters, "-map", 0, "-map", 1, "-c", "copy"),
            *("-map_metadata", 2, "-map_chapters", 2, "-attach", font),
            *("-metadata:s:t", "mimetype=application/x-truetype-font", chunks[-1]),
        )  # fmt: skip
    report = stitch(make(), chunks, tmp_path / "film.ts")
    assert report.dropped == ("1 chapter", "1 subtitle track", "1 attachment", "title 'Nightfall'")
