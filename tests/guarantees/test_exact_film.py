"""Films are exact: every codec and container, every rate, all ways to assemble them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import pytest
from media_samples import Recipe, frame_hashes, frame_times, write_chunks, write_clip

from prefect_renderfarm.blocks import AssemblyError, FfmpegStitcher, RemuxStitcher
from prefect_renderfarm.blocks.media.mp4_index import MP4_ENDINGS, read_mp4_index
from prefect_renderfarm.blocks.stitchers.base import StitchReport

NTSC = Fraction(30000, 1001)
RATES = [Fraction(24), Fraction(25), Fraction(30), NTSC, Fraction(24000, 1001), Fraction(60)]
COUNTS = [7, 1, 12, 1, 1, 20, 2]
MPEG = (".mp4", ".mov", ".mkv", ".ts")
OPEN = (".mp4", ".mkv", ".webm")
ENDINGS = (".mp4", ".mov", ".mkv", ".webm", ".ts")

# Recipe, containers of the chunks, containers of the film.
CODECS: dict[str, tuple[Recipe, tuple[str, ...], tuple[str, ...]]] = {
    "h264": (Recipe(), MPEG, MPEG),
    "h264 bf 16": (Recipe(b_frames=16), MPEG, MPEG),
    "hevc": (Recipe(codec="libx265"), MPEG, MPEG),
    "av1": (Recipe(codec="libsvtav1"), OPEN, OPEN),
    "vp9": (Recipe(codec="libvpx-vp9"), OPEN, OPEN),
    "prores": (Recipe(codec="prores_ks", pixel_format="yuv422p10le"), MPEG[1:3], MPEG[1:3]),
    "ffv1": (Recipe(codec="ffv1"), (".mkv",), (".mkv",)),
    "mjpeg": (Recipe(codec="mjpeg", pixel_format="yuvj420p"), MPEG[:3], MPEG[:3]),
}
# Some versions of libav put FFV1 there, others do not.
NOT_EVERYWHERE = [("ffv1", ".mp4"), ("ffv1", ".mov")]
REFUSED = [
    (codec, ending)
    for codec, ending in product(CODECS, ENDINGS)
    if " " not in codec and ending not in CODECS[codec][2] and (codec, ending) not in NOT_EVERYWHERE
]


@dataclass(frozen=True)
class Chunks:
    """Chunk files, with what a film of them must hold."""

    paths: list[Path]
    counts: list[int]
    fps: Fraction
    hashes: list[str]


def matrix() -> list[object]:
    """Return all cases; the short form has each of codec, chunks and film with one rate."""
    triples = [
        (codec, chunk, film)
        for codec, (_, chunks, films) in CODECS.items()
        for chunk, film in product(chunks, films)
    ]
    return [
        pytest.param(
            *triple,
            fps,
            id=f"{'-'.join(triple)}-{fps}",
            marks=() if RATES.index(fps) == number % len(RATES) else pytest.mark.long,
        )
        for number, triple in enumerate(triples)
        for fps in RATES
    ]


def remux(chunks: Chunks, film: Path) -> StitchReport:
    """Assemble by copying packets, all chunks at once."""
    fps = str(chunks.fps)
    return RemuxStitcher().stitch(chunks.paths, film, fps=fps, frame_counts=chunks.counts)


def grow(chunks: Chunks, film: Path) -> StitchReport:
    """Assemble by copying packets, chunk by chunk."""
    stitcher, fps = RemuxStitcher(), str(chunks.fps)
    with stitcher.grow(chunks.paths, film, fps=fps, frame_counts=chunks.counts) as growing:
        for _ in chunks.paths:
            growing.append()
    assert isinstance(growing.report, StitchReport)
    return growing.report


def ffmpeg(chunks: Chunks, film: Path) -> StitchReport:
    """Assemble with the ffmpeg program."""
    fps = str(chunks.fps)
    return FfmpegStitcher().stitch(chunks.paths, film, fps=fps, frame_counts=chunks.counts)


@pytest.fixture(
    params=[remux, pytest.param(grow, marks=pytest.mark.long), ffmpeg],
    ids=["remux", "grow", "ffmpeg"],
)
def assemble(request: pytest.FixtureRequest) -> Callable[[Chunks, Path], StitchReport]:
    """Each way to assemble a film in turn."""
    way: Callable[[Chunks, Path], StitchReport] = request.param
    return way


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, Fraction], Chunks]:
    """Encode the chunks of a codec, container and rate, once for all films of them."""
    known: dict[tuple[str, str, Fraction], Chunks] = {}

    def encode(codec: str, ending: str, fps: Fraction) -> Chunks:
        key = (codec, ending, fps)
        if key not in known:
            recipe = replace(CODECS[codec][0], ending=ending, fps=fps)
            paths = write_chunks(tmp_path_factory.mktemp("chunks"), COUNTS, recipe)
            hashes = [digest for path in paths for digest in frame_hashes(path)]
            assert len(set(hashes)) == sum(COUNTS), "frames must differ, or their order is untold"
            known[key] = Chunks(paths, COUNTS, fps, hashes)
        return known[key]

    return encode


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Chunks]:
    """Make 1,000 chunks of 1 to 12 frames, copies of 36 clips, no two alike in a row."""
    known: dict[str, Chunks] = {}

    def make(ending: str) -> Chunks:
        if ending in known:
            return known[ending]
        folder = tmp_path_factory.mktemp("thousand")
        clips, start = [], 0
        for number in range(36):
            count = number % 12 + 1
            clip = folder / f"clip{number}{ending}"
            write_clip(clip, start, count, Recipe(ending=ending, fps=NTSC))
            clips.append((clip, count, frame_hashes(clip)))
            start += count
        draw, last = random.Random(20_240_229), -1  # noqa: S311 -- the same at every run
        chunks = Chunks([], [], NTSC, [])
        for number in range(1000):
            last = draw.choice([other for other in range(len(clips)) if other != last])
            clip, count, hashes = clips[last]
            path = folder / f"{number:04d}{ending}"
            chunks.paths.append(Path(shutil.copyfile(clip, path)))
            chunks.counts.append(count)
            chunks.hashes.extend(hashes)
        known[ending] = chunks
        return chunks

    return make


def clock_tolerance(ending: str, fps: Fraction) -> Fraction:
    """Return how far a frame may be off the grid, in seconds: half a tick of the film's clock.

    mp4 and mov count in parts of a frame: 0. Matroska counts in ms. MPEG-TS counts in 1/90,000 s
    (ISO/IEC 13818-1, 2.4.3.7): a frame lasts 3003 ticks at 30000/1001, which is exact, but 3753.75
    at 24000/1001, so that three of four frames cannot be where they belong.
    """
    if ending in (".mkv", ".webm"):
        return Fraction(1, 2000)
    if ending == ".ts" and (90_000 / fps).denominator != 1:
        return Fraction(1, 180_000)
    return Fraction(0)


def check_duration(film: Path, due: Fraction) -> None:
    """Hold what a film tells of its length to its frames, to the resolution of the container."""
    if film.suffix in MP4_ENDINGS:
        index = read_mp4_index(film)
        [track] = index.tracks
        assert Fraction(index.duration, index.timescale) == due
        assert Fraction(track.duration, track.timescale) == due
        return
    with av.open(str(film)) as container:
        assert container.duration is not None
        told = Fraction(container.duration, 1_000_000)
    if film.suffix == ".ts":
        # No length is in the file: libav adds one frame, in whole ticks, to the last one's time.
        assert abs(told - due) <= Fraction(1, 90_000) + Fraction(1, 1_000_000)
    else:
        assert abs(told - due) <= Fraction(1, 2000)


def check_film(report: StitchReport, film: Path, chunks: Chunks) -> None:
    """Hold a film to its chunks, and the report to what the film was measured to be."""
    fps, frames = chunks.fps, len(chunks.hashes)
    assert frame_hashes(film) == chunks.hashes
    times = frame_times(film)
    assert len(times) == frames
    assert film.suffix == ".ts" or times[0] == 0
    error = max(abs(time - times[0] - place / fps) for place, time in enumerate(times))
    assert error <= clock_tolerance(film.suffix, fps)
    check_duration(film, frames / fps)
    with av.open(str(film)) as container:
        assert container.streams.video[0].average_rate == Fraction(report.fps) == fps
    assert (report.frames, report.chunks) == (frames, len(chunks.paths))
    assert (report.output, report.size) == (film, film.stat().st_size)
    assert report.clock_error == float(error)
    assert report.duration == float(frames / fps)


@pytest.mark.parametrize(("codec", "chunk_ending", "ending", "fps"), matrix())
def test_exact_film(
    assemble: Callable[[Chunks, Path], StitchReport],
    encoded: Callable[[str, str, Fraction], Chunks],
    codec: str,
    chunk_ending: str,
    ending: str,
    fps: Fraction,
    tmp_path: Path,
) -> None:
    """Every frame is the chunks' own, in order, on its time; length and report are right."""
    chunks = encoded(codec, chunk_ending, fps)
    film = tmp_path / f"film{ending}"
    check_film(assemble(chunks, film), film, chunks)


