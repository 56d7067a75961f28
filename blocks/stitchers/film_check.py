"""Checks of a film after it is written, before it takes its name."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from prefect_renderfarm.blocks.errors import AssemblyError, MediaFault
from prefect_renderfarm.blocks.media.frame_grid import clock_error, frame_order
from prefect_renderfarm.blocks.media.model import Media, Sound, open_media
from prefect_renderfarm.blocks.media.mp4_index import (
    MP4_ENDINGS,
    Mp4Index,
    NotIndexedError,
    read_mp4_index,
)
from prefect_renderfarm.blocks.media.reader import read_growing, read_media
from prefect_renderfarm.blocks.media.tail import FileTail
from prefect_renderfarm.blocks.stitchers.audio_plan import SoundMode, samples_at
from prefect_renderfarm.blocks.stitchers.base import StitchReport

_PATIENCE_SECONDS = 2
MATROSKA_ENDINGS = (".mkv", ".webm")


@dataclass(frozen=True)
class FilmFigures:
    """What a finished film was found to be.

    Attributes:
        frames: Number of video frames.
        fps: Frames a second.
        clock_error: Largest distance of a frame's display time from n / fps, in seconds.
        audio_samples: Length of the sound in samples, from the first frame on; None: none.
        audio_rate: Samples a second.
        pcm: Whether the sound is PCM.
    """

    frames: int
    fps: Fraction
    clock_error: Fraction
    audio_samples: int | None = None
    audio_rate: int | None = None
    pcm: bool = False

    def report(self, output: Path, chunks: int, seconds: float) -> StitchReport:
        """Return the report on a film that was made of so many chunks in so many seconds."""
        return StitchReport(
            output=output,
            frames=self.frames,
            fps=str(self.fps),
            duration=float(self.frames / self.fps),
            clock_error=float(self.clock_error),
            audio_samples=self.audio_samples,
            audio_rate=self.audio_rate,
            chunks=chunks,
            size=output.stat().st_size,
            seconds=seconds,
        )


def check_film(film: Path, chunks: Sequence[Media], sound: SoundMode) -> FilmFigures:
    """Read a new film back: the sum of the frames, a uniform clock, the length of the sound.

    Of an mp4 or mov film the index is read, which tells when and where every frame is; of others
    every packet.

    Raises:
        AssemblyError: It is not what the chunks should have become.
    """
    frames, fps = sum(chunk.frames for chunk in chunks), chunks[0].fps
    return check_figures(read_figures(film, fps), frames, len(chunks), sound)


def check_figures(made: FilmFigures, frames: int, chunks: int, sound: SoundMode) -> FilmFigures:
    """Hold a film's figures to the number of frames and the sound it should have.

    Raises:
        AssemblyError: They differ.
    """
    if made.frames != frames:
        raise AssemblyError(
            f"the assembled film has {made.frames} frames, its chunks have {frames}; "
            "it is not published"
        )
    if (sound is SoundMode.NONE) != (made.audio_samples is None):
        raise AssemblyError("the assembled film's sound is missing or not wanted; not published")
    if made.audio_samples is not None and made.audio_rate is not None:
        due = samples_at(frames, made.fps, made.audio_rate)
        # A chunk's PCM may be one sample off. Codecs work in packets: AAC's has 1,024 samples
        # (ISO/IEC 14496-3), Opus' up to 120 ms (RFC 6716).
        allowed = chunks if made.pcm else max(2048, round(0.12 * made.audio_rate))
        if abs(made.audio_samples - due) > allowed:
            raise AssemblyError(
                f"the assembled film has {made.audio_samples} audio samples for {due} samples of "
                "video; it is not published"
            )
    return made


def read_figures(film: Path, fps: Fraction) -> FilmFigures:
    """Read the figures of a film whose frames should lie on a grid of `fps`.

    Raises:
        AssemblyError: It cannot be read to its end, or has frames off the grid.
    """
    try:
        if film.suffix.lower() in MP4_ENDINGS:
            try:
                return _from_index(read_mp4_index(film), fps)
            except NotIndexedError:
                pass  # written by ffmpeg with options of the user's, such as fragments
        media = read_media(film, fps)
        _check_header(film, media.frames / media.fps)
    except MediaFault as fault:
        raise AssemblyError(f"the assembled film {fault}; it is not published") from None
    sound = media.sound
    return FilmFigures(
        media.frames,
        media.fps,
        media.clock_error,
        sound.heard if sound else None,
        sound.rate if sound else None,
        sound.is_pcm if sound else False,
    )


class FilmFollower:
    """Reads a film back, packet by packet, while it is written; for films without an index.

    Args:
        film: The film; it has been begun.
        sound: Whether it has sound.
    """

    def __init__(self, film: Path, sound: bool) -> None:
        self._film = film
        self._file = FileTail(film)
        self._begun = self._closed = False
        self._reading: Future[tuple[list[int], Fraction, Sound | None]] = Future()
        # A daemon: it waits for more of the film, and may hold up the end of no process.
        self._thread = threading.Thread(target=self._read, args=[sound], name="follow", daemon=True)

    def begin(self) -> None:
        """Begin to read, if it has not begun. Then `close` must be called, whatever happens."""
        if not self._begun:
            self._begun = True
            self._thread.start()

    def finish(self, fps: Fraction) -> FilmFigures:
        """Return the figures of the film, which is now whole.

        Raises:
            AssemblyError: It cannot be read to its end, or has frames off the grid.
        """
        self.begin()
        self._file.finish()
        try:
            times, time_base, sound = self._reading.result()
            frames = len(frame_order(times, time_base, fps))
            _check_header(self._film, frames / fps)
        except MediaFault as fault:
            raise AssemblyError(f"the assembled film {fault}; it is not published") from None
        figures = FilmFigures(frames, fps, clock_error(times, time_base, fps))
        if sound is None:
            return figures
        return replace(figures, audio_samples=sound.heard, audio_rate=sound.rate, pcm=sound.is_pcm)

    def close(self) -> None:
        """Stop reading, if it has not been stopped."""
        self._file.finish(abandon=True)
        if self._begun:
            # What a signal raises may have kept `start` from telling that the thread runs.
            wait([self._reading], _PATIENCE_SECONDS)
        if self._thread.ident is not None:
            self._thread.join()
        if not self._closed:
            self._closed = True
            self._file.close()

    def _read(self, sound: bool) -> None:
        try:
            self._reading.set_result(read_growing(self._file, probe=sound))
        except BaseException as error:  # raised where the result is asked for
            self._reading.set_exception(error)


def _check_header(film: Path, seconds: Fraction) -> None:
    """Matroska tells its length in front, which is written last."""
    if film.suffix.lower() not in MATROSKA_ENDINGS:
        return
    with open_media(film, probe=False) as container:
        told = Fraction(container.duration or 0, 1_000_000)
    # Sound may be longer than the picture by a packet, and the clock is one of 1 ms.
    if not -Fraction(1, 500) <= told - seconds <= Fraction(1, 4):
        raise MediaFault(f"lasts {float(told):.3f} s by its header, not {float(seconds):.3f} s")


def _from_index(index: Mp4Index, fps: Fraction) -> FilmFigures:
    videos = [track for track in index.tracks if track.kind == "vide"]
    sounds = [track for track in index.tracks if track.kind == "soun"]
    if len(videos) != 1 or len(sounds) > 1:
        raise NotIndexedError("other tracks than one of video and one of audio")
    video = videos[0]
    clock = Fraction(1, video.timescale)
    frames = len(frame_order(video.pts, clock, fps))
    error = clock_error(video.pts, clock, fps)
    length = Fraction(index.duration, index.timescale)
    if not sounds and abs(length - frames / fps) > Fraction(2, index.timescale):
        raise MediaFault(
            f"lasts {float(length):.6f} s by its header, not {float(frames / fps):.6f} s"
        )
    if not sounds:
        return FilmFigures(frames, fps, error)
    sound = sounds[0]
    pcm = sound.description[:4] in _PCM_ENTRIES
    return FilmFigures(frames, fps, error, sound.duration, sound.timescale, pcm)


# Sample entries of PCM: QuickTime File Format, "Sound sample descriptions"; ISO/IEC 23003-5.
_PCM_ENTRIES = frozenset(
    {b"sowt", b"twos", b"in24", b"in32", b"fl32", b"fl64", b"lpcm", b"raw ", b"ipcm", b"fpcm"}
)
