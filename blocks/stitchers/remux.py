"""Assembly by copying packets, in this process, onto an exact frame grid."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
from av.container import OutputContainer
from pydantic import model_validator

from prefect_renderfarm.blocks.errors import AssemblyError, NotAppendableError, StitchInputError
from prefect_renderfarm.blocks.media.frame_grid import exact, parse_fps, ticks_of
from prefect_renderfarm.blocks.media.image_sequence import is_image_sequence
from prefect_renderfarm.blocks.media.model import Media
from prefect_renderfarm.blocks.media.mp4_index import MP4_ENDINGS, Track, read_samples
from prefect_renderfarm.blocks.media.reader import open_media
from prefect_renderfarm.blocks.stitchers.audio import (
    AudioMode,
    FilmAudio,
    TrackAudio,
    open_film_audio,
)
from prefect_renderfarm.blocks.stitchers.base import GrowingFilm, progress
from prefect_renderfarm.blocks.stitchers.checked import (
    CheckedStitcher,
    ChunkCheck,
    cannot_hold,
    codec_tag,
    film_labels,
    muxer_name,
    muxer_options,
    writing,
)
from prefect_renderfarm.blocks.stitchers.ffmpeg import FfmpegStitcher
from prefect_renderfarm.blocks.stitchers.film_check import (
    MATROSKA_ENDINGS,
    FilmFigures,
    FilmReader,
    check_figures,
    read_figures,
)
from prefect_renderfarm.blocks.storage.atomic_file import publishing

# Flushed at once; what is left at the end of the file takes a fraction of a second.
_FLUSH_BYTES = 32_000_000


class RemuxStitcher(CheckedStitcher):
    """Copy the chunks' video packets into one film, bit for bit, each frame exactly on its time.

    Nothing is decoded or encoded, except audio if `audio` says so. Chunks must come from the same
    encoder with the same settings; others are refused.

    Example:
        Load a saved stitcher and assemble a film:
        ```python
        from pathlib import Path
        from prefect_renderfarm.blocks import RemuxStitcher

        stitcher = RemuxStitcher.load("BLOCK_NAME")
        stitcher.stitch([Path("0.mp4"), Path("1.mp4")], Path("film.mp4"), fps=24)
        ```
    """

    _block_type_name = "Remux Stitcher"
    _block_type_slug = "remux-stitcher"
    _description = (
        "Assemble chunks into one film by copying packets onto an exact frame grid. "
        "Every chunk is checked before, the film after."
    )

    @model_validator(mode="before")
    @classmethod
    def _without_removed_fields(cls, values: Any) -> Any:
        """Load block documents of earlier versions, which had a field `on_mismatch`."""
        if isinstance(values, dict):
            values = {key: value for key, value in values.items() if key != "on_mismatch"}
        return values

    def check_output(self, output: Path, inputs: Sequence[Path] = ()) -> None:
        """Refuse a film without a container, and image sequences."""
        super().check_output(output, inputs)
        if images := [path for path in inputs if is_image_sequence(path)]:
            raise StitchInputError(
                f"chunk file {str(images[0])!r} is an image sequence, which has to be encoded: "
                "choose an ffmpeg-stitcher with a 'video_codec'"
            )

    @contextmanager
    def grow(
        self,
        inputs: Sequence[Path],
        output: Path,
        *,
        fps: float | str | Fraction,
        frame_counts: Sequence[int],
    ) -> Iterator[GrowingFilm]:
        """Begin a film to which chunks are appended. See `VideoStitcher`."""
        output = Path(output).absolute()
        self.check_output(output, inputs)
        check = ChunkCheck(inputs, output, fps, frame_counts, self.verify, self._plan)
        self.check_length(output, check.total_frames, parse_fps(fps))
        with publishing(output) as temporary, closing(FilmMuxer(self, check, temporary)) as film:
            yield film
            figures = film.finish()
        film.report = check.report(figures, output.stat().st_size)

    def _assemble(self, chunks: Sequence[Media], film: Path, check: ChunkCheck) -> FilmFigures:
        check.begin_comparing()
        report = progress.get()
        reorder, frames = max(each.reorder for each in chunks), sum(each.frames for each in chunks)
        try:
            with closing(FilmMuxer(self, check, film)) as muxer:
                muxer.begin(chunks[0], reorder, frames)
                for chunk in chunks:
                    muxer.copy(chunk)
                    report(muxer.frames, muxer.size)
                return muxer.finish()
        except NotAppendableError:  # now that PyAV has closed the file
            shared = self.model_dump(include=set(CheckedStitcher.model_fields))
            return FfmpegStitcher(**shared)._assemble(chunks, film, check)


class FilmMuxer(GrowingFilm):
    """Writes a film, chunk after chunk. `close` must be called, whatever happens."""

    def __init__(self, stitcher: CheckedStitcher, check: ChunkCheck, film: Path) -> None:
        self._stitcher = stitcher
        self._check = check
        self._film = film
        self._audio: FilmAudio | None = None
        self._track: TrackAudio | None = None
        self._reader: FilmReader | None = None
        self._stack = ExitStack()

    def close(self) -> None:
        """End the writing, and the reading."""
        with suppress(av.FFmpegError, OSError):
            self._stack.close()
        if self._reader is not None:
            self._reader.close()

    def append(self) -> None:
        """Check the next chunk file and append it. See `GrowingFilm`."""
        chunk = self._check.take()
        self._check.begin_comparing()
        if not self.frames:
            self.begin(chunk, chunk.reorder, self._check.total_frames)
        self.copy(chunk)

    def begin(self, first: Media, reorder: int, total_frames: int) -> None:
        """Begin a film of chunks coded as `first`, of which none needs a deeper `reorder`."""
        film, audio = self._film, self._check.audio
        options = muxer_options(film, first, self._stitcher.faststart, total_frames)
        labels, content = film_labels(first, audio), f"{first.signature['codec']} video"
        with writing(film), open_media(first.path) as template:
            output = self._stack.enter_context(
                av.open(str(film), "w", muxer_name(film), container_options=options)
            )
            try:
                self._video = _add_video(output, template.streams.video[0], first, film)
                output.metadata.update(labels["film"])
                self._video.metadata.update(labels["video"])
                if audio.mode is not AudioMode.NONE:
                    if audio.track is not None:
                        self._track = TrackAudio(audio.track, self._stack)
                    source = self._track.template if self._track else template.streams.audio[0]
                    self._audio = open_film_audio(output, source, audio)
                    self._audio.stream.metadata.update(labels["audio"])
                    content += " with this audio"
                output.start_encoding()
            except (av.error.PatchWelcomeError, ValueError) as error:
                # PyAV refuses codecs that mkv and mov store in the way of AVI.
                unknown = isinstance(error, ValueError) and film.suffix.lower() in (".mkv", ".mov")
                raise (_needs_program if unknown else cannot_hold)(film, content) from None
            # The header has fixed the film's clock.
            self._ticks = ticks_of(exact(self._video.time_base), first.fps)
            self._output = output
            self._flush = self._stack.enter_context(closing(BackgroundFlush(film)))
            if film.suffix.lower() not in MP4_ENDINGS:
                self._reader = FilmReader(film, audio=self._audio is not None)
        self._fps = first.fps
        self._second = math.ceil(first.fps)  # in frames
        self._reorder = reorder

    def copy(self, chunk: Media) -> None:
        """Copy a chunk's packets to the film, its first frame behind the last one so far.

        The time of a frame is its number / fps, to the tick of the film. Decoding order must never
        run behind display order, so decoding starts `reorder` frames before the first display.
        """
        if chunk.reorder > self._reorder:
            raise NotAppendableError(
                f"chunk file {str(chunk.path)!r} has more B-frames in a row than the film so far"
            )
        if self._reader is not None:
            self._reader.begin()
        audio = self._audio if self._track is None else None
        seen = set()
        with writing(self._film):
            if audio is not None:
                audio.begin_chunk(self.frames + chunk.frames, self._fps)
            track = chunk.mp4_track
            packets = self._demux(chunk, audio) if track is None else self._read(chunk, track)
            for number, (packet, frame) in enumerate(packets):
                self._feed_track(number, chunk.frames)
                self._mux(packet, frame, number)
                seen.add(frame)
            if audio is not None:
                audio.end_chunk()
        if seen != set(range(chunk.frames)):
            raise AssemblyError(
                f"chunk file {str(chunk.path)!r} has other frames than when it was checked"
            )
        self.frames += chunk.frames
        self.size = self._film.stat().st_size
        self._flush.grown(self.size)

    def finish(self) -> FilmFigures:
        """Write the end of the film, read it back, and compare it with its chunks."""
        check, chunks = self._check, len(self._check.paths)
        if check.missing:
            raise StitchInputError(
                f"film {str(check.output)!r}: {check.missing} of {chunks} chunks were not appended"
            )
        with writing(self._film):
            if self._audio is not None:
                self._audio.close()
            self._stack.close()
        reader, fps = self._reader, self._fps
        figures = reader.finish(fps) if reader else read_figures(self._film, fps)
        check_figures(figures, self.frames, chunks, check.audio.mode)
        check.check_film(self._film)
        return figures

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

    def _read(self, chunk: Media, track: Track) -> Iterator[tuple[Any, int]]:
        """Give each packet that an mp4 index lists, without a demuxer, and its frame's number."""
        step = Fraction(track.timescale) / self._fps
        above, below = step.denominator, step.numerator
        keyframes = track.keyframes
        with chunk.path.open("rb", buffering=0) as file:
            for number, (data, time) in enumerate(
                zip(read_samples(file.fileno(), track), track.pts, strict=True)
            ):
                packet = av.Packet(cast(bytes, data))
                packet.is_keyframe = keyframes is None or number in keyframes
                yield packet, (2 * time * above + below) // (2 * below)

    def _demux(self, chunk: Media, audio: FilmAudio | None) -> Iterator[tuple[Any, int]]:
        """Give each video packet of a chunk, and its frame's number; the audio takes the others."""
        with open_media(chunk.path, probe=audio is not None) as container:
            source: Any = container.streams.video[0]
            origin = chunk.origin * source.time_base
            for packet in container.demux(source, *(container.streams.audio if audio else ())):
                if audio is not None and packet.stream_index != source.index:
                    audio.add(packet, origin)
                elif packet.size:
                    assert packet.pts is not None  # noqa: S101 -- checked before assembly
                    elapsed = (packet.pts - chunk.first_time) * source.time_base
                    yield packet, round(elapsed * self._fps)

    def _mux(self, packet: Any, frame: int, number: int) -> None:
        """Write a packet: frame `frame` of its chunk in display, `number` in decoding order."""
        packet.stream = self._video
        packet.time_base = self._video.time_base
        packet.pts = self._ticks(self.frames + frame)
        packet.dts = self._ticks(self.frames - self._reorder + number)
        # To the tick at which the next frame begins: so the length of the film is exact.
        packet.duration = self._ticks(self.frames + frame + 1) - packet.pts
        self._output.mux_one(packet)


