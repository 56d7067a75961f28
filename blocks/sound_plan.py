"""What happens to the chunks' sound when they become a film."""

from __future__ import annotations

from enum import StrEnum
from fractions import Fraction
from pathlib import Path

from prefect_renderfarm.blocks.errors import StitchInputError
from prefect_renderfarm.blocks.media import Sound

# mp4 has a place for PCM (ISO/IEC 23003-5), but browsers and many players cannot play it.
_KEEPS_PCM = frozenset({".avi", ".mkv", ".mov", ".nut"})


class SoundMode(StrEnum):
    """How a film gets its sound."""

    AUTO = "auto"
    NONE = "none"
    COPY = "copy"
    ENCODE = "encode"


def plan_sound(mode: SoundMode, sound: Sound | None, film: Path) -> SoundMode:
    """Choose what `auto` means for a film, and refuse what would click at every seam.

    Args:
        mode: What the user asked for.
        sound: The sound of the chunks; None if they have none.
        film: The film; its ending tells the container.

    Returns:
        `NONE`, `COPY` or `ENCODE`.

    Raises:
        StitchInputError: The sound of the chunks cannot be joined in that way.
    """
    if sound is None or mode is SoundMode.NONE:
        return SoundMode.NONE
    if mode is SoundMode.ENCODE:
        return mode
    if not sound.is_pcm:
        # A compressed chunk begins with samples that only prime its decoder: joined by copy, they
        # come out as a gap of some 1,600 samples and a click at every seam.
        raise StitchInputError(
            f"the chunks' sound is {sound.codec}, which cannot be joined by copy without a click "
            "at every seam: render the chunks with PCM sound (mov or mkv), or set the stitcher's "
            "'audio' to 'encode' or 'none'"
        )
    if mode is SoundMode.COPY or film.suffix.lower() in _KEEPS_PCM:
        return SoundMode.COPY
    return SoundMode.ENCODE


def sound_codec(named: str | None, film: Path) -> str:
    """Return FFmpeg's name of the codec to encode a film's sound with."""
    return named or ("libopus" if film.suffix.lower() == ".webm" else "aac")


def samples_at(frame: int, fps: Fraction, rate: int) -> int:
    """Return how many samples have passed when frame number `frame` begins, rounded."""
    return round(frame * rate / fps)
