"""The last check: a film that is not what its chunks are is not published."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from prefect_renderfarm.blocks.errors import AssemblyError, MediaFault
from prefect_renderfarm.blocks.media.model import Audio
from prefect_renderfarm.blocks.media.mp4_index import Mp4Index, Track
from prefect_renderfarm.blocks.media.reader import Packets
from prefect_renderfarm.blocks.stitchers.audio import AudioMode
from prefect_renderfarm.blocks.stitchers.checked import ChunkCheck
from prefect_renderfarm.blocks.stitchers.film_check import (
    FilmFigures,
    FilmReader,
    _figures,
    _from_index,
    _on_grid,
    check_figures,
    read_figures,
)

FPS = Fraction(25)
RATE = 48_000
FRAMES = 10
GRID = [2 * number for number in range(FRAMES)]  # in 1/50 s
LENGTH = FRAMES * RATE // 25  # in samples


def write_film(
    path: Path,
    pts: Sequence[int] = GRID,
    dts: Sequence[int] | None = None,
    *,
    samples: int = 0,
    codec: str = "pcm_s16le",
    audio_tracks: int = 1,
    clock: Fraction = Fraction(1, 50),
    **options: str,
) -> Path:
    """Write a film with a frame at each time, and so many samples of audio."""
    options.setdefault("movie_timescale", "25")
    known = options if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", container_options=known) as output:
        video: Any = output.add_stream("mpeg4", rate=FPS)
        video.width, video.height, video.pix_fmt, video.time_base = 64, 48, "yuv420p", clock
        audios: list[Any] = [
            output.add_stream(codec, rate=RATE, layout="mono")
            for _ in range(audio_tracks if samples else 0)
        ]
        for number, (display, decode) in enumerate(zip(pts, dts or pts, strict=True)):
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts, frame.time_base, frame.pict_type = number, 1 / FPS, 1
            for packet in video.encode(frame):
                packet.time_base, packet.pts, packet.dts = clock, display, decode
                packet.duration = 2
                output.mux(packet)
        for audio in audios:
            silence = av.AudioFrame("fltp" if codec == "aac" else "s16", "mono", samples)
            silence.sample_rate, silence.pts, silence.time_base = RATE, 0, Fraction(1, RATE)
            for plane in silence.planes:
                plane.update(bytes(plane.buffer_size))
            output.mux(audio.encode(silence))
            output.mux(audio.encode(None))
    return path


def figures(frames: int = FRAMES, samples: int | None = None, codec: str = "pcm_s16le") -> Any:
    """Return the figures of a film."""
    audio = None if samples is None else Audio(codec, RATE, "stereo", samples)
    return FilmFigures(frames, FPS, Fraction(0), audio)


@pytest.mark.parametrize("frames", [FRAMES - 1, FRAMES + 1, 0])
def test_number_of_frames(frames: int) -> None:
    """A film with a frame too few or too many is refused."""
    with pytest.raises(AssemblyError, match=rf"has {frames} frames, its chunks have 10; it is not"):
        check_figures(figures(frames), FRAMES, 1, AudioMode.NONE)
    assert check_figures(figures(), FRAMES, 1, AudioMode.NONE) == figures()


@pytest.mark.parametrize("mode", [AudioMode.COPY, AudioMode.ENCODE])
def test_film_without_audio(mode: AudioMode) -> None:
    """A film that lacks its audio is refused, and so is one with audio that it should not have."""
    with pytest.raises(AssemblyError, match="has no audio track; it is not published"):
        check_figures(figures(), FRAMES, 1, mode)
    with pytest.raises(AssemblyError, match="an audio track that it should not; it is not publ"):
        check_figures(figures(samples=LENGTH), FRAMES, 1, AudioMode.NONE)
    assert check_figures(figures(samples=LENGTH), FRAMES, 1, mode)


@pytest.mark.parametrize(
    ("codec", "chunks", "allowed"),
    [("pcm_s16le", 1, 1), ("pcm_f32le", 7, 7), ("aac", 1, 5760), ("aac", 9000, 5760)],
)
def test_length_of_audio(codec: str, chunks: int, allowed: int) -> None:
    """PCM may be one sample a chunk off, compressed audio 120 ms."""
    for off in (-allowed, 0, allowed):
        film = figures(samples=LENGTH + off, codec=codec)
        assert check_figures(film, FRAMES, chunks, AudioMode.COPY) is film
    for off in (-allowed - 1, allowed + 1):
        film = figures(samples=LENGTH + off, codec=codec)
        with pytest.raises(AssemblyError, match=f"{LENGTH + off} audio samples for {LENGTH} sam"):
            check_figures(film, FRAMES, chunks, AudioMode.COPY)


def test_length_of_audio_at_a_low_rate() -> None:
    """Two packets of AAC are allowed, though they last longer than 120 ms."""
    audio = Audio("aac", 8000, "mono", 3200 + 2048)
    film = FilmFigures(FRAMES, FPS, Fraction(0), audio)
    assert check_figures(film, FRAMES, 1, AudioMode.ENCODE) is film
    longer = FilmFigures(FRAMES, FPS, Fraction(0), Audio("aac", 8000, "mono", 3200 + 2049))
    with pytest.raises(AssemblyError, match="5249 audio samples for 3200"):
        check_figures(longer, FRAMES, 1, AudioMode.ENCODE)


def test_audio_before_the_first_frame_does_not_count() -> None:
    """Samples that prime a decoder are not part of a film's length; nor of its report."""
    audio = Audio("aac", RATE, "mono", LENGTH + 8000, Fraction(-8000, RATE))
    film = FilmFigures(FRAMES, FPS, Fraction(0), audio)
    assert check_figures(film, FRAMES, 1, AudioMode.COPY) is film


