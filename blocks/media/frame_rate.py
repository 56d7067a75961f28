"""Frame rates as exact fractions."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

from prefect_renderfarm.blocks.runtime.text import excerpt

# Limits against nonsense, not physical ones: high-speed footage is conformed long before the one,
# and a frame that is shown for an hour is a picture.
_HIGHEST_FPS = 1000
_LOWEST_FPS = Fraction(1, 1000)
# FFmpeg reads no larger numerator or denominator of a rate: libavutil/parseutils.c,
# av_parse_video_rate. Beyond 2**31, no container has the clock.
_LARGEST_PART = 1_001_000
_WRITTEN = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}|/[0-9]{1,9})?")


def exact(rational: Any) -> Fraction:
    """Return a rate or a time base that PyAV tells as a `Fraction`; 0 where it is not known.

    PyAV 19 has its own class of rationals: other text, and products rounded to 32 bits. Earlier
    releases give a `Fraction` or None.
    """
    return Fraction(rational.numerator, rational.denominator) if rational else Fraction(0)


def parse_fps(value: object) -> Fraction:
    """Return a frame rate in frames a second, exactly as it is written.

    Args:
        value: A number (`24`, `29.97`) or a rational string (`"30000/1001"`). A decimal is taken by
            its digits: 29.97 is 2997/100; NTSC rates are written `"30000/1001"`.

    Raises:
        ValueError: It is not a number from 0.001 to 1000, or more exact than the clock of a film.
    """
    shown = str(value) if isinstance(value, Fraction) else excerpt(value)
    nonsense = ValueError(f"fps {shown} is not a number or a string like '30000/1001'")
    if isinstance(value, bool) or not isinstance(value, int | float | str | Fraction):
        raise nonsense
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"fps {shown} is not a finite number")
    if isinstance(value, str) and not _WRITTEN.fullmatch(value.strip()):
        raise nonsense
    try:
        # A float by its digits, as it was written; a whole number may have too many to write out.
        rate = Fraction(value) if isinstance(value, int) else Fraction(str(value).strip())
    except (ValueError, ZeroDivisionError):
        raise nonsense from None
    if not _LOWEST_FPS <= rate <= _HIGHEST_FPS:
        raise ValueError(
            f"fps {shown} is not above 0, at least {float(_LOWEST_FPS)}, and up to {_HIGHEST_FPS}"
        )
    if max(rate.numerator, rate.denominator) > _LARGEST_PART:
        raise ValueError(
            f"fps {shown} has more digits than the clock of a film takes: write it as a fraction, "
            f"such as '{rate.limit_denominator(1001)}'"
        )
    return rate
