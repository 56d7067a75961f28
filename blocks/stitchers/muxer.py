"""The one place that appends chunks to a film: packets copied onto an exact frame grid."""

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
from prefect_renderfarm.blocks.media.tail import SteadyFlush
from prefect_renderfarm.blocks.stitchers.audio import FilmSound, TrackSound, open_film_sound
from prefect_renderfarm.blocks.stitchers.audio_plan import SoundMode, SoundPlan, sound_codec
from prefect_renderfarm.blocks.stitchers.film_check import (
    MATROSKA_ENDINGS,
    FilmFigures,
    FilmFollower,
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
        StitchInputError: The film's container has no place for the codec.
    """
    if film.suffix.lower() == ".ts" and codec not in _IN_TS:
        raise StitchInputError(container_refuses(film, f"{codec} video"))


def container_refuses(film: Path, held: str) -> str:
    """Say that a film's container has no place for something, and what to do."""
    return (
        f"a {film.suffix} film cannot hold {held}: let the film's name end in .mkv, or have "
        "it encoded anew by an ffmpeg-stitcher with a 'video_codec'"
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
        # Matroska stores display times only: decoding times below 0 are no reason to move them.
        return {"avoid_negative_ts": "disabled"}
    return {}


def _faststart_options(fps: Fraction, total_frames: int | None) -> dict[str, str]:
    """Return the mp4 muxer's options that put the index first.

    With the length of the film known, a place is kept for the index, so that the film need not be
    moved afterwards: per frame and per audio packet it holds at most a size (4 bytes), an offset
    (8), a run of offsets (12), of decoding times (8) and of display times (8), and a key frame (4);
    codecs have no more than 100 audio packets a second, FLAC and PCM included.
    """
    if total_frames is None:
        return {"movflags": "+faststart"}
    entries = total_frames + round(100 * total_frames / fps)
    return {"moov_size": str(65_536 + 44 * entries)}


@dataclass(frozen=True)
class FilmOptions:
    """How a film is written.

    Attributes:
        audio_codec: FFmpeg's name of the codec to encode sound with; None: by the film's ending.
        audio_bitrate: Bits a second to encode sound with.
        faststart: Put the index of an mp4 or mov film first.
    """

    audio_codec: str | None = None
    audio_bitrate: int = 192_000
    faststart: bool = False


class FilmWriter:
    """Writes a film, chunk after chunk. Use it as a context; leaving it well finishes the film.

    Args:
        film: The file to write.
        first: The first chunk; all others are coded in the same way.
        sound: What becomes of the sound.
        options: How the film is written.
        reorder: Number of packets by which decoding runs ahead of display, in any chunk.
        total_frames: Length of the film, for the place that fast start keeps; None: not known.
    """

    def __init__(
        self,
        film: Path,
        first: Media,
        sound: SoundPlan,
        options: FilmOptions,
        reorder: int,
        total_frames: int | None,
    ) -> None:
        self.frames = 0
        self._written = 0
        self.reorder = reorder
        self._fps = first.fps
        self._second = math.ceil(first.fps)  # in frames
        self._sound: FilmSound | None = None
        self._track: TrackSound | None = None
        self._film = film
        self._follower: FilmFollower | None = None
        self._stack = ExitStack()
        with writing(film), ExitStack() as opening, open_media(first.path) as template:
            wanted = muxer_options(film, first.fps, options.faststart, total_frames)
            output = opening.enter_context(av.open(str(film), "w", container_options=wanted))
            codec = str(first.signature["codec"])
            check_container(film, codec)
            with _refusing(film, f"{codec} video"):
                pictures = template.streams.video[0]
                # Opaque: AV1 has no encoder of that name to look up.
                self._video: Any = output.add_stream_from_template(pictures, opaque=True)
            self._video.time_base = 1 / first.fps
            if sound.mode is not SoundMode.NONE:
                if sound.track is not None:
                    self._track = TrackSound(sound.track, opening)
                source = self._track.template if self._track else template.streams.audio[0]
                encoder = sound_codec(options.audio_codec, film)
                self._sound = open_film_sound(
                    output, source, sound.mode, encoder, options.audio_bitrate
                )
            with _refusing(film, f"{codec} video{' with this sound' if self._sound else ''}"):
                output.start_encoding()
            # The header has settled the film's clock.
            self._ticks = ticks_of(exact(self._video.time_base), first.fps)
            self._output = output
            self._flush = SteadyFlush(film)
            opening.callback(self._flush.close)
            if film.suffix.lower() not in MP4_ENDINGS:
                self._follower = FilmFollower(film, sound=self._sound is not None)
            self._stack = opening.pop_all()

    def append(self, chunk: Media) -> None:
        """Copy a chunk's packets to the film, its first frame behind the last one so far.

        The time of a frame is its number / fps, to the tick of the film. Decoding order must never
        run behind display order, so decoding starts `reorder` frames before the first one is shown.

        Raises:
            AssemblyError: The chunk is not what it was when it was checked.
        """
        if self._follower is not None:
            self._follower.begin()
        if self._sound is not None and self._track is None:
            self._sound.begin_chunk(self.frames + chunk.frames, self._fps)
        if chunk.table is not None:
            seen = self._copy_table(chunk, chunk.table)
        else:
            seen = self._copy_packets(chunk)
        if self._sound is not None and self._track is None:
            self._sound.end_chunk()
        if len(seen) != chunk.frames or max(seen) - min(seen) != chunk.frames - 1:
            raise AssemblyError(
                f"chunk file {str(chunk.path)!r} has other frames than when it was checked"
            )
        self.frames += chunk.frames
        self._flush.grown(self._written)

    def close(self) -> FilmFigures:
        """Write the end of the film, close it, and return what was found by reading it back.

        Raises:
            AssemblyError: What was found is no whole film.
        """
        if self._sound is not None:
            self._sound.close()
        self._stack.close()
        if self._follower is None:
            return read_figures(self._film, self._fps)
        figures = self._follower.finish(self._fps)
        self._follower.close()
        return figures

    def abandon(self) -> None:
        """Close the film; it is not to be used."""
        with suppress(av.FFmpegError, OSError):
            self._stack.close()
        if self._follower is not None:
            self._follower.close()

    def _feed_track(self, number: int, frames: int) -> None:
        """Before packet `number` of a chunk: write the track's sound of the next second.

        Players need sound and picture side by side, and libav's muxers wait no longer than 10 s for
        the other one (`max_interleave_delta` of libavformat).
        """
        if self._track is None or self._sound is None or number % self._second:
            return
        until = self.frames + min(number + self._second, frames)
        self._sound.begin_chunk(until, self._fps)
        self._track.feed(self._sound, self._fps)

    @property
    def size(self) -> int:
        """Size of the film so far, in bytes."""
        return self._film.stat().st_size

    def _copy_table(self, chunk: Media, table: Track) -> set[int]:
        """Copy the frames that a sample table tells of, without a demuxer.

        Raises:
            AssemblyError: The file has become shorter.
        """
        base, place = self.frames, self.frames - self.reorder
        ticks, tick = self._ticks, self._video.time_base
        step = Fraction(table.timescale) / self._fps
        above, below = step.denominator, step.numerator
        video, mux, keys = self._video, self._output.mux_one, table.keyframes
        seen = set()
        with chunk.path.open("rb", buffering=0) as file:
            for number, (data, shown) in enumerate(
                zip(read_samples(file.fileno(), table), table.pts, strict=True)
            ):
                self._feed_track(number, chunk.frames)
                packet = av.Packet(cast(bytes, data))
                packet.stream = video
                packet.time_base = tick
                frame = base + (2 * shown * above + below) // (2 * below)
                packet.pts = time = ticks(frame)
                packet.dts = ticks(place + number)
                # To the tick at which the next one begins: so is the length of the film exact.
                packet.duration = ticks(frame + 1) - time
                packet.is_keyframe = keys is None or number in keys
                seen.add(frame)
                mux(packet)
        self._written += sum(table.sizes)
        return seen

    def _copy_packets(self, chunk: Media) -> set[int]:
        base, place = self.frames, self.frames - self.reorder
        ticks, tick = self._ticks, self._video.time_base
        sound = self._sound if self._track is None else None
        seen: set[int] = set()
        with open_media(chunk.path, probe=sound is not None) as container:
            source: Any = container.streams.video[0]
            origin = chunk.first_time * source.time_base
            for packet in container.demux(source, *(container.streams.audio if sound else ())):
                if packet.stream_index != source.index:
                    if sound is not None:
                        sound.add(packet, origin)
                    continue
                if packet.size == 0:
                    continue
                self._feed_track(len(seen), chunk.frames)
                assert packet.pts is not None  # noqa: S101 -- checked before assembly
                number = round((packet.pts - chunk.first_time) * source.time_base * self._fps)
                packet.stream = self._video
                packet.time_base = tick
                packet.pts = time = ticks(base + number)
                packet.dts = ticks(place + len(seen))
                packet.duration = ticks(base + number + 1) - time
                seen.add(number)
                self._written += packet.size
                self._output.mux(packet)
        return seen


@contextmanager
def writing(film: Path) -> Iterator[None]:
    """Turn libav's errors into an OSError where the disk is to blame, else into our own."""
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, OSError) and error.errno and error.errno != errno.EINVAL:
            raise OSError(error.errno, error.strerror) from error
        raise AssemblyError(f"film {film.name!r} cannot be written: {error}") from error


@contextmanager
def _refusing(film: Path, held: str) -> Iterator[None]:
    """Say what it means that libav takes a codec, or the header of the whole film, for a mistake.

    Raises:
        StitchInputError: The film's container has no place for what it should hold.
    """
    try:
        yield
    except (ValueError, av.error.PatchWelcomeError):
        raise StitchInputError(container_refuses(film, held)) from None
