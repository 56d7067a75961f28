"""Unusable audio is refused before any chunk is rendered; other audio is not changed."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from audio_samples import NTSC, Take, due, hear, sweep, write_take, write_takes, write_track
from faulty_media import ffmpeg
from jobs import small_job

from prefect_renderfarm.blocks import (
    FfmpegStitcher,
    JobError,
    LocalAdapter,
    RemuxStitcher,
    StitchInputError,
    VideoStitcher,
)
from prefect_renderfarm.flows import RenderJob, render_job

STITCHERS: dict[str, Callable[..., VideoStitcher]] = {
    "remux": RemuxStitcher,
    "ffmpeg": FfmpegStitcher,
}
SHORT = (12, 12)
LENGTH = due(NTSC, 24)


@pytest.fixture(params=STITCHERS)
def make(request: pytest.FixtureRequest) -> Callable[..., VideoStitcher]:
    """Each stitcher class in turn."""
    return STITCHERS[request.param]


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write two chunks without audio."""
    return write_takes(tmp_path_factory.mktemp("silent"), Take(None, ".mp4"), SHORT)


@pytest.mark.parametrize(
    ("audio", "codec", "step"),
    [("pcm_s16le", "flac", 2**-15), ("pcm_s24le", "flac", 2**-23), ("pcm_f32le", None, 2**-24)],
)
@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
def test_samples_and_channels_are_kept(
    make: Callable[..., VideoStitcher], tmp_path: Path, audio: str, codec: str | None, step: float,
    layout: str,
) -> None:  # fmt: skip
    """PCM keeps its channels and all its bits, as it is and as FLAC."""
    take = Take(audio, ".mov", layout=layout)
    chunks = write_takes(tmp_path, take, SHORT)
    films = {"film.mov": audio} | ({"film.mp4": codec} if codec else {})
    for name, expected in films.items():
        make(audio_codec=codec).stitch(chunks, tmp_path / name, fps=str(NTSC))
        heard = hear(tmp_path / name)
        # FLAC's six channels are those of 5.1, to FFmpeg with the rear ones at the sides.
        assert (heard.codec, heard.layout.removesuffix("(side)")) == (expected, layout)
        assert np.abs(heard.samples - sweep(0, LENGTH, layout=layout)).max() <= step


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
def test_channels_of_matroska(
    make: Callable[..., VideoStitcher], tmp_path: Path, layout: str
) -> None:
    """Matroska's PCM tells no layout; the usual one for so many channels is written."""
    chunks = write_takes(tmp_path, Take(layout=layout), SHORT)
    for name in ("film.mov", "film.mp4"):
        make().stitch(chunks, tmp_path / name, fps=str(NTSC))
        assert hear(tmp_path / name).layout == layout


def test_layout_of_the_sides(make: Callable[..., VideoStitcher], tmp_path: Path) -> None:
    """Speakers at the sides do not become speakers at the back."""
    chunks = write_takes(tmp_path, Take(ending=".mov", layout="5.1(side)"), SHORT)
    make().stitch(chunks, tmp_path / "film.mov", fps=str(NTSC))
    assert hear(tmp_path / "film.mov").layout == "5.1(side)"


def test_nothing_is_remixed(make: Callable[..., VideoStitcher], tmp_path: Path) -> None:
    """A codec without a place for the channels is refused, before anything is written."""
    chunks = write_takes(tmp_path, Take(layout="5.1"), SHORT)
    with pytest.raises(StitchInputError, match=r"channels '5\.1', which libmp3lame does not take"):
        make(audio_codec="libmp3lame").stitch(chunks, tmp_path / "film.mp4", fps=str(NTSC))
    assert not (tmp_path / "film.mp4").exists()


def test_container_that_cannot_hold_the_audio(tmp_path: Path) -> None:
    """PCM that the film's container cannot hold is refused with the fix."""
    chunks = write_takes(tmp_path, Take("pcm_f32be", ".mov"), SHORT)
    with pytest.raises(StitchInputError, match=r"cannot hold pcm_f32be audio.*'encode'"):
        RemuxStitcher().stitch(chunks, tmp_path / "film.mkv", fps=str(NTSC))


def test_bit_rate_has_effect(make: Callable[..., VideoStitcher], tmp_path: Path) -> None:
    """The audio of a film has about the bit rate that is asked for."""
    chunks = write_takes(tmp_path, Take(), (60, 60))
    for wanted in (64_000, 256_000):
        film = tmp_path / f"{wanted}.mp4"
        make(audio_bitrate=wanted).stitch(chunks, film, fps=str(NTSC))
        with av.open(str(film)) as container:
            size = sum(packet.size for packet in container.demux(audio=0))
        assert size * 8 / float(120 / NTSC) == pytest.approx(wanted, rel=0.3)


@pytest.mark.parametrize("name", ["no-such-codec", "libx264"])
def test_codec_that_is_not_for_audio(
    make: Callable[..., VideoStitcher], silent: list[Path], tmp_path: Path, name: str
) -> None:
    """A wrong codec name is refused before any chunk is rendered, and before assembly."""
    film = tmp_path / "film.mp4"
    for call in (
        lambda stitcher: stitcher.check_output(film),
        lambda stitcher: stitcher.stitch(silent, film, fps=str(NTSC)),
    ):
        with pytest.raises(
            StitchInputError, match=rf"audio_codec '{name}' is not an audio encoder"
        ):
            call(make(audio_codec=name))


def test_pcm_that_is_too_short_is_refused(
    make: Callable[..., VideoStitcher], tmp_path: Path
) -> None:
    """A chunk whose audio ends before its frames do is named."""
    chunks = write_takes(tmp_path, Take(), (30, 30))
    write_take(tmp_path / "short.mkv", 30, 30, Take(missing=3))
    with pytest.raises(StitchInputError, match=r"short\.mkv.*audio samples"):
        make().stitch([chunks[0], tmp_path / "short.mkv"], tmp_path / "film.mkv", fps=str(NTSC))


