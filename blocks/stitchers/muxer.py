"""The muxer of a film: appends chunks by copying packets onto an exact frame grid."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import av.container

from prefect_renderfarm.blocks.errors import AssemblyError, StitchInputError
from prefect_renderfarm.blocks.media.frame_grid import ticks_of
from prefect_renderfarm.blocks.media.frame_rate import exact
from prefect_renderfarm.blocks.media.model import Media, open_media
from prefect_renderfarm.blocks.media.mp4_index import MP4_ENDINGS, Track, read_samples
from prefect_renderfarm.blocks.media.tail import BackgroundFlush
from prefect_renderfarm.blocks.stitchers.audio import FilmAudio, TrackAudio, open_film_audio
from prefect_renderfarm.blocks.stitchers.audio_plan import AudioMode, AudioPlan, codec_for
from prefect_renderfarm.blocks.stitchers.film_check import (
    MATROSKA_ENDINGS,
    FilmFigures,
    FilmReader,
    read_figures,
)

# Video with a stream type in ISO/IEC 13818-1, table 2-34, or in use for one of the private ones.
_IN_TS = frozenset(
    {"mpeg1video", "mpeg2video", "mpeg4", "h264", "hevc", "vvc", "cavs", "avs2", "avs3", "vc1"}
    | {"dirac", "jpegxs"}
)


def check_container(film: Path, codec: str) -> None:
    """Refuse video that libav would write into a film as private data, which nothing can play.

    Raises:
        StitchInputError: The film's container cannot hold the codec.
    """
    if film.suffix.lower() == ".ts" and codec not in _IN_TS:
        raise StitchInputError(_cannot_hold(film, f"{codec} video"))


def _cannot_hold(film: Path, content: str) -> str:
    return (
        f"a {film.suffix} film cannot hold {content}: let the film's name end in .mkv, or have "
        "it encoded by an ffmpeg-stitcher with a 'video_codec'"
    )


def muxer_options(
    film: Path, fps: Fraction, faststart: bool, total_frames: int | None
) -> dict[str, str]:
    """Return the options of a film's muxer that keep its clock exact, and put its index first."""
    ending = film.suffix.lower()
    if ending in MP4_ENDINGS:
        clock = {"movie_timescale": str(fps.numerator)}
        return clock | _faststart_options(fps, total_frames) if faststart else clock
    if ending in MATROSKA_ENDINGS:
        # Matroska stores display times only: negative decoding times are no reason to shift them.
        return {"avoid_negative_ts": "disabled"}
    return {}


def _faststart_options(fps: Fraction, total_frames: int | None) -> dict[str, str]:
    """Return the mp4 muxer's options that put the index first.

    If the length of the film is known, space is reserved for the index, so that the film need not
    be moved afterwards: a frame or an audio packet takes at most a size (4 bytes), an offset (8), a
    run of offsets (12), of decoding times (8) and of display times (8), and a key frame (4); codecs
    have no more than 100 audio packets a second, FLAC and PCM included.
    """
    if total_frames is None:
        return {"movflags": "+faststart"}
    entries = total_frames + round(100 * total_frames / fps)
    return {"moov_size": str(65_536 + 44 * entries)}


@dataclass(frozen=True)
class FilmOptions:
    """How a film is written.

    Attributes:
        audio_codec: FFmpeg's name of the codec to encode audio with; None: by the film's ending.
        audio_bitrate: Bits a second of encoded audio.
        faststart: Put the index of an mp4 or mov film first.
    """

    audio_codec: str | None = None
    audio_bitrate: int = 192_000
    faststart: bool = False


