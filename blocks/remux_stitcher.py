"""Assembly by copying packets, in this process, onto an exact frame grid."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import av
import av.container

from prefect_renderfarm.blocks.checked_stitcher import CheckedStitcher
from prefect_renderfarm.blocks.errors import AssemblyError
from prefect_renderfarm.blocks.film_sound import FilmSound, open_film_sound
from prefect_renderfarm.blocks.media import Media, open_media
from prefect_renderfarm.blocks.sound_plan import SoundMode, sound_codec


class RemuxStitcher(CheckedStitcher):
    """Copy the chunks' video packets into one film, bit for bit, each frame exactly on its time.

    Nothing is decoded or encoded, except sound where that is asked for. Chunks must come from the
    same encoder with the same settings; others are refused.

    Example:
        Load a saved stitcher and assemble a film:
        ```python
        from pathlib import Path
        from prefect_renderfarm.blocks import RemuxStitcher

        stitcher = RemuxStitcher.load("BLOCK_NAME")
        stitcher.stitch([Path("0.mp4"), Path("1.mp4")], Path("film.mp4"), fps=24)
        ```
    """

    _block_type_name: ClassVar[str | None] = "Remux Stitcher"
    _block_type_slug: ClassVar[str | None] = "remux-stitcher"
    _description: ClassVar[str | None] = (
        "Assemble chunks into one film by copying packets onto an exact frame grid. "
        "Every chunk is checked before, the film after."
    )

    def _assemble(self, chunks: Sequence[Media], film: Path, sound: SoundMode) -> None:
        fps = chunks[0].fps
        options = _muxer_options(film, fps, self.faststart)
        try:
            with av.open(str(film), "w", container_options=options) as output:
                with open_media(chunks[0].path) as first:
                    video = output.add_stream_from_template(first.streams.video[0], opaque=True)
                    video.time_base = 1 / fps
                    template = first.streams.audio[0] if first.streams.audio else None
                    codec = sound_codec(self.audio_codec, film)
                    track = open_film_sound(output, template, sound, codec, self.audio_bitrate)
                reorder = max(chunk.reorder for chunk in chunks)
                base = 0
                for chunk in chunks:
                    _append(output, video, track, chunk, base, reorder)
                    base += chunk.frames
                if track is not None:
                    track.close()
        except av.FFmpegError as error:
            if isinstance(error, OSError) and error.errno:
                raise OSError(error.errno, error.strerror) from error
            raise AssemblyError(f"film {film.name!r} cannot be written: {error}") from error


def _append(
    output: av.container.OutputContainer,
    video: Any,
    track: FilmSound | None,
    chunk: Media,
    base: int,
    reorder: int,
) -> None:
    """Copy one chunk's packets to the film, its first frame at frame number `base`.

    The time of a frame is its number, in units of 1/fps. Decoding order must never run behind
    display order, so decoding starts `reorder` frames before the first frame is shown.
    """
    if track is not None:
        track.begin_chunk(base + chunk.frames, chunk.fps)
    with open_media(chunk.path, probe=track is not None) as container:
        source: Any = container.streams.video[0]
        place = base
        for packet in container.demux(source, *(container.streams.audio if track else ())):
            if packet.stream_index != source.index:
                if track is not None:
                    track.add(packet)
                continue
            if packet.size == 0:
                continue
            assert packet.pts is not None  # noqa: S101 -- checked before assembly
            number = round((packet.pts - chunk.first_time) * source.time_base * chunk.fps)
            packet.stream = video
            packet.time_base = 1 / chunk.fps
            packet.pts = base + number
            packet.dts = place - reorder
            packet.duration = 1
            output.mux(packet)
            place += 1
    if track is not None:
        track.end_chunk()


def _muxer_options(film: Path, fps: Fraction, faststart: bool) -> dict[str, str]:
    ending = film.suffix.lower()
    if ending in (".mp4", ".m4v", ".mov"):
        options = {"movie_timescale": str(fps.numerator)}
        return options | {"movflags": "+faststart"} if faststart else options
    if ending in (".mkv", ".webm"):
        # Matroska stores display times only: decoding times below 0 are no reason to move them.
        return {"avoid_negative_ts": "disabled"}
    return {}