@pytest.mark.parametrize(
    ("samples", "words"),
    [(0, None), (72, None), (73, "1.5"), (480, "10.0"), (4800, "100.0")],
)
def test_audio_behind_the_first_frame(samples: int, words: str | None) -> None:
    """A film's audio begins with its pictures, to a tick and a half of Matroska's clock."""
    audio = Audio("pcm_s16le", RATE, "mono", LENGTH, Fraction(samples, RATE))
    film = FilmFigures(FRAMES, FPS, Fraction(0), audio)
    if words is None:
        assert check_figures(film, FRAMES, 1, AudioMode.COPY) is film
        return
    with pytest.raises(AssemblyError, match=f"has audio that begins {words} ms after its first fr"):
        check_figures(film, FRAMES, 1, AudioMode.COPY)


@pytest.mark.parametrize(
    ("ticks", "fits"), [(17, False), (18, True), (20, True), (54, True), (55, False)]
)
def test_length_of_a_track(ticks: int, fits: bool) -> None:
    """By its index it may lack a frame, and be longer by 17 that are decoded before the first."""
    video = Track("vide", 50, ticks, b"mp4v", b"", dts=GRID, pts=GRID)
    audio = Track("soun", RATE, LENGTH, b"sowt", b"")
    index = Mp4Index((audio, video), 0, 1000)  # whose own length may be that of the audio
    if fits:
        expected = Audio("pcm_s16le", RATE, "", LENGTH)
        assert _from_index(index, FPS) == FilmFigures(FRAMES, FPS, Fraction(0), expected)
        return
    words = rf"^has a length of {ticks / 50:.6f} s in its header, not 0\.400000 s$"
    with pytest.raises(MediaFault, match=words):
        _from_index(index, FPS)


def test_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report has the figures of the film, and the time since the check of the chunks began."""
    path = Path("film.mp4")
    audio = Audio("aac", RATE, "mono", LENGTH + 1024, Fraction(-1024, RATE))
    film = FilmFigures(FRAMES, FPS, Fraction(1, 2000), audio)
    monkeypatch.setattr(time, "monotonic", iter([10.0, 10.5, 11.0]).__next__)
    check = ChunkCheck([Path("a.mp4"), Path("b.mp4"), Path("c.mp4")], path, None, None)
    assert check.report(film, 5).model_dump() == {
        "output": path, "frames": 10, "fps": "25", "duration": 0.4, "clock_error": 0.0005,
        "audio_samples": LENGTH, "audio_rate": RATE, "dropped": (), "chunks": 3, "size": 5,
        "seconds": 0.5,
    }  # fmt: skip
    silent = check.report(figures(), 5)
    assert (silent.audio_samples, silent.audio_rate) == (None, None)


def read_at_once(film: Path) -> FilmFigures:
    """Read a complete film."""
    return read_figures(film, FPS)


def read_as_it_grows(film: Path) -> FilmFigures:
    """Read a film as while it is written."""
    reader = FilmReader(film, audio=True)
    try:
        return reader.finish(FPS)
    finally:
        reader.close()


READERS = [(read_at_once, ending) for ending in (".mp4", ".mov", ".mkv", ".ts")] + [
    (read_as_it_grows, ending) for ending in (".mkv", ".ts")
]


@pytest.fixture(params=READERS, ids=lambda case: f"{case[0].__name__}{case[1]}")
def reading(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[Callable[[Path], FilmFigures], Path]:
    """Each way to read a film, with the film's path."""
    read, ending = request.param
    return read, tmp_path / f"film{ending}"


