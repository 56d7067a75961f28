"""What a film's container is told: tags, labels and options; and what it cannot hold."""

from __future__ import annotations

import logging
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from faulty_media import ffmpeg
from media_samples import Recipe, write_clip

from prefect_renderfarm.blocks import RemuxStitcher
from prefect_renderfarm.blocks.errors import AssemblyError, StitchInputError
from prefect_renderfarm.blocks.media.model import Audio, Labels, Media
from prefect_renderfarm.blocks.media.reader import read_media
from prefect_renderfarm.blocks.stitchers.audio import AudioMode, AudioPlan
from prefect_renderfarm.blocks.stitchers.checked import (
    ChunkCheck,
    codec_tag,
    film_labels,
    labels_of,
    muxer_name,
    muxer_options,
    writing,
)

FPS = Fraction(30)
LABELS = Labels("A", "01:00:00:00", "jpn", "fra")
OWN = AudioPlan(AudioMode.COPY, Audio("pcm_s16le", 48_000, "stereo", 1))
TRACK = replace(OWN, track=Path("track.wav"))
SILENT = AudioPlan(AudioMode.NONE)


def chunk(codec: str = "h264", fps: Fraction = FPS, labels: Labels = LABELS, **told: Any) -> Media:
    """Return a chunk that tells something of itself; `_` stands for a space."""
    told = {name.replace("_", " "): value for name, value in told.items()}
    return Media(Path("0.mkv"), 1, 0, fps, 0, {"codec": codec, **told}, labels=labels)


@pytest.mark.parametrize(
    ("film", "told", "content"),
    [
        ("f.mp4", {"alpha": "yes"}, "the transparency of h264"),
        ("f.TS", {"alpha": "yes"}, "the transparency of h264"),
        ("f.mkv", {"alpha": "yes"}, None),
        ("f.WEBM", {"codec": "vp9", "alpha": "yes"}, None),
        ("f.mp4", {"alpha": "no"}, None),
        ("f.mov", {"Dolby_Vision_record": "00ff"}, "the record of Dolby Vision"),
        ("f.ts", {"Dolby_Vision_record": "00ff"}, "the record of Dolby Vision"),
        ("f.mp4", {"Dolby_Vision_record": "00ff"}, None),
        ("f.mov", {"Dolby_Vision_record": "none"}, None),
        ("f.ts", {"Dolby_Vision_record": None}, None),
    ],
)
def test_what_a_container_cannot_hold(film: str, told: dict[str, Any], content: str | None) -> None:
    """It is refused, with what to do."""
    if content is None:
        RemuxStitcher().check_first_chunk(Path(film), chunk(**told).signature)
        return
    with pytest.raises(StitchInputError) as refused:
        RemuxStitcher().check_first_chunk(Path(film), chunk(**told).signature)
    assert str(refused.value) == (
        f"a {film[1:]} film cannot hold {content}: let the film's name end in .mkv, or have it "
        "encoded by an ffmpeg-stitcher with a 'video_codec'"
    )


@pytest.mark.parametrize(
    ("film", "seconds", "fits"),
    [("f.ts", 95_441, True), ("f.ts", 95_442, False), ("f.TS", 95_442, False),
     ("f.mp4", 10**6, True)],
)  # fmt: skip
def test_length_of_a_transport_stream(film: str, seconds: int, fits: bool) -> None:
    """Its clock ends after a day and some hours."""
    for fps in (FPS, Fraction(24)):
        if fits:
            RemuxStitcher().check_length(Path(film), int(seconds * fps), fps)
            continue
        with pytest.raises(StitchInputError) as refused:
            RemuxStitcher().check_length(Path(film), int(seconds * fps), fps)
        assert str(refused.value) == (
            f"film '{film}' would last 26.5 hours, and the clock of a .ts film ends after 26.5: "
            "let its name end in .mkv"
        )


