"""The check of chunk files before assembly, file by file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from audio_samples import NTSC, Take, due, with_audio_at, write_take
from media_samples import Recipe, write_clip

from prefect_renderfarm.blocks import FfmpegStitcher, RemuxStitcher, StitchInputError
from prefect_renderfarm.blocks.errors import MediaFault
from prefect_renderfarm.blocks.media.model import Audio, Media, Verify
from prefect_renderfarm.blocks.stitchers import checked
from prefect_renderfarm.blocks.stitchers.audio import AudioMode, AudioPlan
from prefect_renderfarm.blocks.stitchers.checked import ChunkCheck

RATE = 48_000
PATHS = [Path(f"/chunks/{name}.mp4") for name in "abc"]
FILM = Path("/films/film.mp4")
PCM = Audio("pcm_s16le", RATE, "stereo", 6 * RATE // 30)
SHORT = replace(PCM, samples=PCM.samples - 2)
COPY = AudioPlan(AudioMode.COPY, PCM)

Chunks = dict[str, Media | MediaFault]


def media(name: str, frames: int = 6, **fields: Any) -> Media:
    """Return a chunk that need not exist."""
    return replace(
        Media(PATHS[0].with_stem(name), frames, 0, Fraction(30), 2, {"codec": "h264"}), **fields
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> tuple[Chunks, list[Any]]:
    """Let files hold what a test puts into the first, and take down how they are read."""
    chunks: Chunks = {name: media(name) for name in "abc"}
    read: list[Any] = []

    def read_media(path: Path, fps: Fraction | None, **options: Any) -> Media:
        read.append((path.stem, fps, options))
        found = chunks[path.stem]
        if isinstance(found, MediaFault):
            raise found
        return found

    monkeypatch.setattr(checked, "read_media", read_media)
    return chunks, read


def test_files_are_read_in_order(calls: tuple[Chunks, list[Any]]) -> None:
    """Each file is read against the plan, and from the second on against the first."""
    chunks, read = calls
    check = ChunkCheck(PATHS, FILM, "30000/1001", [6, 6, 6], Verify.DECODE)
    assert (check.total_frames, check.missing) == (18, 3)
    assert [check.take() for _ in PATHS] == list(chunks.values())
    assert check.missing == 0
    first = {"first": None, "verify": Verify.DECODE, "planned": 6}
    later = first | {"first": chunks["a"]}
    fps = Fraction(30_000, 1001)
    # The rate of a chunk is the planned one: the test's files only say otherwise.
    assert read == [("a", fps, first), ("b", Fraction(30), later), ("c", Fraction(30), later)]


def test_without_a_plan(calls: tuple[Chunks, list[Any]]) -> None:
    """Without a rate the first chunk's is asked of all others; without counts any is right."""
    chunks, read = calls
    chunks["b"] = media("b", 7)
    check = ChunkCheck(PATHS, FILM, None, None)
    assert check.total_frames == 0
    for _ in PATHS:
        check.take()
    assert [(name, fps) for name, fps, _ in read] == [("a", None), ("b", 30), ("c", 30)]
    assert [options["planned"] for _, _, options in read] == [None] * 3
    assert read[0][2]["verify"] is Verify.PACKETS


@pytest.mark.parametrize("frames", [5, 7])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_number_of_frames(calls: tuple[Chunks, list[Any]], number: int, frames: int) -> None:
    """A chunk one frame short or long is named, wherever it is."""
    calls[0]["abc"[number]] = media("x", frames)
    check = ChunkCheck(PATHS, FILM, 30, [6, 6, 6])
    for _ in range(number):
        check.take()
    with pytest.raises(StitchInputError) as caught:
        check.take()
    assert str(caught.value) == (
        f"chunk file '{PATHS[number]}' (number {number + 1} of 3, 6 frames planned) has {frames} "
        "frames, not the planned 6"
    )
    assert check.missing == 3 - number


