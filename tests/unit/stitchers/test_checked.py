"""What both stitchers check: the film's name, the chunks, the track; and their muxer's options."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
from audio_samples import Take, write_track
from media_samples import Recipe, write_clip
from pydantic import PrivateAttr

from prefect_renderfarm.blocks import RemuxStitcher, StitchInputError
from prefect_renderfarm.blocks.media.model import Media, Verify
from prefect_renderfarm.blocks.stitchers.audio import AudioMode
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.stitchers.checked import ChunkCheck, muxer_options
from prefect_renderfarm.blocks.stitchers.film_check import FilmFigures

FPS = Fraction(30)


class Planner(RemuxStitcher):
    """Stops before it assembles, and keeps what it was given."""

    _block_type_slug = "planner"
    _seen: list[tuple[Sequence[Media], ChunkCheck]] = PrivateAttr(default_factory=list)

    def _assemble(self, chunks: Sequence[Media], film: Path, check: ChunkCheck) -> FilmFigures:
        self._seen.append((chunks, check))
        film.touch()
        return FilmFigures(sum(chunk.frames for chunk in chunks), chunks[0].fps, Fraction(0))


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write two chunks of six frames at 30 a second."""
    folder = tmp_path_factory.mktemp("chunks")
    return [write_clip(folder / f"{n}.mov", 6 * n, 6, Recipe(".mov")) for n in range(2)]