def _needs_program(film: Path, content: str) -> NotAppendableError:
    """Return the error for what FFmpeg's program can write, and PyAV cannot."""
    return NotAppendableError(
        f"{content} in a {film.suffix} film is written by FFmpeg's program, with all chunks at once"
    )


def _add_video(output: OutputContainer, source: Any, first: Media, film: Path) -> Any:
    """Add a film's video track, like that of a chunk, with what PyAV's templates leave out."""
    aspect, coding = exact(source.sample_aspect_ratio), source.codec_context
    matroska = film.suffix.lower() in MATROSKA_ENDINGS
    # Where only the container tells the aspect: PyAV sets none but in the codec's header.
    if matroska and aspect not in (0, exact(coding.sample_aspect_ratio) or 1):
        raise _needs_program(film, "a pixel aspect")
    if not matroska and coding.pix_fmt == "pal8":
        raise _needs_program(film, "a palette")
    # Opaque: AV1 has no encoder of that name to look up.
    track: Any = output.add_stream_from_template(source, opaque=True)
    track.time_base = 1 / first.fps
    track.codec_context.framerate = first.fps  # for the timecode
    if tag := codec_tag(first, film):
        track.codec_context.codec_tag = tag
    if aspect:
        track.codec_context.sample_aspect_ratio = aspect
    return track


class BackgroundFlush:
    """Flushes a file to the disk in the background while it grows.

    One flush at the end of a large file would take as long as writing it. A disk reports lost data
    once, so an error of any flush is raised, if not by `grown`, then by `close`.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._flushed_at = 0
        self._last: Future[None] = Future()
        self._last.set_result(None)

    def grown(self, size: int) -> None:
        """Note how many bytes are written so far."""
        if not self._last.done():
            return
        self._last.result()
        if size - self._flushed_at >= _FLUSH_BYTES:
            self._flushed_at = size
            self._last = self._thread.submit(os.fsync, self._descriptor)

    def close(self) -> None:
        """Wait for a flush that is running, and close."""
        self._thread.shutdown()
        os.close(self._descriptor)
        self._last.result()
