"""Checks of a film after it is written, before it is published."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from prefect_renderfarm.blocks.errors import AssemblyError, MediaFault
from prefect_renderfarm.blocks.media.frame_grid import frame_order
from prefect_renderfarm.blocks.media.model import Audio
from prefect_renderfarm.blocks.media.mp4_index import (
    MP4_ENDINGS,
    Mp4Index,
    NotIndexedError,
    read_mp4_index,
)
from prefect_renderfarm.blocks.media.reader import Packets, open_media, read_back
from prefect_renderfarm.blocks.stitchers.audio import CLOCK_SECONDS, AudioMode, samples_at

_MOST_REORDERED = 17  # frames: ITU-T H.264, A.3.1, and H.265, A.4.2, allow 16
MATROSKA_ENDINGS = (".mkv", ".webm")
_POLL_SECONDS = 0.02
_STOP_SECONDS = 2
# Sample entries of PCM: QuickTime File Format, "Sound sample descriptions"; ISO/IEC 23003-5.
_PCM_ENTRIES = frozenset(
    {b"sowt", b"twos", b"in24", b"in32", b"fl32", b"fl64", b"lpcm", b"raw ", b"ipcm", b"fpcm"}
)


@dataclass(frozen=True)
class FilmFigures:
    """What reading a finished film has shown."""

    frames: int
    fps: Fraction
    clock_error: Fraction  # largest distance of a frame's display time from n / fps, in seconds
    audio: Audio | None = None


def check_figures(found: FilmFigures, frames: int, chunks: int, mode: AudioMode) -> FilmFigures:
    """Compare a film's figures with the number of frames and the audio that it should have."""
    with refusing_faults():
        if found.frames != frames:
            raise MediaFault(f"has {found.frames} frames, its chunks have {frames}")
        if (audio := found.audio) is None:
            if mode is not AudioMode.NONE:
                raise MediaFault("has no audio track")
            return found
        if mode is AudioMode.NONE:
            raise MediaFault("has an audio track that it should not")
        expected = samples_at(frames, found.fps, audio.rate)
        # A chunk's PCM may be one sample off. Codecs work in packets: AAC's has 1,024 samples
        # (ISO/IEC 14496-3), Opus' up to 120 ms (RFC 6716).
        allowed = chunks if audio.is_pcm else max(2048, round(0.12 * audio.rate))
        if abs(audio.audible - expected) > allowed:
            raise MediaFault(f"has {audio.audible} audio samples for {expected} samples of video")
        if audio.start > CLOCK_SECONDS:
            late = float(audio.start) * 1000
            raise MediaFault(f"has audio that begins {late:.1f} ms after its first frame")
    return found


def read_figures(film: Path, fps: Fraction) -> FilmFigures:
    """Read a film's index, else every packet; AssemblyError if frames are off a grid of `fps`."""
    with refusing_faults():
        if film.suffix.lower() in MP4_ENDINGS:
            with suppress(NotIndexedError):  # ffmpeg's options may ask for fragments
                return _from_index(read_mp4_index(film), fps)
        return _from_packets(film, read_back(film, probe=True), fps)


@contextmanager
def refusing_faults() -> Iterator[None]:
    """Turn a fault of a film into an AssemblyError: the film is not published."""
    try:
        yield
    except MediaFault as fault:
        raise AssemblyError(f"the assembled film {fault}; it is not published") from None


