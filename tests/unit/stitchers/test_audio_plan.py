"""The plan for a film's audio, and what is asked of the audio of a chunk."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from audio_samples import Take, write_track
from av.codec import Codec

from prefect_renderfarm.blocks import StitchInputError
from prefect_renderfarm.blocks.media.model import Audio
from prefect_renderfarm.blocks.stitchers.audio import (
    AudioMode,
    AudioPlan,
    audio_fault,
    check_codec,
    check_track,
    find_encoder,
    nearest_format,
    plan_audio,
    read_track,
    samples_at,
)

FPS = Fraction(25)
RATE = 48_000
FRAMES = 25
PCM = Audio("pcm_s16le", RATE, "stereo", RATE)
AAC = Audio("aac", RATE, "stereo", RATE)
AUTO, NONE, COPY, ENCODE, TRACK = AudioMode


@pytest.fixture(scope="module")
def wave(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a second of audio."""
    return write_track(tmp_path_factory.mktemp("wave") / "wave.wav", RATE, Take())


@pytest.mark.parametrize(
    ("mode", "audio", "film", "planned"),
    [
        (AUTO, PCM, "f.mov", COPY),
        (AUTO, PCM, "f.MKV", COPY),
        (AUTO, PCM, "f.mp4", ENCODE),
        (AUTO, PCM, "f.webm", ENCODE),
        (AUTO, PCM, "f.ts", ENCODE),
        (COPY, PCM, "f.mp4", COPY),
        (COPY, AAC, "f.mp4", COPY),
        (ENCODE, AAC, "f.mp4", ENCODE),
        (ENCODE, PCM, "f.mov", ENCODE),
        (AUTO, None, "f.mp4", NONE),
        (ENCODE, None, "f.mp4", NONE),
        (COPY, None, "f.mp4", NONE),
        (NONE, PCM, "f.mp4", NONE),
        (NONE, AAC, "f.mp4", NONE),
    ],
)
def test_plan_of_the_chunks_audio(
    mode: AudioMode, audio: Audio | None, film: str, planned: AudioMode
) -> None:
    """`auto` copies PCM where players play it, and encodes it elsewhere."""
    source = None if planned is NONE else audio
    assert plan_audio(mode, audio, Path(film)) == AudioPlan(planned, source, None)


@pytest.mark.parametrize(
    ("mode", "film", "planned"),
    [
        (AUTO, "f.mov", COPY),
        (AUTO, "f.mp4", ENCODE),
        (TRACK, "f.mkv", COPY),
        (TRACK, "f.ts", ENCODE),
    ],
)
def test_plan_of_a_track(wave: Path, mode: AudioMode, film: str, planned: AudioMode) -> None:
    """A track is the film's audio, whatever the chunks have."""
    for audio in (None, AAC):
        plan = plan_audio(mode, audio, Path(film), wave)
        assert plan == AudioPlan(planned, Audio("pcm_s16le", RATE, "stereo", RATE), wave)


def test_track_that_is_not_used(wave: Path, tmp_path: Path) -> None:
    """Other modes take the chunks' audio, or none, and do not read the track."""
    missing = tmp_path / "missing.wav"
    assert plan_audio(ENCODE, PCM, Path("f.mp4"), missing) == AudioPlan(ENCODE, PCM)
    assert plan_audio(NONE, PCM, Path("f.mp4"), missing) == AudioPlan(NONE)
    with pytest.raises(StitchInputError, match=r"'track', but there is none: set its 'audio_track"):
        plan_audio(TRACK, PCM, Path("f.mp4"))
    flac = write_track(tmp_path / "track.flac", RATE, Take("flac"))
    assert plan_audio(AUTO, None, Path("f.mov"), flac).mode is ENCODE


def test_compressed_audio_is_not_joined_by_copy() -> None:
    """`auto` refuses compressed audio in chunks, with the choices."""
    with pytest.raises(StitchInputError, match=r"audio is aac, .*'encode' or 'none', or to 'copy'"):
        plan_audio(AUTO, AAC, Path("f.mkv"))


def audio(codec: str, samples: int = 0, early: int = 0) -> Audio:
    """Return audio that is off so many samples in length, and begins so many samples early."""
    return Audio(codec, RATE, "stereo", RATE + samples + early, Fraction(-early, RATE))


