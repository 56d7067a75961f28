"""The audio of films: sample-exact or encoded once, in sync, as long as the frames."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from itertools import accumulate
from pathlib import Path

import av
import numpy as np
import pytest
from audio_samples import (
    COUNTS,
    FRAMES,
    NTSC,
    Heard,
    Take,
    best_shift,
    due,
    errors_at_seams,
    hear,
    sweep,
    whole_error,
    write_takes,
    write_track,
)

from prefect_renderfarm.blocks import (
    FfmpegStitcher,
    RemuxStitcher,
    StitchInputError,
    VideoStitcher,
)

STITCHERS: dict[str, Callable[..., VideoStitcher]] = {
    "remux": RemuxStitcher,
    "ffmpeg": FfmpegStitcher,
}
SILENT = Take(None, ".mp4")
AAC = Take("aac", ".mp4")
LONG = pytest.mark.long
PRIMED = [
    AAC,
    pytest.param(Take("aac", ".mkv"), marks=LONG),
    pytest.param(Take("aac", ".ts"), marks=LONG),
    Take("libopus", ".mkv"),
    pytest.param(Take("libopus", ".webm", codec="libvpx-vp9"), marks=LONG),
    pytest.param(Take("libmp3lame", ".mkv"), marks=LONG),
]
ONE_SAMPLE_OF_16_BIT = 1 / 32768

Takes = Callable[[Take], list[Path]]


@pytest.fixture(params=STITCHERS)
def make(request: pytest.FixtureRequest) -> Callable[..., VideoStitcher]:
    """Each stitcher class in turn."""
    return STITCHERS[request.param]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for what several tests use."""
    return tmp_path_factory.mktemp("audio")


@pytest.fixture(scope="module")
def takes(folder: Path) -> Takes:
    """Chunks of the sweep, written once for each way of rendering them."""
    made: dict[Take, list[Path]] = {}

    def get(take: Take) -> list[Path]:
        if take not in made:
            made[take] = write_takes(folder / f"take{len(made)}", take)
        return made[take]

    return get


@pytest.fixture(scope="module")
def track(folder: Path) -> Path:
    """Write the whole sweep as WAV and FLAC, longer than a film of it by 100 samples."""
    write_track(folder / "track.flac", due(NTSC) + 100, Take("flac"))
    return write_track(folder / "track.wav", due(NTSC) + 100, Take())


def stitched(
    stitcher: VideoStitcher, chunks: list[Path], film: Path, fps: Fraction = NTSC
) -> Heard:
    """Stitch and hear; the report and the header say exactly the length that is due, or nearly."""
    report = stitcher.stitch(chunks, film, fps=str(fps), frame_counts=COUNTS)
    heard = hear(film)
    assert report.audio_samples is not None
    packet = 0 if film.suffix in (".mp4", ".mov") or heard.codec.startswith("pcm") else 1024
    assert abs(report.audio_samples - due(fps, rate=heard.rate)) <= packet
    # Matroska has a clock of 1 ms.
    assert heard.jump <= (heard.rate / 1000 if film.suffix in (".mkv", ".webm") else 0)
    return heard


def assert_exact(heard: Heard, fps: Fraction = NTSC) -> None:
    """Check that 16-bit audio is the sweep, sample for sample, and ends with the frames."""
    assert heard.samples.shape == (2, due(fps))
    assert np.abs(heard.samples - sweep(0, due(fps))).max() <= ONE_SAMPLE_OF_16_BIT


def assert_encoded_once(heard: Heard, codec: str, fps: Fraction, folder: Path) -> None:
    """Check that audio is in sync and has no error but that of its codec."""
    wanted = sweep(0, due(fps))
    assert best_shift(heard.samples, wanted) == 0
    assert best_shift(heard.samples, wanted, due(fps) - 60_000) == 0
    near, elsewhere = errors_at_seams(heard.samples, fps)
    reference = whole_error(codec, fps, folder)
    assert near <= 1.2 * elsewhere
    assert max(near, elsewhere) <= 1.5 * reference
    # A packet of AAC may go on behind the last frame.
    assert 0 <= heard.samples.shape[1] - due(fps) <= 1024


@pytest.mark.parametrize(
    ("take", "ending"),
    [
        (Take(fps=Fraction(30)), ".mov"),
        (Take(fps=Fraction(30)), ".mkv"),
        (Take(), ".mov"),
        (Take(ending=".mov"), ".mkv"),
    ],
)
def test_pcm_is_kept_sample_for_sample(
    make: Callable[..., VideoStitcher], takes: Takes, tmp_path: Path, take: Take, ending: str
) -> None:
    """PCM chunks join without a gap or a click, as long as the frames."""
    assert_exact(stitched(make(), takes(take), tmp_path / f"film{ending}", take.fps), take.fps)


