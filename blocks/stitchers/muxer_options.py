"""What a film's container can hold, and the options of its muxer."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from prefect_renderfarm.blocks.errors import StitchInputError
from prefect_renderfarm.blocks.media.mp4_index import MP4_ENDINGS
from prefect_renderfarm.blocks.stitchers.film_check import MATROSKA_ENDINGS

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
