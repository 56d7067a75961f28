"""Audio as it is really written: holes, edit lists, whole packets, headers of one file only."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from encoder_samples import FPS, FRAMES, pictures, run_ffmpeg

from prefect_renderfarm.blocks import (
    AssemblyError,
    FfmpegStitcher,
    RemuxStitcher,
    StitchInputError,
    VideoStitcher,
)
from prefect_renderfarm.blocks.media.model import layout_of

RATE = 48_000
LONG = pytest.mark.long
FAST = ("-c:v", "libx264", "-preset", "ultrafast")
DUE = FRAMES * RATE // FPS  # samples of one chunk
# Lossy codecs need some samples to settle, and change the rest a little.
SETTLED, NEAR = 2500, 2500
LOSSY = ("-b:a", "256k")


@pytest.fixture(params=[RemuxStitcher, FfmpegStitcher], ids=["remux", "ffmpeg"])
def make(request: pytest.FixtureRequest) -> Callable[..., VideoStitcher]:
    """Each stitcher in turn."""
    maker: Callable[..., VideoStitcher] = request.param
    return maker


def sound(seconds: float, start: float = 0) -> list[str]:
    """Return ffmpeg's input of a tone that rises, from a moment on."""
    wave = f"0.5*sin(2*PI*(220*(t+{start})+40*(t+{start})*(t+{start})))"
    return ["-f", "lavfi", "-i", f"aevalsrc='{wave}':s={RATE}:d={seconds}"]


def write_chunks(folder: Path, ending: str, *options: str, seconds: float = FRAMES / FPS,
                 count: int = 3) -> list[Path]:  # fmt: skip
    """Write chunks of pictures and of the tone, which lasts so many seconds in each."""
    paths = []
    for number in range(count):
        path = folder / f"{number}{ending}"
        tone = sound(seconds, number * FRAMES / FPS)
        run_ffmpeg(*pictures(number * FRAMES), *tone, *FAST, *options, path)
        paths.append(path)
    return paths


def heard(path: Path) -> np.ndarray:
    """Decode a file's audio to one channel of 16 bit."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="s16p", layout="mono")
        frames = [one for frame in container.decode(audio=0) for one in resampler.resample(frame)]
        return np.concatenate([frame.to_ndarray()[0] for frame in frames]).astype(int)


def tone(first: int, last: int) -> np.ndarray:
    """Return samples of the tone."""
    t = np.arange(first, last) / RATE
    return np.round(0.5 * np.sin(2 * np.pi * (220 * t + 40 * t * t)) * 32767).astype(int)


def moved_edit(source: Path, target: Path, samples: int) -> Path:
    """Copy a QuickTime file of audio, and let its edit list begin so many samples later."""
    data = bytearray(source.read_bytes())
    struct.pack_into(">i", data, data.index(b"elst") + 16, samples)
    target.write_bytes(data)
    return target


TRACKS = ["pcm_s16le", *(pytest.param(each, marks=LONG) for each in ("pcm_s24le", "pcm_f32le"))]


@pytest.mark.parametrize("codec", TRACKS)
@pytest.mark.parametrize("ending", [".mov", ".mkv"])
def test_track_of_which_the_beginning_is_cut(
    make: Callable[..., VideoStitcher], codec: str, ending: str, tmp_path: Path
) -> None:
    """What an edit list hides is not in the film, and what follows is on its time."""
    chunks = write_chunks(tmp_path, ".mp4", "-an")
    whole = tmp_path / "whole.mov"
    run_ffmpeg(*sound(2), "-c:a", codec, whole)
    for samples in (12_288, 5000):
        track = moved_edit(whole, tmp_path / f"{samples}.mov", samples)
        film = tmp_path / f"film{samples}{ending}"
        make(audio_track=track).stitch(chunks, film, fps=FPS)
        difference = np.abs(heard(film) - tone(samples, samples + 3 * DUE))
        assert difference.max() <= 1


@pytest.mark.parametrize("kind", ["mov", "mkv", "m4a"])
def test_track_that_begins_later(
    make: Callable[..., VideoStitcher], kind: str, tmp_path: Path
) -> None:
    """A track that begins 256 ms after its file does is silent until then."""
    chunks = write_chunks(tmp_path, ".mp4", "-an")
    codec = "aac" if kind == "m4a" else "pcm_s16le"
    run_ffmpeg(*sound(2), "-c:a", codec, *LOSSY, tmp_path / f"whole.{kind}")
    track = tmp_path / f"track.{kind}"
    run_ffmpeg("-itsoffset", 0.256, "-i", tmp_path / f"whole.{kind}", "-c", "copy", track)
    for ending in (".mov", ".mkv"):
        film = tmp_path / f"film{ending}"
        written = "flac" if ending == ".mkv" else "pcm_s16le"
        make(audio_track=track, audio_codec=written).stitch(chunks, film, fps=FPS)
        samples = heard(film)[: 3 * DUE]
        begin = 12_288
        assert np.abs(samples[: begin - SETTLED]).max() <= NEAR
        expected = tone(0, 3 * DUE - begin)[SETTLED:-SETTLED]
        assert np.abs(samples[begin + SETTLED : 3 * DUE - SETTLED] - expected).max() <= NEAR


HOLE = ("-bsf:a", r"noise=drop=between(pts*tb\,0.06\,0.13)")


@pytest.mark.parametrize(
    ("kind", "codec"),
    [("mp4", "aac"), ("mkv", "pcm_s16le"),
     *(pytest.param("mkv", codec, marks=LONG) for codec in ("aac", "libopus", "flac", "ac3"))],
)  # fmt: skip
def test_hole(make: Callable[..., VideoStitcher], kind: str, codec: str, tmp_path: Path) -> None:
    """Where packets are missing the film is silent; what follows is on its time."""
    chunks = write_chunks(tmp_path, f".{kind}", "-an")
    track = tmp_path / f"track.{kind}"
    run_ffmpeg(*sound(2), "-c:a", codec, *LOSSY, *HOLE, track)
    film = tmp_path / "film.mkv"
    make(audio_track=track, audio_codec="flac").stitch(chunks, film, fps=FPS)
    samples = heard(film)[: 3 * DUE]
    after = round(0.18 * RATE)
    assert np.abs(samples[round(0.1 * RATE) : round(0.11 * RATE)]).max() <= NEAR
    assert np.abs(samples[after:-SETTLED] - tone(after, 3 * DUE)[:-SETTLED]).max() <= NEAR


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_hole_in_a_chunk(make: Callable[..., VideoStitcher], kind: str, tmp_path: Path) -> None:
    """A chunk's hole is filled with silence, or refused where packets are copied."""
    chunks = write_chunks(tmp_path, f".{kind}", "-c:a", "aac", *LOSSY)
    run_ffmpeg("-i", chunks[1], "-c", "copy", *HOLE, tmp_path / f"hole.{kind}")
    chunks[1] = tmp_path / f"hole.{kind}"
    film = tmp_path / "film.mkv"
    make(audio="encode", audio_codec="flac").stitch(chunks, film, fps=FPS)
    samples = heard(film)[: 3 * DUE]
    after = DUE + round(0.18 * RATE)
    assert np.abs(samples[after:-SETTLED] - tone(after, 3 * DUE)[:-SETTLED]).max() <= NEAR
    with pytest.raises(StitchInputError, match=r"hole\..* has a hole in its audio at 0\.0"):
        make(audio="copy").stitch(chunks, tmp_path / "copied.mkv", fps=FPS)


