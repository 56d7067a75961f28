"""What is written of a film's audio: which packets, which samples, and what stands for lost ones.

The packets are made here, and go to no file.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from audio_samples import RATE, Take, hear, sweep, write_take, write_takes, write_track
from media_samples import samples_of

from prefect_renderfarm.blocks import StitchInputError
from prefect_renderfarm.blocks.media.reader import read_media
from prefect_renderfarm.blocks.stitchers.audio import (
    AudioMode,
    AudioPlan,
    CopiedPackets,
    EncodedAudio,
    FilmAudio,
    TrackAudio,
    join_audio,
    open_film_audio,
    read_track,
)

SLOW = 8000  # samples a second
FPS = Fraction(25)
CLOCK = 12  # samples in one and a half ticks of 1 ms
HOLE = 40  # samples between two packets that are none


class Output:
    """A file in which each packet that would be written is kept."""

    def __init__(self, kind: str = "mov") -> None:
        self._file = av.open(io.BytesIO(), "w", kind)
        self.format = self._file.format
        self.add_stream: Callable[..., Any] = self._file.add_stream
        self.add_stream_from_template: Callable[..., Any] = self._file.add_stream_from_template
        self.packets: list[Any] = []

    def mux(self, packets: Any) -> None:
        """Take a packet, or a list of them."""
        self.packets += packets if isinstance(packets, list) else [packets]

    def samples(self, kind: str = "i2") -> list[int]:
        """Return all samples, which follow each other without a gap in time."""
        arrays = [np.frombuffer(bytes(packet), kind) for packet in self.packets if packet.size]
        begins = np.cumsum([0, *map(len, arrays)])[:-1].tolist()
        assert [packet.pts for packet in self.packets if packet.size] == begins
        return [int(value) for array in arrays for value in array]


def template(form: str = "s16", layout: str = "mono", name: str = "pcm_s16le") -> Any:
    """Return a track of a chunk."""
    return SimpleNamespace(
        codec_context=SimpleNamespace(
            name=name, sample_rate=SLOW, format=av.AudioFormat(form), layout=av.AudioLayout(layout)
        )
    )


def encoded(output: Output, form: str = "s16", codec: str = "pcm_s16le") -> EncodedAudio:
    """Return what writes mono audio to a file."""
    file: Any = output
    return EncodedAudio(file, template(form), codec, 64_000)


def sound(at: int | None, values: list[int], kind: str = "i2", form: str = "s16") -> Any:
    """Return a packet that begins so many samples after the chunk's first frame."""
    frame: Any = av.AudioFrame.from_ndarray(np.array([values], kind), format=form, layout="mono")
    frame.sample_rate, frame.time_base, frame.pts = SLOW, Fraction(1, SLOW), at
    return SimpleNamespace(decode=lambda: [frame])


def ones(samples: int, value: int = 1) -> list[int]:
    """Return samples of one value."""
    return [value] * samples


@pytest.mark.parametrize(
    ("times", "heard"),
    [
        ([0, 100], [*ones(100), *ones(100)]),
        ([CLOCK], ones(100)),
        ([CLOCK + 1], [*ones(13, 0), *ones(100)]),
        ([-CLOCK], ones(100)),
        ([-CLOCK - 1], ones(87)),
        ([-150, -50, 50], ones(150)),
        ([-100, 0], ones(100)),
        ([0, 100 + HOLE, 200], ones(300)),
        ([0, 100 + HOLE + 1], [*ones(100), *ones(41, 0), *ones(100)]),
        ([0, 100 - HOLE, 160], ones(300)),
        # Packets are lost as a whole, and the clock may be one of 1 ms.
        ([0, 200 - CLOCK, 300], [*ones(100), *ones(100, 0), *ones(200)]),
        ([0, 200 - CLOCK - 1], [*ones(100), *ones(87, 0), *ones(100)]),
        ([0, 300 + CLOCK, 400], [*ones(100), *ones(200, 0), *ones(200)]),
        ([0, 300 + CLOCK + 1], [*ones(100), *ones(213, 0), *ones(100)]),
        ([0, None, 200], ones(300)),
        ([None, 100], ones(200)),
    ],
)  # fmt: skip
def test_samples_of_a_chunk(times: list[int | None], heard: list[int]) -> None:
    """What is before the first frame is dropped, and holes are silent, but for rounded times."""
    output = Output()
    audio = encoded(output)
    audio.begin_chunk(1000, FPS)
    for at in times:
        audio.add(sound(at, ones(100)))
    assert output.samples() == heard
    assert audio.written == len(heard)


