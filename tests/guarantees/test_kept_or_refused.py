"""Right, or refused by name: what chunks tell of themselves is in the film, or there is no film."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

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
    ("-c:v v210", ".mov", ".mov"),
    pytest.param("-c:v mjpeg -pix_fmt yuvj422p", ".mov", ".mov", marks=LONG),
]  # fmt: skip


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
    ],
)
def test_matroska_takes_them(
    make: Callable[..., VideoStitcher], options: str, ending: str, film: str, tmp_path: Path
) -> None:
    """Codecs that Matroska stores as AVI or QuickTime do are joined."""
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
    with pytest.raises(StitchInputError, match="B-frames in AVI, which has no display times"):
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
]


@pytest.mark.parametrize("others", ["bff", "prog"])
@pytest.mark.parametrize(("options", "ending"), INTERLACED)
def test_order_of_fields(
    make: Callable[..., VideoStitcher], options: str, ending: str, others: str, tmp_path: Path
) -> None:
    """Fields stay as they are; a chunk with others is refused."""
    interlaced = f"{options} -flags +ildct+ilme"
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


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "prores_ks"])
def test_interlaced_film_is_encoded_as_such(codec: str, tmp_path: Path) -> None:
    """An encoder is told of the fields; without, each pair would become one picture."""
    chunks = write_chunks(tmp_path, ".mov", "-c:v v210", "setfield=tff")
    film = tmp_path / "film.mov"
    report = FfmpegStitcher(video_codec=codec).stitch(chunks, film, fps=FPS)
    assert seen(film).fields in (2, 4)
    assert report.dropped == ()
    report = FfmpegStitcher(video_codec="libvpx-vp9").stitch(chunks, tmp_path / "f.webm", fps=FPS)
    assert "field order top field first" in report.dropped


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