def test_compressed_audio_that_is_too_short(
    make: Callable[..., VideoStitcher], tmp_path: Path
) -> None:
    """FFmpeg's AC-3 encoder loses the end of each chunk, which would be a hole at each seam."""
    chunks = write_takes(tmp_path, Take("ac3", ".mp4", Fraction(30)), (47, 47))
    with pytest.raises(
        StitchInputError, match=r"75008 audio samples, but its 47 frames last 75200"
    ):
        make(audio="encode").stitch(chunks, tmp_path / "film.mp4", fps=30)


@pytest.mark.parametrize("of_the_job", [True, False])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "does not exist"),
        ("film", "has 0 audio tracks, not one"),
        ("two", "has 2 audio tracks, not one"),
        ("late", r"begins at 1\.500 s, behind the end of the film"),
        ("text", "cannot be opened as a media file"),
        ("short", r"at least 0\.\d+ s shorter than the film.*silence"),
    ],
)
def test_bad_tracks(
    make: Callable[..., VideoStitcher], silent: list[Path], tmp_path: Path,
    of_the_job: bool, name: str, words: str,
) -> None:  # fmt: skip
    """A track that is not there, or not the audio of the film, is refused before any chunk."""
    track = tmp_path / f"{name}.wav"
    if name == "film":
        track.write_bytes(silent[0].read_bytes())
    elif name == "two":
        with av.open(str(track), "w", format="matroska") as output:
            silence = av.AudioFrame(format="s16", layout="stereo", samples=LENGTH)
            silence.sample_rate = 48_000
            for stream in [output.add_stream("pcm_s16le", rate=48_000) for _ in range(2)]:
                output.mux(stream.encode(silence))
    elif name == "late":
        wave = write_track(tmp_path / "wave.wav", 2 * LENGTH, Take())
        both = ("-itsoffset", "1.5", "-i", str(wave), "-map", "0", "-map", "1", "-c", "copy")
        ffmpeg(silent[0], track, *both, "-f", "mov")
    elif name == "text":
        track.write_text("no audio")
    elif name == "short":
        write_track(track, LENGTH - 2 * 1602, Take())
    stitcher = make().with_track(track) if of_the_job else make(audio_track=track, audio="track")
    with pytest.raises(StitchInputError, match=rf"{name}\.wav.*{words}"):
        stitcher.check_track(24, NTSC)
    with pytest.raises(StitchInputError, match=rf"{name}\.wav.*{words}"):
        stitcher.stitch(silent, tmp_path / "film.mp4", fps=str(NTSC))
    assert not (tmp_path / "film.mp4").exists()


def test_track_may_lack_less_than_a_frame(
    make: Callable[..., VideoStitcher], silent: list[Path], tmp_path: Path
) -> None:
    """What a track lacks of the last frame is filled up, and no sample more."""
    track = write_track(tmp_path / "track.wav", LENGTH - 1600, Take())
    make(audio_track=track).check_track(24, NTSC)
    make(audio_track=track).stitch(silent, tmp_path / "film.mov", fps=str(NTSC))
    assert hear(tmp_path / "film.mov").samples.shape == (2, LENGTH)


def track_job(track: str) -> RenderJob:
    """Return a job of 18 frames at 24 a second that has an audio track."""
    data = small_job().model_dump() | {"audio_track": track}
    return RenderJob.model_validate(data)


@pytest.mark.usefixtures("api")
def test_track_of_a_job(tmp_path: Path) -> None:
    """A job's `audioTrack` is the audio of its film, cut to the frames."""
    write_track(tmp_path / "track.wav", 40_000, Take())
    report = render_job(
        track_job("track.wav"), adapter=LocalAdapter(), stitcher=RemuxStitcher(),
        output_file="film.mov", job_dir=tmp_path,
    )  # fmt: skip
    assert report.stitch is not None
    assert report.stitch.audio_samples == 36_000
    heard = hear(tmp_path / "film.mov")
    assert np.abs(heard.samples - sweep(0, 36_000)).max() <= 2**-15


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("stitcher", [RemuxStitcher(), None])
def test_bad_track_of_a_job_costs_nothing(tmp_path: Path, stitcher: VideoStitcher | None) -> None:
    """A track that is too short is refused before any chunk is rendered, whoever names it."""
    short = write_track(tmp_path / "track.wav", 20_000, Take())
    job = track_job("track.wav") if stitcher else small_job()
    with pytest.raises(StitchInputError, match=r"track\.wav.* shorter than the film"):
        render_job(
            job, adapter=LocalAdapter(), stitcher=stitcher or RemuxStitcher(audio_track=short),
            output_file="film.mov", job_dir=tmp_path,
        )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["track.wav"]


@pytest.mark.usefixtures("api")
def test_track_outside_the_job_folder(tmp_path: Path) -> None:
    """A job's track is a file in the job folder, and no link leads out of it."""
    for name in ("/track.wav", "../track.wav"):
        with pytest.raises(JobError, match="outside the job folder"):
            track_job(name)
    folder = tmp_path / "job"
    folder.mkdir()
    outside = write_track(tmp_path / "track.wav", 40_000, Take())
    (folder / "link.wav").symlink_to(outside)
    for name in ("link.wav", "missing.wav"):
        with pytest.raises(JobError, match=rf"'{name}', which is no file in the job folder"):
            render_job(
                track_job(name), adapter=LocalAdapter(), stitcher=RemuxStitcher(),
                output_file="film.mov", job_dir=folder,
            )  # fmt: skip
