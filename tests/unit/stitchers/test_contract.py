"""One contract for all stitchers, on real media."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import pytest
from media_samples import (
    Recipe,
    frame_hashes,
    write_chunks,
)

from prefect_renderfarm.blocks import (
    AssemblyError,
    FfmpegStitcher,
    RemuxStitcher,
    StitchInputError,
    VideoStitcher,
)

STITCHERS: dict[str, Callable[..., VideoStitcher]] = {
    "remux": RemuxStitcher,
    "ffmpeg": FfmpegStitcher,
}
COUNTS = [7, 1, 12, 1, 1, 20, 2]
FRAMES = sum(COUNTS)
NTSC = Fraction(30000, 1001)


@pytest.fixture(params=STITCHERS)
def make(request: pytest.FixtureRequest) -> Callable[..., VideoStitcher]:
    """Each stitcher class in turn."""
    return STITCHERS[request.param]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Chunks that fit, without audio."""
    return write_chunks(tmp_path_factory.mktemp("plain"), [6, 6, 6], Recipe())


def test_plan_is_optional(
    make: Callable[..., VideoStitcher], plain: list[Path], tmp_path: Path
) -> None:
    """Without fps and frame counts the chunks are held to each other."""
    report = make().stitch(plain, tmp_path / "film.mp4")
    assert (report.frames, report.fps) == (18, "30")


def test_one_chunk(make: Callable[..., VideoStitcher], plain: list[Path], tmp_path: Path) -> None:
    """A film of one chunk is a film."""
    assert make().stitch(plain[:1], tmp_path / "film.mp4", fps=30).frames == 6


def test_old_film_is_replaced_whole(
    make: Callable[..., VideoStitcher], plain: list[Path], tmp_path: Path
) -> None:
    """An older film stays through a failure, and goes with success; no other file is left."""
    film = tmp_path / "film.mp4"
    film.write_bytes(b"old")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(plain[1].read_bytes()[:800])
    with pytest.raises(StitchInputError):
        make().stitch([plain[0], broken], film, fps=30)
    assert film.read_bytes() == b"old"
    make().stitch(plain, film, fps=30)
    assert len(frame_hashes(film)) == 18
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.mp4", "film.mp4"]


def test_folder_of_the_film_is_made(
    make: Callable[..., VideoStitcher], plain: list[Path], tmp_path: Path
) -> None:
    """The film's folder need not exist."""
    assert make().stitch(plain, tmp_path / "a" / "b" / "film.mp4").output.is_file()


@pytest.mark.parametrize(
    ("inputs", "output", "options", "words"),
    [
        ([], "film.mp4", {}, "no chunk files"),
        (None, "film.gif", {}, "ending must be one of"),
        (None, "film.mp4", {"frame_counts": [6]}, "3 chunk files, but 1 frame counts"),
        (None, "film.mp4", {"fps": "x"}, "fps 'x'"),
    ],
)
def test_bad_calls(
    make: Callable[..., VideoStitcher],
    plain: list[Path],
    tmp_path: Path,
    inputs: list[Path] | None,
    output: str,
    options: dict[str, object],
    words: str,
) -> None:
    """Calls that make no sense are refused in words."""
    with pytest.raises(StitchInputError, match=words):
        make().stitch(
            plain if inputs is None else inputs,
            tmp_path / output,
            **options,  # type: ignore[arg-type]
        )


def test_faststart(make: Callable[..., VideoStitcher], plain: list[Path], tmp_path: Path) -> None:
    """With fast start the index comes before the frames."""
    for wanted in (False, True):
        film = tmp_path / f"{wanted}.mp4"
        make(faststart=wanted).stitch(plain, film, fps=30)
        data = film.read_bytes()
        assert (data.index(b"moov") < data.index(b"mdat")) is wanted


def test_ffmpeg_stitcher_encodes(plain: list[Path], tmp_path: Path) -> None:
    """Another codec can be asked for; frames and clock stay."""
    film = tmp_path / "film.mp4"
    stitcher = FfmpegStitcher(video_codec="mpeg4", output_options={"q:v": "3"})
    assert stitcher.stitch(plain, film, fps=30).frames == 18
    with av.open(str(film)) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"


def test_ffmpeg_stitcher_tells_what_ffmpeg_said(plain: list[Path], tmp_path: Path) -> None:
    """A failure of ffmpeg is an error with its last words."""
    with pytest.raises(AssemblyError, match=r"no-such-codec"):
        FfmpegStitcher(video_codec="no-such-codec").stitch(plain, tmp_path / "film.mp4", fps=30)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("without_ffmpeg")
def test_ffmpeg_stitcher_brings_its_own_ffmpeg(plain: list[Path], tmp_path: Path) -> None:
    """On a machine without ffmpeg the stitcher uses imageio-ffmpeg's."""
    assert FfmpegStitcher().stitch(plain, tmp_path / "film.mp4", fps=30).frames == 18