@pytest.mark.parametrize("ending", [".mov", ".mkv"])
@pytest.mark.parametrize("codec", ["pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le"])
def test_pcm_is_kept_byte_for_byte(
    make: Callable[..., VideoStitcher], tmp_path: Path, codec: str, ending: str
) -> None:
    """Whatever its numbers and channels, PCM comes out as it went in."""
    take = Take(codec, ending, fps=Fraction(30), layout="5.1")
    chunks = write_takes(tmp_path / "chunks", take, [12, 12])
    film = tmp_path / f"film{ending}"
    make().stitch(chunks, film, fps=30)
    made, given = (
        b"".join(bytes(packet) for path in paths for packet in audio_packets(path))
        for paths in ([film], chunks)
    )
    assert made == given


@pytest.mark.parametrize(
    ("take", "ending", "codec"),
    [
        pytest.param(Take(fps=Fraction(30)), ".mp4", None, marks=LONG),
        (Take(), ".mp4", None),
        pytest.param(Take(), ".ts", None, marks=LONG),
        pytest.param(Take(), ".mkv", "aac", marks=LONG),
        pytest.param(Take(codec="libvpx-vp9"), ".webm", None, marks=LONG),
        (Take(), ".mp4", "flac"),
    ],
)
def test_pcm_is_encoded_once(
    make: Callable[..., VideoStitcher], takes: Takes, folder: Path, tmp_path: Path,
    take: Take, ending: str, codec: str | None,
) -> None:  # fmt: skip
    """Where PCM is encoded, FLAC is exact, and others have no error at seams but their own."""
    stitcher = make(audio="encode", audio_codec=codec)
    heard = stitched(stitcher, takes(take), tmp_path / f"film{ending}", take.fps)
    if codec == "flac":
        assert_exact(heard, take.fps)
    else:
        name = codec or ("libopus" if ending == ".webm" else "aac")
        assert heard.codec == name.removeprefix("lib")
        assert_encoded_once(heard, name, take.fps, folder)


@pytest.mark.parametrize(
    ("take", "audio", "kind", "ending", "codec"),
    [
        (SILENT, "auto", "wav", ".mkv", None),
        pytest.param(SILENT, "track", "wav", ".mov", None, marks=LONG),
        (SILENT, "auto", "flac", ".mp4", "flac"),
        (AAC, "track", "flac", ".mp4", "flac"),
        (AAC, "auto", "wav", ".mov", None),
        pytest.param(AAC, "track", "wav", ".mp4", None, marks=LONG),
    ],
)
def test_track_is_the_audio_of_the_film(
    make: Callable[..., VideoStitcher], takes: Takes, folder: Path, track: Path, tmp_path: Path,
    take: Take, audio: str, kind: str, ending: str, codec: str | None,
) -> None:  # fmt: skip
    """A track is cut to the frames, and starts with the first, whatever audio the chunks have."""
    stitcher = make(audio=audio, audio_track=track.with_suffix(f".{kind}"), audio_codec=codec)
    heard = stitched(stitcher, takes(take), tmp_path / f"film{ending}")
    if heard.codec == "aac":
        assert_encoded_once(heard, "aac", NTSC, folder)
    else:
        assert_exact(heard)


def test_track_of_an_encoded_film(takes: Takes, track: Path, tmp_path: Path) -> None:
    """Encoding the video again moves no frame, though the chunks' own audio begins before it."""
    flip, film = {"vf": "hflip"}, tmp_path / "film.mov"
    stitcher = FfmpegStitcher(video_codec="mpeg4", audio_track=track, output_options=flip)
    assert_exact(stitched(stitcher, takes(AAC), film))
    with av.open(str(film)) as container:
        assert container.streams.video[0].frames == FRAMES


@pytest.mark.parametrize(("take", "ending"), [(Take(), ".mkv"), (Take(), ".mp4"), (AAC, ".mp4")])
def test_growing_film_has_the_same_audio(
    takes: Takes, track: Path, tmp_path: Path, take: Take, ending: str
) -> None:
    """A film to which chunks are added as they come has the same audio, to the sample."""
    stitcher = RemuxStitcher(audio_track=track if take is AAC else None, audio_codec="flac")
    chunks = takes(take)
    wanted = stitched(stitcher, chunks, tmp_path / f"once{ending}").samples
    film = tmp_path / f"film{ending}"
    with stitcher.grow(chunks, film, fps=str(NTSC), frame_counts=COUNTS) as growing:
        for _ in chunks:
            growing.append()
    assert np.array_equal(hear(film).samples, wanted)