def test_faults_and_differences(calls: tuple[Chunks, list[Any]]) -> None:
    """What is wrong with a file, and in what it differs from the first, is told with its name."""
    chunks, _ = calls
    chunks["b"] = MediaFault("is empty")
    check = ChunkCheck(PATHS, FILM, 30, None)
    check.take()
    with pytest.raises(StitchInputError, match=r"b\.mp4' \(number 2 of 3\) is empty"):
        check.take()
    chunks["b"] = media("b", signature={"codec": "hevc"})
    words = r"b\.mp4' .* differs from the first chunk file: codec hevc, not h264; render all with"
    with pytest.raises(StitchInputError, match=words):
        check.take()
    chunks["b"] = media("b")
    assert [check.take(), check.take()] == [chunks["b"], chunks["c"]]


def test_audio_of_the_first_chunk(calls: tuple[Chunks, list[Any]]) -> None:
    """The plan is made by the first chunk, which is held to it nevertheless."""
    calls[0]["a"] = media("a", audio=SHORT)
    planned: list[tuple[Media, Path]] = []

    def plan(first: Media, film: Path) -> AudioPlan:
        planned.append((first, film))
        return COPY

    check = ChunkCheck(PATHS, FILM, 30, None, plan=plan)
    with pytest.raises(StitchInputError) as caught:
        check.take()
    assert planned == [(calls[0]["a"], FILM)]
    for words in (
        "a.mp4' (number 1 of 3) has 9598 audio samples, but its 6 frames last 9600",
        "or set the stitcher's 'audio' to 'none'",
    ):
        assert words in str(caught.value)


def test_audio_of_a_later_chunk(calls: tuple[Chunks, list[Any]]) -> None:
    """Audio counts where the film's audio comes from the chunks, and only there."""
    chunks, _ = calls
    chunks["a"], chunks["b"], chunks["c"] = (media("x", audio=each) for each in (PCM, SHORT, None))
    for plan, refused in (
        (COPY, True),
        (AudioPlan(AudioMode.ENCODE, PCM), True),
        (AudioPlan(AudioMode.NONE), False),
        (AudioPlan(AudioMode.COPY, PCM, Path("track.wav")), False),
    ):
        check = ChunkCheck(PATHS, FILM, 30, None, plan=lambda *_, plan=plan: plan)
        check.take()
        if refused:
            with pytest.raises(StitchInputError, match=r"b\.mp4.* 9598 audio samples"):
                check.take()
        else:
            check.take()
            check.take()


@pytest.mark.parametrize(
    ("named", "film", "codec"),
    [(None, "f.mp4", "aac"), (None, "f.WebM", "libopus"), ("flac", "f.webm", "flac")],
)
def test_name_of_the_audio_codec(
    calls: tuple[Chunks, list[Any]], named: str | None, film: str, codec: str
) -> None:
    """AAC is the codec where none is named, but in WebM."""
    calls[0]["a"] = media("a", audio=PCM, signature={"codec": "vp9"})
    stitcher = RemuxStitcher(audio=AudioMode.ENCODE, audio_codec=named, audio_bitrate=64_000)
    check = ChunkCheck(PATHS, Path(film), 30, None, plan=stitcher._plan)
    check.take()
    assert check.audio == AudioPlan(AudioMode.ENCODE, PCM, None, codec, 64_000)