@pytest.mark.parametrize(
    ("film", "told", "fps", "faststart", "options"),
    [
        ("f.mp4", {}, FPS, False, {"movie_timescale": "30"}),
        ("f.MOV", {}, Fraction(24_000, 1001), False, {"movie_timescale": "24000"}),
        ("f.m4v", {"projection": "00ff"}, FPS, False,
         {"movie_timescale": "30", "strict": "unofficial"}),
        ("f.mp4", {"stereo_mode": "00ff"}, FPS, False,
         {"movie_timescale": "30", "strict": "unofficial"}),
        ("f.mp4", {"Dolby_Vision_record": "00ff"}, FPS, False,
         {"movie_timescale": "30", "strict": "unofficial"}),
        ("f.mp4", {"stereo_mode": "none", "projection": None, "mastering_display": "00ff"}, FPS,
         False, {"movie_timescale": "30"}),
        # 300 frames, and 100 packets of audio in each of 10 s, of 44 bytes.
        ("f.mp4", {}, FPS, True, {"movie_timescale": "30", "moov_size": "122736"}),
        ("f.mkv", {"projection": "00ff"}, FPS, True, {"avoid_negative_ts": "disabled"}),
        ("f.WEBM", {}, FPS, True, {"avoid_negative_ts": "disabled"}),
        ("f.ts", {}, FPS, True, {}),
    ],
)  # fmt: skip
def test_options_of_the_muxer(
    film: str, told: dict[str, Any], fps: Fraction, faststart: bool, options: dict[str, str]
) -> None:
    """An exact clock, what is no part of the standard, and place for an index in front."""
    assert muxer_options(Path(film), chunk(fps=fps, **told), faststart, 300) == options


@pytest.mark.parametrize(("film", "name"), [("f.m4v", "mp4"), ("f.M4V", "mp4"), ("f.mp4", None)])
def test_muxer(film: str, name: str | None) -> None:
    """That of .m4v is mp4's."""
    assert muxer_name(Path(film)) == name


@pytest.mark.parametrize(
    ("alpha", "plan", "copied", "tags"),
    [
        ("no", OWN, True, ({}, {"language": "fra"})),
        ("no", TRACK, True, ({}, {})),
        ("no", SILENT, True, ({}, {})),
        ("yes", OWN, True, ({"alpha_mode": "1"}, {"language": "fra"})),
        ("yes", OWN, False, ({}, {"language": "fra"})),
    ],
)
def test_labels_of_a_film(
    alpha: str, plan: AudioPlan, copied: bool, tags: tuple[dict[str, str], dict[str, str]]
) -> None:
    """They are the first chunk's, but for the language of audio that is not its own."""
    video, audio = tags
    first = chunk(alpha=alpha)
    assert film_labels(first, plan, copied=copied) == {
        "film": {"title": "A"},
        "video": {"timecode": "01:00:00:00", "language": "jpn", **video},
        "audio": audio,
    }
    nothing = {"film": {}, "video": video, "audio": {}}
    assert film_labels(chunk(alpha=alpha, labels=Labels()), plan, copied=copied) == nothing
    assert labels_of(first, plan) == replace(LABELS, audio_language=audio.get("language"))