Reading = tuple[Callable[[Path], FilmFigures], Path]


def test_good_film(reading: Reading) -> None:
    """Frames, rate and clock of a film are told."""
    read, path = reading
    assert read(write_film(path)) == figures()


def test_frames_off_the_grid(reading: Reading) -> None:
    """A hole, a doubled frame and a frame between two places are refused."""
    read, path = reading
    for times, words in (
        ([*GRID[:-1], GRID[-1] + 2], "has 10 frames with a hole at frame 9"),
        ([*GRID[:-1], GRID[-1] + 1], "off the grid"),
    ):
        with pytest.raises(AssemblyError, match=rf"assembled film .*{words}.*; it is not publish"):
            read(write_film(path, times))


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".ts"])
def test_frames_one_tick_off_the_grid(tmp_path: Path, ending: str) -> None:
    """In a container with an exact clock no frame may be displayed or decoded a tick off."""
    right = [3600 * number for number in range(FRAMES)]
    wrong = [*right[:5], right[5] + 1, *right[6:]]
    words = r"up to 0\.000011 s off the grid of 25 per second"
    for pts, dts, when in ((wrong, wrong, ""), (right, wrong, ", by its decoding times")):
        early = [time - 3600 for time in dts]
        film = write_film(tmp_path / f"film{ending}", pts, early, clock=Fraction(1, 90_000))
        with pytest.raises(AssemblyError, match=words + when):
            read_figures(film, FPS)


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".ts"])
def test_decoding_times(tmp_path: Path, ending: str) -> None:
    """Decoding times one tick apart, as FFmpeg 5.1 wrote them, are refused."""
    dts = [number - 50 for number in range(FRAMES)]
    film = write_film(tmp_path / f"film{ending}", GRID, dts)
    with pytest.raises(AssemblyError, match="by its decoding times; it is not published"):
        read_figures(film, FPS)


def test_decoding_times_before_display(tmp_path: Path) -> None:
    """Frames that are decoded in another order than they are displayed in are no fault."""
    pts = [0, 4, 2, 6, 10, 8, 12, 16, 14, 18]
    film = write_film(tmp_path / "film.mp4", pts, [time - 2 for time in GRID])
    assert read_figures(film, FPS) == figures()


@pytest.mark.parametrize(
    ("codec", "samples", "ending"),
    [
        ("pcm_s16le", LENGTH, ".mov"),
        ("pcm_s16le", LENGTH, ".mkv"),
        ("aac", LENGTH + 1024, ".mp4"),
        ("aac", LENGTH + 1024, ".mkv"),
        ("aac", LENGTH + 1024, ".ts"),
    ],
)
def test_audio_of_a_film(tmp_path: Path, codec: str, samples: int, ending: str) -> None:
    """Length and rate of a film's audio are told, and whether it is PCM."""
    found = read_figures(write_film(tmp_path / f"film{ending}", samples=samples, codec=codec), FPS)
    assert found.audio is not None
    assert found.audio.rate == RATE
    assert found.audio.is_pcm is (codec != "aac")
    assert abs(found.audio.audible - samples) <= (1024 + 48 if codec == "aac" else 0)
    assert found.frames == FRAMES


@pytest.mark.parametrize("ending", [".mov", ".mkv"])
def test_several_audio_tracks(tmp_path: Path, ending: str) -> None:
    """A film has at most one audio track."""
    film = write_film(tmp_path / f"film{ending}", samples=LENGTH, audio_tracks=2)
    with pytest.raises(AssemblyError, match="has 2 audio tracks"):
        read_figures(film, FPS)


def test_film_with_fragments(tmp_path: Path) -> None:
    """An mp4 film without a plain index is read packet by packet."""
    film = write_film(tmp_path / "film.mp4", movflags="frag_keyframe+empty_moov")
    assert read_figures(film, FPS) == figures()


