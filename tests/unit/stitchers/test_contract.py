"""One contract for all stitchers, on real media."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

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
from prefect_renderfarm.blocks.stitchers import audio, remux

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


def test_film_has_the_usual_permissions(
    make: Callable[..., VideoStitcher], plain: list[Path], tmp_path: Path
) -> None:
    """A film is readable for whom the process' umask lets read it."""
    film = tmp_path / "film.mp4"
    for mask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(mask)
        try:
            make().stitch(plain, film, fps=30)
        finally:
            os.umask(before)
        assert stat.S_IMODE(film.stat().st_mode) == mode


def test_film_and_its_name_are_flushed(
    make: Callable[..., VideoStitcher],
    plain: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The film is flushed before it takes its name, its folder after that."""
    film = tmp_path / "film.mp4"
    done: list[tuple[str, int]] = []
    fsync, rename = os.fsync, os.replace

    def spy_fsync(descriptor: int) -> None:
        done.append(("flush", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def spy_rename(source: Path, target: Path, **options: int) -> None:
        if Path(target) == film:
            done.append(("rename", Path(source).stat().st_ino))
        rename(source, target, **options)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_rename)
    monkeypatch.setattr(os, "rename", spy_rename)
    make().stitch(plain, film, fps=30)
    made, folder = film.stat().st_ino, tmp_path.stat().st_ino
    assert done[-3:] == [("flush", made), ("rename", made), ("flush", folder)]


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


def stitch(stitcher: VideoStitcher, chunks: list[Path], film: Path) -> None:
    """Make a film of all chunks at once."""
    stitcher.stitch(chunks, film, fps=30)


def grow(stitcher: VideoStitcher, chunks: list[Path], film: Path) -> None:
    """Make a film chunk by chunk."""
    context = stitcher.grow(chunks, film, fps=30, frame_counts=[6] * len(chunks))
    assert context is not None
    with context as growing:
        for _ in chunks:
            growing.append()


WAYS = pytest.mark.parametrize("way", [stitch, grow])


@WAYS
@pytest.mark.parametrize("frames", [11, 13])
def test_film_with_other_frames_is_not_published(
    way: Callable[..., None], frames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame that is lost or doubled while the film is written is noticed in the film."""
    write = remux.FilmMuxer._mux

    def mux(self: Any, packet: Any, frame: int, number: int) -> None:
        last = self.frames == 6 and number == 5
        if not last or frames > 12:
            write(self, packet, frame, number)
        if last and frames > 12:
            write(self, av.Packet(bytes(packet)), 6, 6)

    monkeypatch.setattr(remux.FilmMuxer, "_mux", mux)
    chunks = write_chunks(tmp_path / "chunks", [6, 6], Recipe(b_frames=0))
    with pytest.raises(AssemblyError, match=f"has {frames} frames, its chunks have 12"):
        way(RemuxStitcher(), chunks, tmp_path / "film.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["chunks"]


@WAYS
def test_film_with_lost_audio_is_not_published(
    way: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Audio that is lost while the film is written is noticed in the film."""
    chunks = write_chunks(tmp_path / "chunks", [6, 6], Recipe(".mov", audio="pcm_s16le"))
    monkeypatch.setattr(audio.EncodedAudio, "_write", lambda _: None)
    with pytest.raises(AssemblyError, match="has no audio track"):
        way(RemuxStitcher(), chunks, tmp_path / "film.mov")
    assert [path.name for path in tmp_path.iterdir()] == ["chunks"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frames:v": "11"}, "has 11 frames, its chunks have 12"),
        ({"af": "atrim=end_sample=4800"}, r"has \d+ audio samples for 19200 samples of video"),
        ({"time_base:v": "1/90", "bsf:v": "setts=pts=N:dts=N"}, "off the grid of 30"),
    ],
)
def test_film_that_ffmpeg_made_otherwise_is_not_published(
    options: dict[str, str], words: str, tmp_path: Path
) -> None:
    """Options that take something of the film away are noticed in the film."""
    recipe = Recipe(".mov", audio="pcm_s16le", b_frames=0)
    chunks = write_chunks(tmp_path / "chunks", [6, 6], recipe)
    stitcher = FfmpegStitcher(output_options=options)
    with pytest.raises(AssemblyError, match=words):
        stitcher.stitch(chunks, tmp_path / "film.mp4", fps=30)
    assert [path.name for path in tmp_path.iterdir()] == ["chunks"]


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