@pytest.mark.parametrize("ending", [".mov", ".mkv"])
@pytest.mark.parametrize("audio", ["auto", "encode"])
def test_pcm_in_whole_packets(
    make: Callable[..., VideoStitcher], ending: str, audio: str, tmp_path: Path
) -> None:
    """PCM that is longer than its frames by less than a packet, as Blender writes it, is cut."""
    chunks = write_chunks(tmp_path, ending, "-c:a", "pcm_s16le", seconds=0.205)
    film = tmp_path / "film.mkv"
    make(audio=audio, audio_codec="flac").stitch(chunks, film, fps=FPS)
    samples = heard(film)
    assert len(samples) == 3 * DUE
    assert np.abs(samples - tone(0, 3 * DUE)).max() <= 2
    for seconds in (0.199, 0.4):  # too short, or longer by more than a packet
        folder = tmp_path / str(seconds)
        folder.mkdir()
        others = write_chunks(folder, ending, "-c:a", "pcm_s16le", seconds=seconds, count=1)
        with pytest.raises(StitchInputError, match="audio samples, but its 5 frames last 9600"):
            make(audio=audio).stitch([*others, *chunks[1:]], film, fps=FPS)


@pytest.mark.parametrize(
    ("codec", "ending"),
    [
        ("flac", ".mkv"),
        ("wavpack", ".mkv"),
        pytest.param("flac", ".mp4", marks=LONG),
        pytest.param("alac", ".mov", marks=LONG),
        pytest.param("tta", ".mkv", marks=LONG),
    ],
)
def test_lossless_chunks(
    make: Callable[..., VideoStitcher], codec: str, ending: str, tmp_path: Path
) -> None:
    """Headers that describe their own file do not keep chunks apart; no sample is lost."""
    chunks = write_chunks(tmp_path, ending, "-c:a", codec, "-strict", "-2")
    film = tmp_path / "film.mkv"
    report = make(audio="encode", audio_codec="flac").stitch(chunks, film, fps=FPS)
    assert report.audio_samples == 3 * DUE
    assert np.abs(heard(film) - tone(0, 3 * DUE)).max() <= 1
    with pytest.raises(StitchInputError, match=f"audio is {codec}, whose header describes its own"):
        make(audio="copy").stitch(chunks, film, fps=FPS)


