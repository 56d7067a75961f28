"""One contract for all stitchers, on real media."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_samples import (
    RATE,
    Recipe,
    frame_hashes,
    samples_of,
    sweep,
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
    """Chunks that fit, without sound."""
    return write_chunks(tmp_path_factory.mktemp("plain"), [6, 6, 6], Recipe())


@pytest.mark.parametrize("fps", [Fraction(30), NTSC])
@pytest.mark.parametrize("ending", [".mov", ".mkv"])
def test_pcm_is_kept_sample_for_sample(
    make: Callable[..., VideoStitcher], fps: Fraction, ending: str, tmp_path: Path
) -> None:
    """PCM chunks join without a gap or a click, as long as the frames."""
    chunks = write_chunks(tmp_path, COUNTS, Recipe(ending=ending, fps=fps, audio="pcm_s16le"))
    film = tmp_path / f"film{ending}"
    report = make().stitch(chunks, film, fps=str(fps), frame_counts=COUNTS)
    due = round(FRAMES * RATE / fps)
    samples = samples_of(film)
    assert report.audio_samples == samples.shape[1] == due
    assert np.array_equal(samples, sweep(0, due))


@pytest.mark.parametrize("codec", [None, "flac"])
def test_pcm_is_encoded_once_for_mp4(
    make: Callable[..., VideoStitcher], codec: str | None, tmp_path: Path
) -> None:
    """In mp4 PCM becomes one stream without seams: FLAC is exact, AAC has only its own noise."""
    chunks = write_chunks(tmp_path, COUNTS, Recipe(ending=".mkv", audio="pcm_s16le"))
    film = tmp_path / "film.mp4"
    make(audio_codec=codec).stitch(chunks, film, fps=30, frame_counts=COUNTS)
    due = round(FRAMES * RATE / 30)
    found = samples_of(film)[:, :due].astype(float)
    error = np.abs(found - sweep(0, due))
    with av.open(str(film)) as container:
        sound = container.streams.audio[0]
        assert sound.codec_context.name == (codec or "aac")
        assert sound.duration * sound.time_base * RATE == due
    if codec == "flac":
        assert not error.any()
    else:
        # The last packet is left out: AAC smears the end of the sound over it.
        assert np.sqrt((error[:, :-2048] ** 2).mean()) / 32767 < 0.01


def test_seam_has_no_click(make: Callable[..., VideoStitcher], tmp_path: Path) -> None:
    """At the seams of an encoded film the error is no larger than elsewhere."""
    counts = [47] * 5
    chunks = write_chunks(tmp_path, counts, Recipe(ending=".mkv", audio="pcm_s16le"))
    film = tmp_path / "film.mp4"
    make().stitch(chunks, film, fps=30, frame_counts=counts)
    due = round(sum(counts) * RATE / 30)
    error = np.abs(samples_of(film)[:, :due].astype(float) - sweep(0, due)).max(axis=0)
    seams = [round(47 * number * RATE / 30) for number in range(1, 5)]
    near = np.zeros(due, dtype=bool)
    for seam in seams:
        near[seam - 1024 : seam + 1024] = True
    inner = error[4096:-4096], near[4096:-4096]
    assert inner[0][inner[1]].max() <= 2 * inner[0][~inner[1]].max()


def test_aac_chunks_are_refused_with_the_fix(
    make: Callable[..., VideoStitcher], tmp_path: Path
) -> None:
    """Sound that cannot be joined by copy is refused; `none` and `encode` both help."""
    chunks = write_chunks(tmp_path, [24, 24], Recipe(audio="aac", fps=Fraction(24)))
    film = tmp_path / "film.mp4"
    with pytest.raises(StitchInputError, match=r"aac.*'encode' or 'none'"):
        make().stitch(chunks, film, fps=24)
    assert not film.exists()
    assert make(audio="none").stitch(chunks, film, fps=24).audio_samples is None
    assert make(audio="encode").stitch(chunks, film, fps=24).audio_samples is not None


def test_sound_that_is_too_short_is_refused(
    make: Callable[..., VideoStitcher], tmp_path: Path
) -> None:
    """A chunk whose sound ends before its frames do is named."""
    recipe = Recipe(ending=".mkv", audio="pcm_s16le")
    chunks = write_chunks(tmp_path, [30, 30], recipe)
    short = tmp_path / "short.mkv"
    with av.open(str(chunks[1])) as source, av.open(str(short), "w") as target:
        streams = {stream: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            late = packet.stream.type == "audio" and (packet.pts or 0) * packet.time_base > 0.5
            if packet.size and not late:
                packet.stream = streams[packet.stream]
                target.mux(packet)
    with pytest.raises(StitchInputError, match=r"short\.mkv.*audio samples"):
        make().stitch([chunks[0], short], tmp_path / "film.mkv", fps=30)


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


def test_ffmpeg_stitcher_encodes_anew(plain: list[Path], tmp_path: Path) -> None:
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