@pytest.mark.parametrize("ending", [".mp4", pytest.param(".mkv", marks=pytest.mark.long)])
@pytest.mark.parametrize("chunk_ending", [".mp4", pytest.param(".mkv", marks=pytest.mark.long)])
def test_thousand_random_chunks(
    assemble: Callable[[Chunks, Path], StitchReport],
    thousand: Callable[[str], Chunks],
    chunk_ending: str,
    ending: str,
    tmp_path: Path,
) -> None:
    """Errors do not add up: 1,000 chunks of 1 to 12 frames are as exact as seven."""
    chunks = thousand(chunk_ending)
    film = tmp_path / f"film{ending}"
    check_film(assemble(chunks, film), film, chunks)


@pytest.mark.parametrize(("codec", "ending"), REFUSED)
def test_codec_that_the_container_cannot_hold(
    assemble: Callable[[Chunks, Path], StitchReport],
    encoded: Callable[[str, str, Fraction], Chunks],
    codec: str,
    ending: str,
    tmp_path: Path,
) -> None:
    """A film whose container has no place for the codec is refused in words, and not written."""
    words = rf"a \{ending} film cannot hold {codec} video: let the film's name end in \.mkv"
    if assemble is ffmpeg:
        words += rf"|{codec}.* (only|currently) supported|Only VP8 or VP9 or AV1"
    with pytest.raises(AssemblyError, match=words):
        assemble(encoded(codec, ".mkv", RATES[0]), tmp_path / f"film{ending}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("codec", "ending"), NOT_EVERYWHERE)
def test_codec_that_only_some_libav_puts_there(
    assemble: Callable[[Chunks, Path], StitchReport],
    encoded: Callable[[str, str, Fraction], Chunks],
    codec: str,
    ending: str,
    tmp_path: Path,
) -> None:
    """Where it depends on the version of libav, the film is exact, or refused in words."""
    chunks = encoded(codec, ".mkv", NTSC)
    film = tmp_path / f"film{ending}"
    try:
        report = assemble(chunks, film)
    except AssemblyError as error:
        words = (f"cannot hold {codec}", "currently supported", "written by FFmpeg's program")
        assert any(each in str(error) for each in words)  # noqa: PT017
        assert list(tmp_path.iterdir()) == []
    else:
        check_film(report, film, chunks)