@pytest.mark.parametrize(
    ("codec", "mode", "fits", "off"),
    [
        ("pcm_s16le", COPY, [-1, 0, 4096], [-2, 4097, -1000]),
        ("pcm_f32le", ENCODE, [-1, 0, 2048], [-2, 2049]),
        ("aac", ENCODE, [-72, 0, 4096], [-73, -1024, 4097]),
        ("aac", COPY, [-1024, 0, 4096], [-1025, 4097]),
    ],
)
def test_length_of_a_chunks_audio(
    codec: str, mode: AudioMode, fits: list[int], off: list[int]
) -> None:
    """PCM may lack one sample, and be too long by up to 16,384 bytes; others by some packets."""
    for samples in fits:
        assert audio_fault(audio(codec, samples), mode, FRAMES, FPS) is None
    for samples in off:
        fault = audio_fault(audio(codec, samples), mode, FRAMES, FPS)
        assert fault == (
            f"has {RATE + samples} audio samples, but its 25 frames last 48000: render audio as "
            "long as the frames"
        )


@pytest.mark.parametrize(
    ("codec", "mode", "fits", "off"),
    [
        ("pcm_s16le", COPY, [-72, 0, 72], [-73, 73, 4800]),
        ("pcm_s16le", ENCODE, [-72, 72], [-73, 73]),
        ("aac", ENCODE, [-72, 0, 1024, 4096], [-73, 4097]),
        ("aac", COPY, [-1024, -480, 0, 480, 4096, 4097, 20_000], [-1025, -20_000]),
    ],
)
def test_start_of_a_chunks_audio(
    codec: str, mode: AudioMode, fits: list[int], off: list[int]
) -> None:
    """Audio begins with its video; what primes a decoder comes before it."""
    for early in fits:
        begun = Audio(codec, RATE, "mono", RATE + max(0, early), Fraction(-early, RATE))
        begun = begun if codec == "aac" else audio(codec, -early, early)
        assert audio_fault(begun, mode, FRAMES, FPS) is None
    for early in off:
        begun = Audio(codec, RATE, "mono", RATE + max(0, early), Fraction(-early, RATE))
        fault = audio_fault(begun, mode, FRAMES, FPS)
        assert fault is not None
        assert fault.startswith(f"has audio that begins {-early / 48:+.1f} ms from its first frame")


def test_fraction_of_a_sample() -> None:
    """A chunk whose frames last 1601.6 samples may lack one, and have less than a packet more."""
    ntsc = Fraction(30_000, 1001)
    around = [Audio("pcm_s16le", RATE, "mono", samples) for samples in range(1590, 9900)]
    fits = [each.samples for each in around if audio_fault(each, COPY, 1, ntsc) is None]
    assert fits == list(range(1601, 1602 + 8192))  # 16,384 bytes
    for codec, layout, extra in (("pcm_s16le", "stereo", 4096), ("pcm_s24le", "5.1", 1024)):
        around = [Audio(codec, RATE, layout, samples) for samples in range(1590, 9900)]
        fits = [each.samples for each in around if audio_fault(each, COPY, 1, ntsc) is None]
        assert fits == list(range(1601, 1602 + extra))
    assert [samples_at(frame, ntsc, RATE) for frame in (0, 1, 2, 5)] == [0, 1602, 3203, 8008]


@pytest.mark.parametrize("name", ["no-such-codec", "libx264", "pcm"])
def test_codec_that_does_not_encode_audio(name: str) -> None:
    """A name that is no audio encoder is refused."""
    with pytest.raises(StitchInputError, match=f"audio_codec '{name}' is not an audio encoder"):
        find_encoder(name)


def test_codec_that_does_not_take_the_audio() -> None:
    """Rate and channels are never changed: a codec that does not take them is refused."""
    check_codec("aac", AAC)
    check_codec("libmp3lame", AAC)
    check_codec("flac", Audio("pcm_s16le", 11_111, "5.1", 0))
    with pytest.raises(
        StitchInputError, match=r"has 44100 samples a second, which libopus does not"
    ):
        check_codec("libopus", Audio("pcm_s16le", 44_100, "stereo", 0))
    with pytest.raises(StitchInputError, match=r"\(8000, 12000, 16000, 24000, 48000\)"):
        check_codec("libopus", Audio("pcm_s16le", 44_100, "stereo", 0))
    with pytest.raises(StitchInputError, match=r"channels '5\.1', which libmp3lame does not take"):
        check_codec("libmp3lame", Audio("pcm_s16le", RATE, "5.1", 0))