@cache
def decoded_chunks(chunks: tuple[Path, ...]) -> np.ndarray:
    """Return the audio of each chunk while its frames last, one after the other."""
    lengths = np.diff([0, *(due(NTSC, frames) for frames in accumulate(COUNTS))])
    parts = [hear(chunk).samples for chunk in chunks]
    assert all(part.shape[1] >= length for part, length in zip(parts, lengths, strict=True))
    return np.concatenate(
        [part[:, :length] for part, length in zip(parts, lengths, strict=True)], axis=1
    )


@pytest.mark.parametrize("take", PRIMED, ids=str)
def test_compressed_chunks(
    make: Callable[..., VideoStitcher], takes: Takes, tmp_path: Path, take: Take
) -> None:
    """Audio that cannot be joined by copy is refused; `encode` joins what each chunk decodes to."""
    chunks, film = takes(take), tmp_path / "film.mp4"
    name = take.audio.removeprefix("lib").removesuffix("lame")  # type: ignore[union-attr]
    with pytest.raises(StitchInputError, match=rf"{name}.* cannot be joined .*'encode' or 'none'"):
        make().stitch(chunks, film, fps=str(NTSC))
    assert not film.exists()
    heard = stitched(make(audio="encode", audio_codec="flac"), chunks, film).samples
    expected = decoded_chunks(tuple(chunks))
    assert heard.shape == expected.shape
    assert np.abs(heard - expected).max() < 1e-6  # FLAC has 24 bits
    for first in (48_000, due(NTSC) - 60_000):
        assert best_shift(heard, sweep(0, due(NTSC)), first) == 0


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_compressed_chunks_by_copy(
    make: Callable[..., VideoStitcher], takes: Takes, tmp_path: Path, ending: str
) -> None:
    """`copy` takes packets as they are and never drifts by more than one; `none` takes none."""
    film = tmp_path / f"film{ending}"
    report = make(audio="copy").stitch(takes(AAC), film, fps=str(NTSC), frame_counts=COUNTS)
    for length in (report.audio_samples or 0, hear(film).samples.shape[1]):
        assert abs(length - due(NTSC)) <= 1024
    known = {bytes(packet) for chunk in takes(AAC) for packet in audio_packets(chunk)}
    assert {bytes(packet) for packet in audio_packets(film)} <= known
    report = make(audio="none").stitch(takes(AAC), film, fps=str(NTSC))
    assert report.audio_samples is None
    with av.open(str(film)) as container:
        assert not container.streams.audio
        assert container.streams.video[0].start_time == 0


def audio_packets(path: Path) -> list[av.Packet]:
    """Return the packets of a file's audio."""
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(audio=0) if packet.size]


def test_one_sample_short_does_not_click(
    make: Callable[..., VideoStitcher], tmp_path: Path
) -> None:
    """Where a chunk rounds its length down and the film up, no silence is put between."""
    chunks = write_takes(tmp_path / "chunks", Take(alone=True), COUNTS[:4])
    assert sum(hear(chunk).samples.shape[1] for chunk in chunks) == due(NTSC, 4 * 47) - 1
    for ending, codec in ((".mkv", None), (".mp4", "flac")):
        film = tmp_path / f"film{ending}"
        make(audio_codec=codec).stitch(chunks, film, fps=str(NTSC))
        found, wanted = hear(film).samples, sweep(0, due(NTSC, 4 * 47))
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 2 * np.abs(np.diff(wanted)).max()


def test_nothing_is_resampled(make: Callable[..., VideoStitcher], tmp_path: Path) -> None:
    """Audio keeps its rate, from chunks and from a track; a codec that lacks it is refused."""
    take = Take(rate=44_100)
    cd = write_track(tmp_path / "cd.wav", due(NTSC, 94, 44_100), take)
    sources = {
        "chunks": (make, write_takes(tmp_path / "pcm", take, COUNTS[:2])),
        "track": (
            lambda **fields: make(audio_track=cd, **fields),
            write_takes(tmp_path / "silent", SILENT, COUNTS[:2]),
        ),
    }
    for build, chunks in sources.values():
        film = tmp_path / "film.mp4"
        assert build().stitch(chunks, film, fps=str(NTSC)).audio_rate == 44_100
        heard = hear(film)
        assert heard.rate == 44_100
        wanted = sweep(0, due(NTSC, 94, 44_100), 44_100)
        assert best_shift(heard.samples, wanted) == 0
        refused = tmp_path / "refused.mp4"
        with pytest.raises(StitchInputError, match=r"44100 samples.*libopus.*8000.*48000"):
            build(audio_codec="libopus").stitch(chunks, refused, fps=str(NTSC))
        assert not refused.exists()
