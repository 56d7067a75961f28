"""The one place that appends chunks to a film: packets copied onto an exact frame grid."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import av.container

from prefect_renderfarm.blocks.errors import AssemblyError, StitchInputError
from prefect_renderfarm.blocks.film_check import FilmFigures, FilmFollower, read_figures
from prefect_renderfarm.blocks.film_sound import FilmSound, TrackSound, open_film_sound
from prefect_renderfarm.blocks.growing_file import SteadyFlush
from prefect_renderfarm.blocks.media import Media, open_media
from prefect_renderfarm.blocks.mp4_index import MP4_ENDINGS, Track, read_samples
from prefect_renderfarm.blocks.sound_plan import SoundMode, SoundPlan, sound_codec


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
        self._sound: FilmSound | None = None
        self._track: TrackSound | None = None
        self._film = film
        self._follower: FilmFollower | None = None
        self._stack = ExitStack()
        with writing(film), ExitStack() as opening, open_media(first.path) as template:
            wanted = _muxer_options(film, first.fps, options, total_frames)
            output = opening.enter_context(av.open(str(film), "w", container_options=wanted))
            self._video: Any = self._begin_video(output, template.streams.video[0], film)
            if sound.mode is not SoundMode.NONE:
                if sound.track is not None:
                    self._track = TrackSound(sound.track, opening)
                source = self._track.template if self._track else template.streams.audio[0]
                codec = sound_codec(options.audio_codec, film)
                self._sound = open_film_sound(
                    output, source, sound.mode, codec, options.audio_bitrate
                )
            output.start_encoding()
            self._output = output
            self._flush = SteadyFlush(film)
            opening.callback(self._flush.close)
            self._stack = opening.pop_all()
        if film.suffix.lower() not in MP4_ENDINGS:
            self._follower = FilmFollower(film)

    def _begin_video(self, output: Any, source: Any, film: Path) -> Any:
        try:
            # Opaque: AV1 has no encoder of that name to look up.
            stream = output.add_stream_from_template(source, opaque=True)
        except (av.FFmpegError, ValueError):
            raise StitchInputError(container_refuses(film, source.codec_context.name)) from None
        stream.time_base = 1 / self._fps
        return stream

    def append(self, chunk: Media) -> None:
        """Copy a chunk's packets to the film, its first frame behind the last one so far.

        The time of a frame is its number, in units of 1 / fps. Decoding order must never run behind
        display order, so decoding starts `reorder` frames before the first frame is shown.

        Raises:
            AssemblyError: The chunk is not what it was when it was checked.
        """
        if self._sound is not None:
            self._sound.begin_chunk(self.frames + chunk.frames, self._fps)
            if self._track is not None:
                self._track.feed(self._sound, self._fps)
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

    @property
    def size(self) -> int:
        """Size of the film so far, in bytes."""
        return self._film.stat().st_size

    def _copy_table(self, chunk: Media, table: Track) -> set[int]:
        """Copy the frames that a sample table tells of, without a demuxer.

        Raises:
            AssemblyError: The file has become shorter.
        """
        base, place, tick = self.frames, self.frames - self.reorder, 1 / self._fps
        step = Fraction(table.timescale) / self._fps
        above, below = step.denominator, step.numerator
        video, mux, keys = self._video, self._output.mux_one, table.keys
        seen = set()
        with chunk.path.open("rb", buffering=0) as file:
            for number, (data, shown) in enumerate(
                zip(read_samples(file.fileno(), table), table.shown, strict=True)
            ):
                packet = av.Packet(cast(bytes, data))
                packet.stream = video
                packet.time_base = tick
                packet.pts = time = base + (2 * shown * above + below) // (2 * below)
                packet.dts = place + number
                packet.duration = 1
                packet.is_keyframe = keys is None or number in keys
                seen.add(time)
                mux(packet)
        self._written += sum(table.sizes)
        return seen

    def _copy_packets(self, chunk: Media) -> set[int]:
        base, place, tick = self.frames, self.frames - self.reorder, 1 / self._fps
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
                assert packet.pts is not None  # noqa: S101 -- checked before assembly
                number = round((packet.pts - chunk.first_time) * source.time_base * self._fps)
                packet.stream = self._video
                packet.time_base = tick
                packet.pts = base + number
                packet.dts = place + len(seen)
                packet.duration = 1
                seen.add(packet.pts)
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


def container_refuses(film: Path, codec: str) -> str:
    """Say that a film's container has no place for a codec."""
    return (
        f"a {film.suffix} film cannot hold {codec} video: let the film's name end in .mkv, or have "
        "it encoded anew by an ffmpeg-stitcher with a 'video_codec'"
    )


def _muxer_options(
    film: Path, fps: Fraction, options: FilmOptions, total_frames: int | None
) -> dict[str, str]:
    ending = film.suffix.lower()
    if ending in MP4_ENDINGS:
        clock = {"movie_timescale": str(fps.numerator)}
        return clock | faststart_options(fps, total_frames) if options.faststart else clock
    if ending in (".mkv", ".webm"):
        # Matroska stores display times only: decoding times below 0 are no reason to move them.
        return {"avoid_negative_ts": "disabled"}
    return {}


def faststart_options(fps: Fraction, total_frames: int | None) -> dict[str, str]:
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