def test_track_that_is_too_short(wave: Path) -> None:
    """By its header a track may lack up to one frame; one that tells no length is read."""
    plan = AudioPlan(COPY, PCM, wave)
    check_track(plan, 25, FPS)
    check_track(plan, 26, FPS)
    check_track(plan, 5, FPS)
    with pytest.raises(StitchInputError, match=r"wave\.wav' is at least 0\.080 s shorter than"):
        check_track(plan, 27, FPS)
    check_track(AudioPlan(COPY, PCM), 27, FPS)
    check_track(AudioPlan(COPY, Audio("aac", RATE, "stereo", 0), wave), 27, FPS)


def test_header_of_a_track(wave: Path, tmp_path: Path) -> None:
    """Codec, rate, channels, length and begin are read; it is up to a minute late."""
    assert read_track(wave) == Audio("pcm_s16le", RATE, "stereo", RATE)
    for late, fits in ((0, True), (73, True), (60 * RATE, True), (60 * RATE + 48, False)):
        path = tmp_path / "track.mov"
        exact = {"movie_timescale": str(RATE)}  # else the begin is rounded to 1 ms
        with av.open(str(path), "w", container_options=exact) as output:
            video: Any = output.add_stream("mpeg4", rate=25)
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            stream: Any = output.add_stream("pcm_s16le", rate=RATE, layout="stereo")
            for packet in video.encode(av.VideoFrame(64, 48, "yuv420p")) + video.encode(None):
                output.mux(packet)
            packet = av.Packet(bytes(4 * 4800))
            packet.stream, packet.time_base = stream, Fraction(1, RATE)
            packet.pts = packet.dts = late
            packet.duration = 4800
            output.mux(packet)
        if fits:
            assert read_track(path).start == Fraction(late, RATE)
            assert read_track(path).samples == late + 4800
        else:
            with pytest.raises(StitchInputError, match=r"begins 60\.0 s after the file does"):
                read_track(path)


def test_track_behind_the_film(wave: Path) -> None:
    """A track of which nothing would be heard is refused."""
    source = Audio("pcm_s16le", RATE, "stereo", 3 * RATE, Fraction(2))
    check_track(AudioPlan(COPY, source, wave), 51, Fraction(25))
    check_track(AudioPlan(COPY, source, wave), 0, Fraction(25))  # before the length is known
    with pytest.raises(StitchInputError, match=r"begins at 2\.000 s, behind the end of the film"):
        check_track(AudioPlan(COPY, source, wave), 50, Fraction(25))


def test_packets_that_overlap() -> None:
    """They are refused, with the place."""
    found = replace(AAC, overlap=Fraction(1, 8))
    fault = audio_fault(found, ENCODE, FRAMES, FPS)
    assert fault == "has audio packets that overlap at 0.125 s: write it anew"


def test_hole() -> None:
    """A hole is filled where audio is decoded, and refused where packets are copied."""
    found = Audio("aac", RATE, "stereo", RATE, hole=Fraction(1, 4))
    assert audio_fault(found, ENCODE, FRAMES, FPS) is None
    fault = audio_fault(found, COPY, FRAMES, FPS)
    assert fault is not None
    assert fault.startswith("has a hole in its audio at 0.250 s: ")
    assert audio_fault(replace(found, codec="pcm_s16le"), COPY, FRAMES, FPS) is None


@pytest.mark.parametrize("codec", ["flac", "alac", "tta", "wavpack"])
def test_headers_of_one_file(codec: str) -> None:
    """Codecs whose header describes its own file are not copied."""
    source = Audio(codec, RATE, "stereo", RATE)
    with pytest.raises(StitchInputError, match=f"audio is {codec}, whose header describes its own"):
        plan_audio(COPY, source, Path("f.mkv"))
    assert plan_audio(ENCODE, source, Path("f.mkv")).mode is ENCODE


@pytest.mark.parametrize(
    ("source", "known", "nearest"),
    [
        ("s16", ["fltp", "s16p", "s32"], "s16p"),
        ("s32", ["s16", "flt", "s32p"], "s32p"),
        ("flt", ["s16", "s32", "fltp"], "fltp"),
        ("dbl", ["s16", "s32", "s64"], "s64"),
        ("s32", ["u8", "s16"], "s16"),
        ("u8", ["s32", "s16"], "s16"),
        ("s16", ["s32", "u8"], "s32"),
    ],
)
def test_nearest_sample_format(source: str, known: list[str], nearest: str) -> None:
    """The same kind of number is best, then one that is wide enough, and no wider than needed."""

    class Encoder:
        audio_formats = tuple(av.AudioFormat(name) for name in known)

    assert nearest_format(Encoder, av.AudioFormat(source)).name == nearest
    assert nearest_format(Codec("flac", "w"), av.AudioFormat("s16p")).name == "s16"