@pytest.mark.parametrize(
    ("inputs", "film", "fps", "counts", "words"),
    [
        ([], FILM, 30, None, "film '/films/film.mp4': there are no chunk files to assemble"),
        (PATHS, FILM, 30, [6, 6], "film '/films/film.mp4': 3 chunk files, but 2 frame counts"),
        (PATHS, FILM, 0, None, "film '/films/film.mp4': fps 0 is not above 0"),
        (PATHS, PATHS[1], 30, None, "film '/chunks/b.mp4' is also chunk file '/chunks/b.mp4'"),
        ([*PATHS, PATHS[1]], FILM, 30, None, "'/chunks/b.mp4' is named 2 times, not once"),
    ],
)
def test_calls_that_make_no_film(
    inputs: list[Path], film: Path, fps: Any, counts: list[int] | None, words: str
) -> None:
    """A call from which no film can come is refused before a file is read."""
    with pytest.raises(StitchInputError) as caught:
        ChunkCheck(inputs, film, fps, counts)
    assert words in str(caught.value)


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are named absolutely; a film that is a link to a chunk is that chunk."""
    monkeypatch.chdir(tmp_path)
    assert ChunkCheck([Path("a.mp4")], FILM, 30, None).paths == [tmp_path / "a.mp4"]
    (tmp_path / "link.mp4").symlink_to("a.mp4")
    with pytest.raises(StitchInputError, match=r"link\.mp4' is also chunk file .*a\.mp4'"):
        ChunkCheck([Path("b.mp4"), Path("a.mp4")], tmp_path / "link.mp4", 30, None)


MAKERS = pytest.mark.parametrize("make", [RemuxStitcher, FfmpegStitcher])
Make = Callable[..., Any]


@MAKERS
def test_differing_rates_without_a_plan(make: Make, tmp_path: Path) -> None:
    """Without a given rate all chunks need that of the first."""
    chunks = [
        write_clip(tmp_path / f"{rate}.mkv", 0, 6, Recipe(".mkv", "mpeg4", Fraction(rate)))
        for rate in (30, 25)
    ]
    with pytest.raises(StitchInputError, match=r"25\.mkv.* off the grid of 30 frames a second"):
        make().stitch(chunks, tmp_path / "film.mkv")


@MAKERS
@pytest.mark.parametrize("missing", [3, -8192])
def test_bad_audio_in_the_first_chunk(make: Make, tmp_path: Path, missing: int) -> None:
    """The first chunk is named as any other."""
    bad = write_take(tmp_path / "0.mkv", 0, 12, Take(missing=missing))
    good = write_take(tmp_path / "1.mkv", 12, 12, Take())
    with pytest.raises(StitchInputError, match=r"0\.mkv' \(number 1 of 2\).* audio samples"):
        make().stitch([bad, good], tmp_path / "film.mkv", fps="30000/1001")
    assert not (tmp_path / "film.mkv").exists()


def grow(chunk: Path, film: Path) -> None:
    """Make a film of 12 frames of a chunk, by appending it."""
    stitcher = RemuxStitcher()
    with stitcher.grow([chunk], film, fps="30000/1001", frame_counts=[12]) as growing:
        growing.append()


def test_bad_audio_in_the_first_chunk_of_a_growing_film(tmp_path: Path) -> None:
    """A film that grows is refused at its first chunk."""
    chunk = write_take(tmp_path / "0.mkv", 0, 12, Take(missing=3))
    with pytest.raises(StitchInputError, match=r"0\.mkv' \(number 1 of 1.* audio samples"):
        grow(chunk, tmp_path / "film.mkv")
    assert [path.name for path in tmp_path.iterdir()] == ["0.mkv"]


@MAKERS
@pytest.mark.parametrize("start", [-100, 100])
def test_pcm_that_begins_early_or_late(make: Make, tmp_path: Path, start: int) -> None:
    """PCM begins with the first frame: what comes before it would move all that follows."""
    good = write_take(tmp_path / "0.mkv", 0, 12, Take())
    bad = with_audio_at(good, tmp_path / "1.mkv", Fraction(start, 1000))
    words = rf"1\.mkv.* audio that begins [+]?{start}\.0 ms from its first frame"
    with pytest.raises(StitchInputError, match=words):
        make().stitch([good, bad], tmp_path / "film.mkv", fps="30000/1001")


@MAKERS
@pytest.mark.parametrize(("start", "extra"), [(-200, 12_000), (-10, 480), (30, 0)])
def test_copied_audio_with_an_offset(make: Make, tmp_path: Path, start: int, extra: int) -> None:
    """Copied packets need not begin with the first frame; early ones are left out."""
    chunks = []
    for number in range(2):
        take = write_take(tmp_path / "take.mkv", 24 * number, 24, Take("aac", missing=-extra))
        chunk = tmp_path / f"{number}.mkv"
        chunks.append(with_audio_at(take, chunk, Fraction(start, 1000)))
    report = make(audio="copy").stitch(chunks, tmp_path / "film.mkv", fps="30000/1001")
    assert abs(report.audio_samples - due(NTSC, 48)) <= 1024
