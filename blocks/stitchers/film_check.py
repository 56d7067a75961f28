"""Checks of a film after it is written, before it is published."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from prefect_renderfarm.blocks.errors import AssemblyError, MediaFault
from prefect_renderfarm.blocks.media.frame_grid import clock_error, frame_order
from prefect_renderfarm.blocks.media.model import Audio, open_media
from prefect_renderfarm.blocks.media.mp4_index import (
    MP4_ENDINGS,
    Mp4Index,
    NotIndexedError,
    read_mp4_index,
)
from prefect_renderfarm.blocks.media.reader import Packets, read_back
from prefect_renderfarm.blocks.media.tail import TailReader
from prefect_renderfarm.blocks.stitchers.audio_plan import AudioMode, samples_at
from prefect_renderfarm.blocks.stitchers.base import StitchReport

MATROSKA_ENDINGS = (".mkv", ".webm")
_STOP_SECONDS = 2
# Sample entries of PCM: QuickTime File Format, "Sound sample descriptions"; ISO/IEC 23003-5.
_PCM_ENTRIES = frozenset(
    {b"sowt", b"twos", b"in24", b"in32", b"fl32", b"fl64", b"lpcm", b"raw ", b"ipcm", b"fpcm"}
)


@dataclass(frozen=True)
class FilmFigures:
    """What reading a finished film has shown.

    Attributes:
        frames: Number of video frames.
        fps: Frames a second.
        clock_error: Largest distance of a frame's display time from n / fps, in seconds.
        audio: The audio track, if there is one.
    """

    frames: int
    fps: Fraction
    clock_error: Fraction
    audio: Audio | None = None

    def report(self, output: Path, chunks: int, seconds: float) -> StitchReport:
        """Return the report on a film of so many chunks that was made in so many seconds."""
        return StitchReport(
            output=output,
            frames=self.frames,
            fps=str(self.fps),
            duration=float(self.frames / self.fps),
            clock_error=float(self.clock_error),
            audio_samples=self.audio.audible if self.audio else None,
            audio_rate=self.audio.rate if self.audio else None,
            chunks=chunks,
            size=output.stat().st_size,
            seconds=seconds,
        )


def check_figures(found: FilmFigures, frames: int, chunks: int, mode: AudioMode) -> FilmFigures:
    """Compare a film's figures with the number of frames and the audio that it should have.

    Raises:
        AssemblyError: They differ.
    """
    if found.frames != frames:
        raise AssemblyError(
            f"the assembled film has {found.frames} frames, its chunks have {frames}; "
            "it is not published"
        )
    if (mode is AudioMode.NONE) != (found.audio is None):
        fault = "no audio track" if found.audio is None else "an audio track that it should not"
        raise AssemblyError(f"the assembled film has {fault}; it is not published")
    if found.audio is not None:
        expected = samples_at(frames, found.fps, found.audio.rate)
        # A chunk's PCM may be one sample off. Codecs work in packets: AAC's has 1,024 samples
        # (ISO/IEC 14496-3), Opus' up to 120 ms (RFC 6716).
        allowed = chunks if found.audio.is_pcm else max(2048, round(0.12 * found.audio.rate))
        if abs(found.audio.audible - expected) > allowed:
            raise AssemblyError(
                f"the assembled film has {found.audio.audible} audio samples for {expected} "
                "samples of video; it is not published"
            )
    return found


def read_figures(film: Path, fps: Fraction) -> FilmFigures:
    """Read the figures of a film whose frames should lie on a grid of `fps`.

    Of an mp4 or mov film the index is read, which tells time and place of every frame; of others
    every packet.

    Raises:
        AssemblyError: It cannot be read to its end, or has frames off the grid.
    """
    try:
        if film.suffix.lower() in MP4_ENDINGS:
            with suppress(NotIndexedError):  # ffmpeg's options may ask for fragments
                return _from_index(read_mp4_index(film), fps)
        return _from_packets(film, read_back(film, probe=True), fps)
    except MediaFault as fault:
        raise AssemblyError(f"the assembled film {fault}; it is not published") from None


class FilmReader:
    """Reads a film back, packet by packet, while it is written; for films without an index.

    Args:
        film: The film; its file exists.
        audio: Whether it has audio.
    """

    def __init__(self, film: Path, audio: bool) -> None:
        self._film = film
        self._file = TailReader(film)
        self._begun = self._closed = False
        self._reading: Future[Packets] = Future()
        # A daemon: it waits for more of the film, and must not keep a process from ending.
        self._thread = threading.Thread(target=self._read, args=[audio], name="follow", daemon=True)

    def begin(self) -> None:
        """Begin to read, unless it has begun. Then `close` must be called, whatever happens."""
        if not self._begun:
            self._begun = True
            self._thread.start()

    def finish(self, fps: Fraction) -> FilmFigures:
        """Return the figures of the film, which is now complete.

        Raises:
            AssemblyError: It cannot be read to its end, or has frames off the grid.
        """
        self.begin()
        self._file.finish()
        try:
            return _from_packets(self._film, self._reading.result(), fps)
        except MediaFault as fault:
            raise AssemblyError(f"the assembled film {fault}; it is not published") from None

    def close(self) -> None:
        """Stop reading, unless it has stopped."""
        self._file.finish(abandon=True)
        if self._begun:
            # An error raised by a signal may have hidden from `start` that the thread runs.
            wait([self._reading], _STOP_SECONDS)
        if self._thread.ident is not None:
            self._thread.join()
        if not self._closed:
            self._closed = True
            self._file.close()

    def _read(self, audio: bool) -> None:
        try:
            self._reading.set_result(read_back(self._file, probe=audio))
        except BaseException as error:  # raised in `finish`
            self._reading.set_exception(error)


def _from_packets(film: Path, packets: Packets, fps: Fraction) -> FilmFigures:
    figures = _figures(packets, fps)
    if film.suffix.lower() not in MATROSKA_ENDINGS:
        _check_decoding_times(packets, fps)
    else:
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
        entry = track.description[:4]
        codec = "pcm_s16le" if entry in _PCM_ENTRIES else entry.decode("latin-1")
        audio = Audio(codec, track.timescale, "", track.duration)
    packets = Packets(video.pts, video.dts, Fraction(1, video.timescale), audio)
    figures = _figures(packets, fps)
    _check_decoding_times(packets, fps)
    if not audio:
        tick = Fraction(1, index.timescale)
        _check_length(figures, index.duration * tick, 2 * tick, 2 * tick)
    return figures


def _figures(packets: Packets, fps: Fraction) -> FilmFigures:
    frames = len(frame_order(packets.pts, packets.time_base, fps))
    error = clock_error(packets.pts, packets.time_base, fps)
    if error and (1 / (packets.time_base * fps)).denominator == 1:  # the clock divides the grid
        raise MediaFault(f"has frames up to {float(error):.6f} s off the grid of {fps} per second")
    return FilmFigures(frames, fps, error, packets.audio)


def _check_decoding_times(packets: Packets, fps: Fraction) -> None:
    """Refuse a film whose frames are not decoded one by one, at intervals of 1 / fps.

    Matroska has no decoding times.
    """
    times = [time for time in packets.dts if time is not None]
    if len(times) != len(packets.pts):
        raise MediaFault("has frames without a decoding time")
    try:
        order = frame_order(times, packets.time_base, fps)
    except MediaFault as fault:
        raise MediaFault(f"{fault}, by its decoding times") from None
    if order != sorted(order):
        raise MediaFault("has decoding times out of order")


def _check_length(figures: FilmFigures, length: Fraction, less: Fraction, more: Fraction) -> None:
    """Refuse a film whose header tells another length than its frames have."""
    expected = figures.frames / figures.fps
    if not -less <= length - expected <= more:
        raise MediaFault(
            f"has a length of {float(length):.6f} s in its header, not {float(expected):.6f} s"
        )