@pytest.mark.parametrize(
    ("codec", "ending", "films"),
    [
        ("libx264", ".mp4", {"mp4": "avc1", "MP4": "avc1", "mov": "avc1", "m4v": "avc1",
                             "mkv": None, "ts": None}),
        ("libx264", ".mkv", {"mp4": None, "mkv": None}),
        ("libx265", ".mkv", {"mp4": "hvc1", "mov": "hvc1", "mkv": None, "ts": None}),
        ("libx265", ".mp4", {"mp4": "hev1", "M4V": "hev1", "mov": "hev1"}),
        ("mjpeg", ".mov", {"mov": "jpeg", "mp4": None, "mkv": None}),
        ("prores_ks", ".mov", {"mov": "apch", "mkv": "apch", "mp4": None}),
    ],
)  # fmt: skip
def test_codec_tag(tmp_path: Path, codec: str, ending: str, films: dict[str, str | None]) -> None:
    """It is kept where the container has it; H.265 without one gets that of Apple's players."""
    form = {"prores_ks": "yuv422p10le", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
    path = write_clip(tmp_path / f"0{ending}", 0, 1, Recipe(ending, codec, pixel_format=form))
    first = read_media(path)
    assert {each: codec_tag(first, Path(f"film.{each}")) for each in films} == films


def test_codec_tag_that_libav_does_not_write(tmp_path: Path) -> None:
    """It is not asked for; short ones are filled up with spaces."""
    first = read_media(write_clip(tmp_path / "0.mov", 0, 1, Recipe(".mov")))
    for tag, found in (("avc1", "avc1"), ("avc3", "avc3"), ("zzzz", None)):
        told = replace(first, signature={**first.signature, "codec tag": tag})
        assert codec_tag(told, Path("film.mov")) == found
    raw = Recipe(".mov", "rawvideo", pixel_format="rgb24")
    first = read_media(write_clip(tmp_path / "raw.mov", 0, 1, raw))
    assert codec_tag(first, Path("film.mov")) == "raw "


@pytest.mark.parametrize(
    ("number", "disk"), [(28, True), (5, True), (22, False), (1094995529, False)]
)
def test_errors_while_a_film_is_written(number: int, disk: bool) -> None:
    """One of the disk stays what it is, to be tried again; others name the film."""
    if disk:
        with pytest.raises(OSError, match=r".") as failed, writing(Path("f/film.mp4")):
            av.error.err_check(-number)
        assert type(failed.value) is OSError
        assert failed.value.errno == number
        return
    with (
        pytest.raises(AssemblyError, match=r"^film 'film\.mp4' cannot be written: .*Invalid"),
        writing(Path("f/film.mp4")),
    ):
        av.error.err_check(-number)


def test_frame_that_is_not_as_its_header_says() -> None:
    """PyAV's own error names the film, too."""
    with (
        pytest.raises(AssemblyError, match=r"^film 'film\.mp4' cannot be written: other layout$"),
        writing(Path("f/film.mp4")),
    ):
        raise ValueError("other layout")


def taken(paths: list[Path], film: Path, plan: AudioPlan = OWN) -> ChunkCheck:
    """Return the check of a film whose chunks were all taken."""
    check = ChunkCheck(paths, film, FPS, None, plan=lambda *_: plan)
    for _ in paths:
        check.take()
    return check


@pytest.mark.parametrize("encoded", [False, True])
def test_film_is_compared_with_its_chunks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, encoded: bool
) -> None:
    """Labels that it lacks are logged; another layout of channels is refused."""
    recipe = Recipe(".mov", "mpeg4", audio="pcm_s16le")
    told = ("-c", "copy", "-metadata", "title=A", "-metadata:s:a", "language=fra")
    paths = [
        ffmpeg(write_clip(tmp_path / f"plain{n}.mov", n, 1, recipe), tmp_path / f"{n}.mov", *told)
        for n in range(2)
    ]
    film = tmp_path / "film.mov"
    RemuxStitcher().stitch(paths, film, fps=30)
    bare = ffmpeg(film, tmp_path / "bare.mov", "-c", "copy", "-map_metadata", "-1")
    mono = ffmpeg(film, tmp_path / "mono.mov", "-c:v", "copy", "-ac", "1")
    caplog.set_level(logging.WARNING)
    check = taken(paths, film)
    assert (check.missing, check.begin_comparing()) == (0, None)
    check.check_film(film, encoded=encoded)
    assert caplog.messages == []
    taken(paths, film).check_film(bare, encoded=encoded)
    with pytest.raises(AssemblyError, match="has audio in the channels mono, not stereo, which"):
        taken(paths, film).check_film(mono, encoded=encoded)
    for plan in (SILENT, TRACK):
        taken(paths, film, plan).check_film(bare, encoded=encoded)
    taken(paths, film, replace(SILENT, source=OWN.source)).check_film(mono, encoded=encoded)
    words = "the film lacks what chunks have: title 'A'"
    assert caplog.messages == [f"{words}, audio language 'fra'", words, words]
    ChunkCheck(paths, film, FPS, None).check_film(mono, encoded=encoded)  # of no chunk
    wrong = write_clip(tmp_path / "wrong.mov", 7, 2, recipe)
    if not encoded:
        with pytest.raises(AssemblyError, match=r"shows another picture than '0\.mov' at frame 0"):
            taken(paths, film).check_film(wrong)


def test_beginnings_are_decoded_once(tmp_path: Path) -> None:
    """As soon as enough chunks are there to be compared."""
    recipe = Recipe(".mov", "mpeg4")
    paths = [write_clip(tmp_path / f"{n}.mov", n, 1, recipe) for n in range(3)]
    check = ChunkCheck(paths, tmp_path / "film.mov", FPS, None)
    check.begin_comparing()
    for begun in (False, True, True):
        check.take()
        check.begin_comparing()
        assert (check._beginnings is not None) is begun
        known = check._beginnings
    check.begin_comparing()
    assert known is check._beginnings
    assert known is not None
    assert [(each.path, each.start) for each in known.result(60)] == [(paths[0], 0), (paths[1], 1)]