def test_channels_in_an_order_of_their_own(
    make: Callable[..., VideoStitcher], tmp_path: Path
) -> None:
    """7.1 with its side channels first, which aborts PyAV, is refused; the process goes on."""
    plain = tmp_path / "plain.mov"
    run_ffmpeg(*pictures(0), *sound(0.2), *FAST, "-c:a", "pcm_s16le", "-ac", "8", plain)
    data = bytearray(plain.read_bytes())
    # kAudioChannelLayoutTag_MPEG_7_1_C of Apple's CoreAudioBaseTypes.h, as FFmpeg 5.1 writes it.
    struct.pack_into(">III", data, data.index(b"chan") + 8, 128 << 16 | 8, 0, 0)
    plain.write_bytes(data)
    with pytest.raises(StitchInputError, match="unusual order of channels"):
        make().stitch([plain], tmp_path / "film.mov", fps=FPS)


@pytest.mark.parametrize("seconds", [FRAMES / FPS, FRAMES / FPS - 0.0005])
def test_eight_planes(make: Callable[..., VideoStitcher], seconds: float, tmp_path: Path) -> None:
    """Of eight planar channels, for which PyAV gives nine planes, all are kept, and extended."""
    pan = "pan=7.1|" + "|".join(f"c{number}=c0" for number in range(8))
    eight = ("-af", pan, "-c:a", "aac", "-b:a", "768k")
    chunks = write_chunks(tmp_path, ".mov", *eight, seconds=seconds, count=2)
    film = tmp_path / "film.mp4"
    report = make(audio="encode").stitch(chunks, film, fps=FPS)
    assert report.audio_samples == 2 * DUE
    with av.open(str(film)) as container:
        assert layout_of(next(container.decode(audio=0))) == "7.1"
    loud = np.abs(heard(film)[SETTLED : DUE - SETTLED].astype(int))
    assert loud.max() > 10_000


# Channels of the chunks; film; the codec to encode with; what happens, by its words.
LAYOUTS = [
    ("2.1", "film.mkv", None, "the layout 2.1 of its audio's channels"),
    ("2.1", "film.mp4", "flac", "has audio in the channels 3.0, not 2.1, which flac cannot tell"),
    ("5.1(side)", "film.mp4", "aac", ""),
    *(pytest.param(*each, marks=LONG) for each in (
        ("stereo", "film.mkv", None, ""),
        ("2.1", "film.mov", None, ""),
        ("2.1", "film.mp4", "aac", ""),
        ("quad", "film.mkv", None, "the layout quad of its audio's channels"),
        ("quad", "film.mkv", "flac", ""),
        ("4.0", "film.mp4", "flac", "has audio in the channels quad, not 4.0"),
        ("5.1", "film.mkv", None, ""),
        ("6.0", "film.mkv", None, "has audio in the channels 5.1, not 6.0"),
        ("6.0", "film.mov", None, ""),
        ("6.1", "film.mp4", "flac", ""),
        ("7.1(wide)", "film.mkv", None, "has audio in the channels 7.1, not 7.1.wide."),
        ("7.1", "film.mp4", "aac", ""),
    )),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "name", "codec", "words"), LAYOUTS)
def test_layout_of_channels(
    make: Callable[..., VideoStitcher],
    layout: str,
    name: str,
    codec: str | None,
    words: str,
    tmp_path: Path,
) -> None:
    """Sound comes out of the same loudspeakers; else it is told, or the film refused."""
    channels = len(av.AudioLayout(layout).channels)
    chunks = write_chunks(
        tmp_path, ".mov", "-af", f"pan={layout}|" + "|".join(f"c{n}=c0" for n in range(channels)),
        "-c:a", "pcm_s16le", count=2,
    )  # fmt: skip
    film = tmp_path / name
    stitcher = make(audio="encode", audio_codec=codec) if codec else make()
    if words.startswith("has"):
        with pytest.raises(AssemblyError, match=words):
            stitcher.stitch(chunks, film, fps=FPS)
        assert not film.exists()
        return
    report = stitcher.stitch(chunks, film, fps=FPS)
    assert report.dropped == ((words,) if words else ())
    if not words:
        with av.open(str(film)) as container:
            heard_in = layout_of(next(container.decode(audio=0)))
        assert heard_in.replace("(side)", "") == layout.replace("(side)", "")


@pytest.mark.parametrize("depth", ["0", "2"])
def test_sound_in_avi(depth: str, tmp_path: Path) -> None:
    """It begins with the first frame, though AVI tells no display times."""
    chunks = write_chunks(tmp_path, ".avi", "-preset", "medium", "-bf", depth, "-c:a", "pcm_s16le")
    film = tmp_path / "film.mkv"
    RemuxStitcher().stitch(chunks, film, fps=FPS)
    assert np.abs(heard(film) - tone(0, 3 * DUE)).max() <= 1