class FilmReader:
    """Reads a film back, packet by packet, while it is written; for films without an index.

    It has no `seek`, so libav reads from it as from a pipe, from front to back.
    """

    def __init__(self, film: Path, audio: bool) -> None:
        self.name = film.name
        self._film = film
        self._file = film.open("rb", buffering=0)
        self._complete = threading.Event()
        self._begun = self._abandoned = False
        self._reading: Future[Packets] = Future()
        # A daemon: it waits for more of the film, and must not keep a process from ending.
        self._thread = threading.Thread(target=self._run, args=[audio], name="follow", daemon=True)

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; wait at the end, unless the film is complete."""
        while not self._abandoned:
            complete = self._complete.is_set()  # first: what is written later is read, too
            data = self._file.read(size)
            if data or complete:
                return data
            self._complete.wait(_POLL_SECONDS)
        return b""

    def begin(self) -> None:
        """Begin to read, unless it has begun. Then `close` must be called, whatever happens."""
        if not self._begun:
            self._begun = True
            self._thread.start()

    def finish(self, fps: Fraction) -> FilmFigures:
        """Return the figures of the film, which is now complete, as `read_figures` does."""
        self.begin()
        self._complete.set()
        with refusing_faults():
            return _from_packets(self._film, self._reading.result(), fps)

    def close(self) -> None:
        """Stop reading, unless it has stopped."""
        self._abandoned = True
        self._complete.set()
        if self._begun:
            # An error raised by a signal may have hidden from `start` that the thread runs.
            wait([self._reading], _STOP_SECONDS)
        if self._thread.ident is not None:
            self._thread.join()
        self._file.close()

    def _run(self, audio: bool) -> None:
        try:
            self._reading.set_result(read_back(self, probe=audio))
        except BaseException as error:  # raised in `finish`
            self._reading.set_exception(error)


def _from_packets(film: Path, packets: Packets, fps: Fraction) -> FilmFigures:
    matroska = film.suffix.lower() in MATROSKA_ENDINGS  # which has no decoding times
    figures = _figures(packets, fps, decoding=not matroska)
    if matroska:
        # The header is written last. Audio may be longer than the video by a packet, and the clock
        # is one of 1 ms.
        with open_media(film, probe=False) as container:
            length = Fraction(container.duration or 0, 1_000_000)
        _check_length(figures, length, Fraction(1, 500), Fraction(1, 4))
    return figures


def _from_index(index: Mp4Index, fps: Fraction) -> FilmFigures:
    videos = [track for track in index.tracks if track.kind == "vide"]
    audios = [track for track in index.tracks if track.kind == "soun"]
    if len(videos) != 1 or len(audios) > 1:
        raise NotIndexedError("other tracks than one of video and one of audio")
    video, audio = videos[0], None
    for track in audios:
        codec = "pcm_s16le" if track.description[:4] in _PCM_ENTRIES else "compressed"
        audio = Audio(codec, track.timescale, "", track.duration)
    packets = Packets(video.pts, video.dts, Fraction(1, video.timescale), audio)
    figures = _figures(packets, fps)
    # Frames of which decoding begins early lengthen the track, before its first picture.
    tick, early = Fraction(1, video.timescale), _MOST_REORDERED / fps
    _check_length(figures, video.duration * tick, 1 / fps, early)
    if not audio:
        tick = Fraction(1, index.timescale)
        _check_length(figures, index.duration * tick, 2 * tick, 2 * tick)
    return figures


def _figures(packets: Packets, fps: Fraction, *, decoding: bool = True) -> FilmFigures:
    """Check that the frames are displayed, and decoded one by one, at intervals of 1 / fps."""
    order, error = _on_grid(packets.pts, packets.time_base, fps)
    if decoding:
        times = [time for time in packets.dts if time is not None]
        if len(times) != len(order):
            raise MediaFault("has frames without a decoding time")
        try:
            decoded, _ = _on_grid(times, packets.time_base, fps)
        except MediaFault as fault:
            raise MediaFault(f"{fault}, by its decoding times") from None
        if decoded != sorted(decoded):
            raise MediaFault("has decoding times out of order")
    return FilmFigures(len(order), fps, error, packets.audio)


def _on_grid(times: Sequence[int], clock: Fraction, fps: Fraction) -> tuple[list[int], Fraction]:
    """Return each frame's number, and the largest distance from the grid in seconds."""
    order, error = frame_order(times, clock, fps)
    if error and (1 / (clock * fps)).denominator == 1:  # the clock divides the grid
        raise MediaFault(f"has frames up to {float(error):.6f} s off the grid of {fps} per second")
    return order, error


def _check_length(figures: FilmFigures, length: Fraction, less: Fraction, more: Fraction) -> None:
    """Refuse a film whose header tells another length than its frames have."""
    expected = figures.frames / figures.fps
    if not -less <= length - expected <= more:
        raise MediaFault(
            f"has a length of {float(length):.6f} s in its header, not {float(expected):.6f} s"
        )