def test_time_of_a_chunks_first_frame() -> None:
    """Audio counts from there."""
    output = Output()
    audio = encoded(output)
    audio.begin_chunk(1000, FPS)
    audio.add(sound(SLOW - 20, ones(100)), Fraction(1))
    audio.add(sound(SLOW + 180, ones(100)), Fraction(1))
    assert output.samples() == [*ones(80), *ones(100, 0), *ones(100)]


@pytest.mark.parametrize(
    ("at", "fits"),
    [(100 - HOLE - 1, False), (100 + 60 * SLOW, True), (100 + 60 * SLOW + 1, False)],
)
def test_audio_that_goes_on_elsewhere(at: int, fits: bool) -> None:
    """Packets that overlap are refused, as is a hole of over a minute; both are named."""
    audio = encoded(Output())
    audio.begin_chunk(1, FPS)
    audio.add(sound(0, ones(100)))
    if fits:
        audio.add(sound(at, ones(100)))
        return
    with pytest.raises(StitchInputError) as refused:
        audio.add(sound(at, ones(100)))
    assert str(refused.value).startswith(
        f"audio goes on at {at / SLOW:.3f} s, behind 0.013 s: write it anew, without packets"
    )


def test_chunks_are_as_long_as_their_frames() -> None:
    """One is cut, the next one begins anew, and is extended with its last sample."""
    output = Output()
    audio = encoded(output)
    audio.begin_chunk(1, FPS)
    audio.add(sound(-200, list(range(450))))
    audio.add(sound(250, ones(100, 9)))  # of which 70 samples are due
    audio.end_chunk()
    audio.begin_chunk(2, FPS)
    audio.add(sound(-20, list(range(1000, 1200))))
    assert audio.written == 500
    audio.end_chunk()
    audio.begin_chunk(3, FPS)
    audio.end_chunk()  # of a chunk that has no audio at all
    assert output.samples() == [
        *range(200, 450), *ones(70, 9), *range(1020, 1200), *ones(140, 1199), *ones(320, 1199)
    ]  # fmt: skip
    assert audio.written == audio.due == 960


def test_priming_samples_of_a_short_chunk() -> None:
    """They are dropped of this chunk, not of the next one."""
    output = Output()
    audio = encoded(output)
    audio.begin_chunk(1, FPS)
    audio.add(sound(-200, ones(100)))
    audio.end_chunk()
    audio.begin_chunk(2, FPS)
    audio.add(sound(0, ones(320, 2)))
    assert output.samples() == [*ones(320, 0), *ones(320, 2)]


@pytest.mark.parametrize(
    ("codec", "form", "kind", "silence"),
    [("pcm_s16le", "s16", "i2", 0), ("pcm_u8", "u8", "u1", 128), ("pcm_s16le", "s16p", "i2", 0)],
)
def test_silence(codec: str, form: str, kind: str, silence: int) -> None:
    """It is the middle of what a sample can be; the last sample is repeated as it is."""
    output = Output()
    audio = encoded(output, form, codec)
    audio.begin_chunk(1, FPS)
    audio.add(sound(100, list(range(1, 101)), kind, form))
    audio.end_chunk()
    assert output.samples(kind) == [*ones(100, silence), *range(1, 101), *ones(120, 100)]