@pytest.fixture(scope="module")
def wave(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 0.4 s of audio."""
    return write_track(tmp_path_factory.mktemp("wave") / "wave.wav", 19_200, Take())


@pytest.mark.parametrize(
    ("stitcher", "film", "words"),
    [
        (RemuxStitcher(), ".", r"^film '.*' is a folder: name a file$"),
        (RemuxStitcher(), "film.avi", r"ending must be one of \.mp4, \.m4v, \.mov, \.mkv, \.webm,"),
        (RemuxStitcher(), "film", "the ending must be one of"),
        (RemuxStitcher(audio="track"), "film.mp4", "'audio' is 'track', but there is none"),
        (RemuxStitcher(audio_codec="h264"), "film.mp4", "'h264' is not an audio encoder"),
    ],
)
def test_film_that_cannot_be_made(
    tmp_path: Path, stitcher: RemuxStitcher, film: str, words: str
) -> None:
    """Name, track and codec are checked without any chunk."""
    with pytest.raises(StitchInputError, match=words):
        stitcher.check_output(tmp_path / film)


def test_film_that_can_be_made(tmp_path: Path, wave: Path) -> None:
    """Endings may be capitals; a track that is named, and an encoder, are accepted."""
    for ending in (".mp4", ".M4V", ".mov", ".mkv", ".webm", ".TS"):
        RemuxStitcher(audio="track", audio_track=wave).check_output(tmp_path / f"film{ending}")
    RemuxStitcher(audio_codec="flac").check_output(tmp_path / "film.mp4")


@pytest.mark.parametrize(
    ("verify", "at_worker"),
    [("header", Verify.PACKETS), ("packets", Verify.PACKETS), ("decode", Verify.DECODE)],
)
def test_rules_for_workers(verify: str, at_worker: Verify) -> None:
    """A worker counts packets at least, and all chunks are alike."""
    assert RemuxStitcher(verify=verify).chunk_rules() == ChunkRules(at_worker, uniform=True)


def test_track_as_long_as_the_film(wave: Path) -> None:
    """A track may be one frame short, and is not looked at where the film has another audio."""
    stitcher = RemuxStitcher(audio_track=wave)
    stitcher.check_track(12, FPS)
    stitcher.check_track(13, FPS)
    with pytest.raises(StitchInputError, match=r"wave\.wav' is at least 0\.067 s shorter"):
        stitcher.check_track(14, FPS)
    RemuxStitcher(audio_track=wave, audio="none").check_track(14, FPS)
    RemuxStitcher().check_track(14, FPS)


def test_own_track_goes_before_the_jobs(wave: Path) -> None:
    """A job's track is taken by a stitcher without one of its own."""
    job = Path("job.wav")
    assert RemuxStitcher(faststart=True).with_track(job).model_dump() == (
        RemuxStitcher(faststart=True, audio_track=job).model_dump()
    )
    own = RemuxStitcher(audio_track=wave)
    assert own.with_track(job) is own


def test_plan_is_checked_against_the_chunks(chunks: list[Path], wave: Path, tmp_path: Path) -> None:
    """The planned rate, counts and track reach the assembly; what does not fit them is refused."""
    stitcher, film = Planner(audio_track=wave, audio_codec="flac", audio_bitrate=1), "film.mp4"
    report = stitcher.stitch(chunks, tmp_path / film, fps=30, frame_counts=[6, 6])
    assert (report.frames, report.fps, report.chunks) == (12, "30", 2)
    [(given, check)] = stitcher._seen
    assert [chunk.path for chunk in given] == chunks
    plan = check.audio
    assert (plan.mode, plan.track, plan.codec, plan.bitrate) == (AudioMode.ENCODE, wave, "flac", 1)
    assert (check.total_frames, check.missing) == (12, 0)
    for options, words in (
        ({"fps": 25}, "off the grid of 25"),
        ({"frame_counts": [6, 7]}, "has 6 frames, not the planned 7"),
        ({"frame_counts": [6]}, "2 chunk files, but 1 frame counts"),
    ):
        with pytest.raises(StitchInputError, match=words):
            Planner().stitch(chunks, tmp_path / film, **options)  # type: ignore[arg-type]
    short = Planner(audio_track=write_track(tmp_path / "short.wav", 9_600, Take()))
    for counts in (None, [6, 6]):
        with pytest.raises(StitchInputError, match=r"at least 0\.200 s shorter"):
            short.stitch(chunks, tmp_path / film, fps=30, frame_counts=counts)


def test_first_chunk_decides(chunks: list[Path], tmp_path: Path) -> None:
    """Video or audio that the film cannot have is refused before another chunk is read."""
    missing = tmp_path / "missing.mov"
    for stitcher, film, words in (
        (Planner(), "film.webm", r"a \.webm film cannot hold .* video"),
        (Planner(audio_track=missing), "film.mov", r"audio track .*missing\.mov' does not exist"),
        (Planner(), "film.mov", r"chunk file .*missing\.mov' \(number 2 of 2\) does not exist"),
    ):
        with pytest.raises(StitchInputError, match=words):
            stitcher.stitch([chunks[0], missing], tmp_path / film)


@pytest.mark.parametrize(
    ("ending", "codec"),
    [(".ts", "vp9"), (".TS", "av1"), (".ts", "prores"), (".mov", "vp8"), (".MOV", "vp9"),
     (".mov", "av1")],
)  # fmt: skip
def test_film_that_nothing_plays(ending: str, codec: str) -> None:
    """Video without a stream type in ts, or of a codec that QuickTime has not, is refused."""
    words = rf"^a {ending} film cannot hold {codec} video: let the film's name end in \.mkv"
    with pytest.raises(StitchInputError, match=words):
        RemuxStitcher().check_first_chunk(Path(f"film{ending}"), coded(codec).signature)
    RemuxStitcher().check_first_chunk(Path(f"film{ending}"), coded("h264").signature)
    RemuxStitcher().check_first_chunk(Path("film.mkv"), coded(codec).signature)


def test_gif_in_matroska() -> None:
    """It is refused without the advice to do what was done."""
    with pytest.raises(StitchInputError, match=r"^a \.mkv film cannot hold gif video: have it enc"):
        RemuxStitcher().check_first_chunk(Path("film.mkv"), coded("gif").signature)
    RemuxStitcher().check_first_chunk(Path("film.mov"), coded("gif").signature)


@pytest.mark.parametrize(
    ("name", "takes", "refused"),
    [
        ("a.webm", ("vp8", "vp9", "av1"), ("h264", "hevc", "prores", "ffv1")),
        ("a.mp4", ("h264", "hevc", "av1", "vp9", "mpeg4", "ffv1"), ("prores", "vp8", "utvideo")),
        ("a.M4V", ("h264", "hevc"), ("dnxhd", "theora")),
    ],
)
def test_closed_containers(name: str, takes: Sequence[str], refused: Sequence[str]) -> None:
    """Those that libav lists all codecs for refuse others by name, before a film is begun."""
    for codec in takes:
        RemuxStitcher().check_first_chunk(Path(name), coded(codec).signature)
    for codec in refused:
        with pytest.raises(StitchInputError, match=f"film cannot hold {codec} video"):
            RemuxStitcher().check_first_chunk(Path(name), coded(codec).signature)


def coded(codec: str, **more: str) -> Media:
    """Return a chunk of a codec."""
    return Media(Path("0.mkv"), 1, 0, Fraction(25), 0, {"codec": codec, **more})


def test_what_a_container_has_no_place_for() -> None:
    """Transparency of VP9 and the record of Dolby Vision are refused before a film is written."""
    clear = coded("vp9", alpha="yes")
    for film in ("a.mp4", "a.M4V"):
        with pytest.raises(StitchInputError, match="hold the transparency of vp9"):
            RemuxStitcher().check_first_chunk(Path(film), clear.signature)
    for film in ("a.webm", "a.MKV"):
        RemuxStitcher().check_first_chunk(Path(film), clear.signature)
    dolby = coded("hevc", **{"Dolby Vision record": "1f"})
    for film in ("a.mov", "a.ts"):
        with pytest.raises(StitchInputError, match="hold the record of Dolby Vision"):
            RemuxStitcher().check_first_chunk(Path(film), dolby.signature)
    for film in ("a.mp4", "a.mkv"):
        RemuxStitcher().check_first_chunk(Path(film), dolby.signature)
    none = coded("hevc", **{"Dolby Vision record": "none"})
    RemuxStitcher().check_first_chunk(Path("a.mov"), none.signature)


def test_options_of_the_muxer() -> None:
    """The clock divides the frames in mp4 and mov, and room is left for an index that goes first.

    44 bytes a frame and 100 audio packets a second: 300 frames at 30000/1001 last 10.01 s.
    """
    ntsc = Media(Path("0.mp4"), 300, 0, Fraction(30_000, 1001), 0, {})
    films = [f"film{e}" for e in (".mp4", ".M4V", ".mov")]
    for film in films:
        assert muxer_options(Path(film), ntsc, False, 300) == {"movie_timescale": "30000"}
        room = str(65_536 + 44 * (300 + 1001))
        options = {"movie_timescale": "30000", "moov_size": room}
        assert muxer_options(Path(film), ntsc, True, 300) == options
    for film in ("film.mkv", "film.WEBM"):
        options = {"avoid_negative_ts": "disabled"}
        assert muxer_options(Path(film), ntsc, True, 300) == options
    assert muxer_options(Path("film.ts"), ntsc, True, 300) == {}