def with_header_length(film: Path, seconds: float) -> Path:
    """Let a film's header tell another length."""
    data = bytearray(film.read_bytes())
    if film.suffix == ".mkv":
        at = data.index(b"\x44\x89\x88") + 3  # Duration: in ms, a float of 8 bytes
        data[at : at + 8] = struct.pack(">d", seconds * 1000)
    else:
        at = data.index(b"mvhd") + 16  # timescale and duration
        scale = int.from_bytes(data[at : at + 4])
        data[at + 4 : at + 8] = round(seconds * scale).to_bytes(4)
    film.write_bytes(data)
    return film


@pytest.mark.parametrize(
    ("ending", "audio", "good", "bad"),
    [
        (".mp4", False, (0.4, 0.398, 0.402), (0.397, 0.403, 0.0, 3.0)),
        (".mkv", False, (0.4, 0.398, 0.64), (0.397, 0.66, 0.0, 3.0)),
        (".mkv", True, (0.4, 0.398, 0.64), (0.397, 0.66, 0.0)),
    ],
)
def test_length_in_the_header(
    tmp_path: Path, ending: str, audio: bool, good: tuple[float, ...], bad: tuple[float, ...]
) -> None:
    """A film whose header tells another length than its frames have is refused."""
    scale = {"movie_timescale": "1000"}
    film = write_film(tmp_path / f"film{ending}", samples=LENGTH * audio, **scale)
    for seconds in good:
        assert read_figures(with_header_length(film, seconds), FPS).frames == FRAMES
    for seconds in bad:
        words = f"a length of {seconds:.6f} s in its header, not 0.400000 s; it is not"
        with pytest.raises(AssemblyError, match=words):
            read_figures(with_header_length(film, seconds), FPS)


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".ts"])
def test_film_that_cannot_be_read(tmp_path: Path, ending: str) -> None:
    """What is no media file is no film."""
    film = tmp_path / f"film{ending}"
    film.write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(AssemblyError, match=r"assembled film .*; it is not published"):
        read_figures(film, FPS)
    if ending == ".mkv":
        with pytest.raises(AssemblyError, match="cannot be read back"):
            read_as_it_grows(film)


def test_film_without_video(tmp_path: Path) -> None:
    """A film of audio alone is none."""
    film = tmp_path / "film.mkv"
    with av.open(str(film), "w") as output:
        audio = output.add_stream("pcm_s16le", rate=RATE, layout="mono")
        silence = av.AudioFrame("s16", "mono", 4800)
        silence.sample_rate = RATE
        output.mux(audio.encode(silence))
    film.rename(tmp_path / "film.mp4")
    with pytest.raises(AssemblyError, match="has 0 video tracks, not one"):
        read_figures(tmp_path / "film.mp4", FPS)


def test_reader_waits_for_the_end_of_the_film(tmp_path: Path) -> None:
    """A film is read while it grows; `close` ends a reader that waits, and may come twice."""
    whole = write_film(tmp_path / "whole.ts").read_bytes()
    film = tmp_path / "film.ts"
    film.write_bytes(whole[: 188 * 5])
    reader = FilmReader(film, audio=False)
    reader.begin()
    reader.begin()
    time.sleep(0.1)
    with film.open("ab") as file:
        file.write(whole[188 * 5 :])
    assert reader.finish(FPS) == figures()
    reader.close()
    waiting = FilmReader(film, audio=False)
    waiting.begin()
    waiting.close()
    waiting.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "follow"]
    FilmReader(film, audio=False).close()


def test_grid_between_the_ticks_of_the_clock() -> None:
    """Where a clock has no tick for a frame, the nearest one is right; else it is not."""
    order, error = _on_grid([0, 63, 125, 188], Fraction(1, 1000), Fraction(16))
    assert (order, error) == ([0, 1, 2, 3], Fraction(1, 2000))
    with pytest.raises(MediaFault, match="off the grid of 20 per second"):
        _on_grid([0, 51, 100], Fraction(1, 1000), Fraction(20))


@pytest.mark.parametrize(
    ("dts", "words"),
    [
        ([0, None, 4], "^has frames without a decoding time$"),
        ([2, 0, 4], "^has decoding times out of order$"),
    ],
)
def test_decoding_times_that_no_decoder_takes(dts: list[int | None], words: str) -> None:
    """They are there for each frame, and rise."""
    with pytest.raises(MediaFault, match=words):
        _figures(Packets([0, 2, 4], dts, Fraction(1, 50), None), FPS)