@pytest.mark.parametrize("form", ["s16", "s16p"])
def test_channels_are_extended_apart(form: str) -> None:
    """Each with its own last sample, whether they lie side by side or one after the other."""
    output = Output()
    file: Any = output
    audio = EncodedAudio(file, template(form, "stereo"), "pcm_s16le", 64_000)
    audio.begin_chunk(1, FPS)
    left, right = range(1, 101), range(-100, 0)
    values = np.array([left, right], "i2")
    values = values if form == "s16p" else values.T.reshape(1, -1)
    frame: Any = av.AudioFrame.from_ndarray(np.ascontiguousarray(values), form, "stereo")
    frame.sample_rate = SLOW
    audio.add(SimpleNamespace(decode=lambda: [frame]))
    audio.end_chunk()
    found = np.concatenate([np.frombuffer(bytes(packet), "i2") for packet in output.packets])
    assert found[::2].tolist() == [*left, *ones(220, 100)]
    assert found[1::2].tolist() == [*right, *ones(220, -1)]


def test_encoders_get_no_more_than_they_take() -> None:
    """Long pieces are written as several, and what is buffered as soon as it is due."""
    output = Output()
    audio = encoded(output)
    audio.begin_chunk(1, FPS)
    audio.add(sound(0, ones(10_000)))
    assert [packet.size // 2 for packet in output.packets] == [320]
    audio.begin_chunk(30, FPS)
    assert [packet.size // 2 for packet in output.packets] == [320, 4096, 4096, 1088]
    assert output.samples() == ones(9600)


def test_encoder_is_flushed() -> None:
    """What it has kept is written at the end, at the bitrate that was asked for."""
    output = Output()
    file: Any = output
    source = template("fltp")
    audio = open_film_audio(file, source, AudioPlan(AudioMode.ENCODE, codec="aac", bitrate=48_000))
    assert audio.stream.codec_context.bit_rate == 48_000
    assert (audio.rate, audio.stream.codec_context.name) == (SLOW, "aac")
    audio.begin_chunk(25, FPS)
    audio.add(sound(0, ones(SLOW, 0), "f4", "fltp"))
    before = sum(packet.duration for packet in output.packets)
    audio.close()
    assert before < SLOW <= sum(packet.duration for packet in output.packets)


@pytest.mark.parametrize(
    ("kind", "mode", "source", "made", "codec"),
    [
        ("mov", AudioMode.COPY, "pcm_s16le", EncodedAudio, "pcm_s16le"),
        ("mov", AudioMode.ENCODE, "pcm_s16le", EncodedAudio, "aac"),
        ("mov", AudioMode.COPY, "aac", CopiedPackets, "aac"),
        ("webm", AudioMode.COPY, "pcm_s16le", None, "pcm_s16le"),
        ("webm", AudioMode.COPY, "aac", None, "aac"),
        ("webm", AudioMode.ENCODE, "pcm_s16le", None, "aac"),
    ],
)
def test_what_a_film_can_hold(
    packets: list[Any], kind: str, mode: AudioMode, source: str, made: type | None, codec: str
) -> None:
    """PCM that stays is written anew, other audio is copied; the container must know the codec."""
    file: Any = Output(kind)
    track = packets[0].stream if source == "aac" else template()
    if made is not None:
        audio = open_film_audio(file, track, AudioPlan(mode))
        assert isinstance(audio, made)
        assert audio.stream.codec_context.name == codec
        return
    with pytest.raises(StitchInputError, match=rf"^a webm film cannot hold {codec} audio: set "):
        open_film_audio(file, track, AudioPlan(mode))


@pytest.fixture(scope="module")
def packets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    """Give the packets of a second of AAC, of which each has 1,024 samples."""
    path = write_track(tmp_path_factory.mktemp("aac") / "track.mp4", RATE, Take("aac"))
    with av.open(str(path)) as container:
        yield list(container.demux(audio=0))


def copies(output: Output, packet: Any) -> CopiedPackets:
    """Return what copies packets to a file."""
    file: Any = output
    return CopiedPackets(file, packet.stream)


@pytest.mark.parametrize(
    ("fps", "written"),
    [(94, 0), (93, 1), (32, 1), (31, 2), (30, 2), (25, 2)],
)  # fmt: skip
def test_copied_packets_end_with_the_frames(packets: list[Any], fps: int, written: int) -> None:
    """One of which less than half is heard is left out: so no film drifts."""
    output = Output()
    audio = copies(output, packets[0])
    audio.begin_chunk(1, Fraction(fps))  # 510, 516, 1500, 1548, 1600 and 1920 samples
    for packet in packets[1:]:
        audio.add(packet)
    assert [bytes(each) for each in output.packets] == [
        bytes(each) for each in packets[1 : 1 + written]
    ]
    assert audio.written == 1024 * written
    times = [(each.pts, each.dts, each.duration, each.time_base) for each in output.packets]
    assert times == [(1024 * n, 1024 * n, 1024, Fraction(1, RATE)) for n in range(written)]
    assert all(each.is_keyframe for each in output.packets)
    assert all(each.stream is audio.stream for each in output.packets)


def test_half_a_packet(packets: list[Any]) -> None:
    """A packet of which just half is heard is copied."""
    for fps, written in ((Fraction(RATE, 511), 0), (Fraction(RATE, 512), 1)):
        output = Output()
        audio = copies(output, packets[0])
        audio.begin_chunk(1, fps)
        audio.add(packets[1])
        assert len(output.packets) == written


@pytest.mark.parametrize(
    ("origin", "copied"), [(0, True), (72, True), (73, False), (2000, False), (-2000, True)]
)
def test_packets_that_prime_a_decoder(packets: list[Any], origin: int, copied: bool) -> None:
    """Those before the chunk's first frame are left out; its time may be rounded to 1 ms."""
    for begin in (0, 10_240):
        packet = next(each for each in packets if each.pts == begin)
        output = Output()
        audio = copies(output, packet)
        audio.begin_chunk(25, FPS)
        audio.add(packet, Fraction(begin + origin, RATE))
        assert len(output.packets) == copied


def test_packets_without_audio_or_time(packets: list[Any]) -> None:
    """They are left out; the length of others is that of the codec's frame, or their own."""
    output = Output()
    audio = copies(output, packets[0])
    audio.begin_chunk(25, FPS)
    assert packets[-1].size == 0
    audio.add(packets[-1])
    for pts in (None, 0):
        packet: Any = av.Packet(b"sound")
        packet.time_base, packet.duration, packet.pts = Fraction(1, 1000), 20, pts
        audio._frame_size = 0  # Vorbis, for example
        audio.add(packet)
    assert [(each.pts, each.duration) for each in output.packets] == [(0, 960)]
    assert audio.written == 960


def test_audio_of_a_track(tmp_path: Path) -> None:
    """It goes on from chunk to chunk, and may lack one frame at the end, not more."""
    path = write_track(tmp_path / "track.wav", RATE, Take())
    for frames, fits in ((24, True), (25, True), (26, True), (27, False)):
        output, file = Output(), ExitStack()
        with file:
            track = TrackAudio(path, file)
            target: Any = output
            audio = open_film_audio(target, track.template, AudioPlan(AudioMode.COPY))
            for end in (1, 10):
                audio.begin_chunk(end, FPS)
                track.feed(audio, FPS)
                assert audio.written == audio.due == end * 1920
            audio.begin_chunk(frames, FPS)
            if not fits:
                with pytest.raises(
                    StitchInputError, match=r"track\.wav' is at least 0\.080 s shorter"
                ):
                    track.feed(audio, FPS)
                continue
            track.feed(audio, FPS)
        heard = np.concatenate([np.frombuffer(bytes(each), "i2") for each in output.packets])
        wanted = np.round(sweep(0, RATE) * 32768).T.reshape(-1)
        wanted = np.concatenate([wanted, *[wanted[-2:]] * 1920])[: frames * 2 * 1920]
        assert len(heard) == len(wanted)
        assert np.abs(heard - wanted).max() <= 1


def test_audio_that_only_takes_packets() -> None:
    """A way to write audio needs to do nothing at the end of a chunk, or of the film."""

    class Silent(FilmAudio):
        def add(self, packet: Any, origin: Fraction = Fraction(0)) -> None:
            self.written = self.due

    file: Any = Output()
    audio = Silent(file, None, RATE)
    audio.begin_chunk(25, FPS)
    audio.add(None)
    audio.end_chunk()
    audio.close()
    assert (audio.written, audio.due) == (RATE, RATE)


def test_last_sample_of_a_track(tmp_path: Path) -> None:
    """A track that lacks a single sample is extended, too."""
    path = write_track(tmp_path / "track.wav", 4800, Take())
    with ExitStack() as stack:
        track = TrackAudio(path, stack)
        target: Any = Output()
        audio = open_film_audio(target, track.template, AudioPlan(AudioMode.COPY))
        audio.begin_chunk(1, Fraction(RATE, 4801))
        track.feed(audio, FPS)
        assert audio.written == 4801


@pytest.mark.parametrize("ending", [".mkv", ".ts"])
def test_track_beside_pictures(tmp_path: Path, ending: str) -> None:
    """The audio of a video can be the track; it counts from the file's begin."""
    path = write_take(tmp_path / f"track{ending}", 0, 10, Take("aac", ending, FPS, "mpeg4"))
    output = Output()
    with ExitStack() as stack:
        track = TrackAudio(path, stack)
        target: Any = output
        plan = AudioPlan(AudioMode.ENCODE, codec="pcm_s16le")
        audio = open_film_audio(target, track.template, plan)
        audio.begin_chunk(10, FPS)
        track.feed(audio, FPS)
    heard = np.concatenate([np.frombuffer(bytes(each), "i2")[::2] for each in output.packets])
    assert len(heard) == 10 * 1920
    assert np.abs(heard[2000:4000]).max() > 15_000


def test_track_that_is_not_there(tmp_path: Path) -> None:
    """The message names it."""
    path = tmp_path / "missing.wav"
    with pytest.raises(StitchInputError, match=rf"^audio track '{path}' does not exist$"):
        read_track(path)


@pytest.mark.parametrize(
    ("codec", "ending", "mode", "joined"),
    [
        ("pcm_s24le", ".mov", AudioMode.COPY, "pcm_s24le"),
        ("pcm_s24le", ".mov", AudioMode.ENCODE, "pcm_s24le"),
        ("aac", ".ts", AudioMode.ENCODE, "pcm_f32le"),
        ("aac", ".mov", AudioMode.COPY, "aac"),
    ],
)
def test_audio_in_a_file_of_its_own(
    tmp_path: Path, codec: str, ending: str, mode: AudioMode, joined: str
) -> None:
    """PCM stays, other audio becomes PCM unless it is copied; it is as long as the frames."""
    take, counts = Take(codec, ending, fps=FPS, codec="mpeg4"), (3, 5)
    paths = write_takes(tmp_path / "chunks", take, counts)
    chunks = [read_media(path, FPS) for path in paths]
    film = tmp_path / "audio.mkv"
    join_audio(chunks, AudioPlan(mode, chunks[0].audio), film)
    with av.open(str(film)) as container:
        assert container.streams.audio[0].codec_context.name == joined
    parts = [
        hear(path).samples[:, : 1920 * count] for path, count in zip(paths, counts, strict=True)
    ]
    found, wanted = samples_of(film), np.concatenate(parts, axis=1) * 32768
    if joined == "aac":
        assert abs(found.shape[1] - wanted.shape[1]) <= 1024
    else:
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 1


def test_track_in_a_file_of_its_own(tmp_path: Path) -> None:
    """It lasts as long as the frames, though it lacks half of one."""
    take = Take(None, ".mov", fps=FPS, codec="mpeg4")
    chunks = [read_media(path, FPS) for path in write_takes(tmp_path / "chunks", take, (3, 5))]
    track = write_track(tmp_path / "track.wav", 15 * 960, Take())
    film = tmp_path / "audio.mkv"
    join_audio(chunks, AudioPlan(AudioMode.COPY, read_track(track), track), film)
    found, wanted = samples_of(film), sweep(0, 15 * 960) * 32768
    assert found.shape == (2, 8 * 1920)
    assert np.abs(found[:, : 15 * 960] - wanted).max() <= 1
    assert (found[:, 15 * 960 :] == found[:, 15 * 960 - 1 : 15 * 960]).all()