class FilmMuxer:
    """Writes a film, chunk after chunk; end with `close` or `abandon`.

    Args:
        film: The file to write.
        first: The first chunk; all others are coded in the same way.
        audio: The plan for the audio.
        options: How the film is written.
        reorder: Number of packets by which decoding runs ahead of display, in any chunk.
        total_frames: Length of the film, for the space that fast start reserves; None: unknown.
    """

    def __init__(
        self,
        film: Path,
        first: Media,
        audio: AudioPlan,
        options: FilmOptions,
        reorder: int,
        total_frames: int | None,
    ) -> None:
        self.frames = 0
        self._written = 0
        self.reorder = reorder
        self._fps = first.fps
        self._second = math.ceil(first.fps)  # in frames
        self._audio: FilmAudio | None = None
        self._track: TrackAudio | None = None
        self._film = film
        self._reader: FilmReader | None = None
        self._stack = ExitStack()
        with writing(film), ExitStack() as opening, open_media(first.path) as template:
            wanted = muxer_options(film, first.fps, options.faststart, total_frames)
            output = opening.enter_context(av.open(str(film), "w", container_options=wanted))
            codec = str(first.signature["codec"])
            check_container(film, codec)
            with _refusing(film, f"{codec} video"):
                video = template.streams.video[0]
                # Opaque: AV1 has no encoder of that name to look up.
                self._video: Any = output.add_stream_from_template(video, opaque=True)
            self._video.time_base = 1 / first.fps
            if audio.mode is not AudioMode.NONE:
                if audio.track is not None:
                    self._track = TrackAudio(audio.track, opening)
                source = self._track.template if self._track else template.streams.audio[0]
                encoder = codec_for(options.audio_codec, film)
                self._audio = open_film_audio(
                    output, source, audio.mode, encoder, options.audio_bitrate
                )
            with _refusing(film, f"{codec} video{' with this audio' if self._audio else ''}"):
                output.start_encoding()
            # The header has fixed the film's clock.
            self._ticks = ticks_of(exact(self._video.time_base), first.fps)
            self._output = output
            self._flush = BackgroundFlush(film)
            opening.callback(self._flush.close)
            if film.suffix.lower() not in MP4_ENDINGS:
                self._reader = FilmReader(film, audio=self._audio is not None)
            self._stack = opening.pop_all()

    def append(self, chunk: Media) -> None:
        """Copy a chunk's packets to the film, its first frame behind the last one so far.

        The time of a frame is its number / fps, to the tick of the film. Decoding order must never
        run behind display order, so decoding starts `reorder` frames before the first display.

        Raises:
            AssemblyError: The chunk has changed since it was checked.
        """
        if self._reader is not None:
            self._reader.begin()
        if self._audio is not None and self._track is None:
            self._audio.begin_chunk(self.frames + chunk.frames, self._fps)
        if chunk.mp4_track is not None:
            seen = self._copy_samples(chunk, chunk.mp4_track)
        else:
            seen = self._copy_packets(chunk)
        if self._audio is not None and self._track is None:
            self._audio.end_chunk()
        if seen != set(range(chunk.frames)):
            raise AssemblyError(
                f"chunk file {str(chunk.path)!r} has other frames than when it was checked"
            )
        self.frames += chunk.frames
        self._flush.grown(self._written)

    def close(self) -> FilmFigures:
        """Write the end of the film, close it, read it back, and return its figures.

        Raises:
            AssemblyError: It is not a complete film.
        """
        if self._audio is not None:
            self._audio.close()
        self._stack.close()
        if self._reader is None:
            return read_figures(self._film, self._fps)
        figures = self._reader.finish(self._fps)
        self._reader.close()
        return figures

    def abandon(self) -> None:
        """Close the film; it is not to be used."""
        with suppress(av.FFmpegError, OSError):
            self._stack.close()
        if self._reader is not None:
            self._reader.close()

    @property
    def size(self) -> int:
        """Size of the film so far, in bytes."""
        return self._film.stat().st_size

    def _feed_track(self, number: int, frames: int) -> None:
        """Before packet `number` of a chunk: write the track's audio of the next second.

        Players need audio and video side by side, and libav's muxers wait no longer than 10 s for
        the other one (`max_interleave_delta` of libavformat).
        """
        if self._track is None or self._audio is None or number % self._second:
            return
        until = self.frames + min(number + self._second, frames)
        self._audio.begin_chunk(until, self._fps)
        self._track.feed(self._audio, self._fps)

    def _copy_samples(self, chunk: Media, track: Track) -> set[int]:
        """Copy the frames that an mp4 index lists, without a demuxer.

        Raises:
            AssemblyError: The file has become shorter.
        """
        step = Fraction(track.timescale) / self._fps
        above, below = step.denominator, step.numerator
        keyframes = track.keyframes
        seen = set()
        with chunk.path.open("rb", buffering=0) as file:
            for number, (data, time) in enumerate(
                zip(read_samples(file.fileno(), track), track.pts, strict=True)
            ):
                self._feed_track(number, chunk.frames)
                packet = av.Packet(cast(bytes, data))
                packet.is_keyframe = keyframes is None or number in keyframes
                frame = (2 * time * above + below) // (2 * below)
                self._mux(packet, frame, number)
                seen.add(frame)
        self._written += sum(track.sizes)
        return seen

    def _copy_packets(self, chunk: Media) -> set[int]:
        audio = self._audio if self._track is None else None
        seen: set[int] = set()
        with open_media(chunk.path, probe=audio is not None) as container:
            source: Any = container.streams.video[0]
            origin = chunk.first_time * source.time_base
            for packet in container.demux(source, *(container.streams.audio if audio else ())):
                if packet.stream_index != source.index:
                    if audio is not None:
                        audio.add(packet, origin)
                    continue
                if packet.size == 0:
                    continue
                self._feed_track(len(seen), chunk.frames)
                assert packet.pts is not None  # noqa: S101 -- checked before assembly
                frame = round((packet.pts - chunk.first_time) * source.time_base * self._fps)
                self._written += packet.size
                self._mux(packet, frame, len(seen))
                seen.add(frame)
        return seen

    def _mux(self, packet: Any, frame: int, number: int) -> None:
        """Write a packet: frame `frame` of its chunk in display, `number` in decoding order."""
        packet.stream = self._video
        packet.time_base = self._video.time_base
        packet.pts = self._ticks(self.frames + frame)
        packet.dts = self._ticks(self.frames - self.reorder + number)
        # To the tick at which the next frame begins: so the length of the film is exact.
        packet.duration = self._ticks(self.frames + frame + 1) - packet.pts
        self._output.mux_one(packet)


@contextmanager
def writing(film: Path) -> Iterator[None]:
    """Turn libav's errors into an OSError if the disk is the cause, else into our own."""
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, OSError) and error.errno and error.errno != errno.EINVAL:
            raise OSError(error.errno, error.strerror) from error
        raise AssemblyError(f"film {film.name!r} cannot be written: {error}") from error


@contextmanager
def _refusing(film: Path, content: str) -> Iterator[None]:
    """Explain the error with which libav refuses a codec, or the header of the whole film.

    Raises:
        StitchInputError: The film's container cannot hold the content.
    """
    try:
        yield
    except (ValueError, av.error.PatchWelcomeError):
        raise StitchInputError(_cannot_hold(film, content)) from None
