"""Frame rates as exact fractions, and the grid of a film's frames: frame n is shown at n / fps."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from prefect_renderfarm.blocks.errors import MediaFault
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
    """Return a rate or a time base of PyAV as a `Fraction`; 0 where it is not known.

    PyAV 19 has its own class of rationals: other text, and products rounded to 32 bits.
    """
    return Fraction(rational.numerator, rational.denominator) if rational else Fraction(0)


def parse_fps(value: object) -> Fraction:
    """Return a rate in frames a second, exactly as it is written; ValueError if it makes no sense.

    A decimal is taken by its digits: 29.97 is 2997/100; NTSC rates are written `"30000/1001"`.
    """
    shown = str(value) if isinstance(value, Fraction) else excerpt(value)
    nonsense = ValueError(f"fps {shown} is not a finite number or a string like '30000/1001'")
    if isinstance(value, bool) or not isinstance(value, int | float | str | Fraction):
        raise nonsense
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


def frame_order(
    times: Sequence[int], time_base: Fraction, fps: Fraction
) -> tuple[list[int], Fraction]:
    """Return the frame number of each packet, from its display time; they must be 0 … n - 1.

    The second result is the largest distance of a frame from the grid, in seconds.
    """
    if not times:
        raise MediaFault("has no video frame")
    first = min(times)
    tick = 1 / (time_base * fps)
    # In whole numbers: frame = elapsed * above / below.
    above, below = tick.denominator, tick.numerator
    elapsed = [(time - first) * above for time in times]
    order = [(2 * each + below) // (2 * below) for each in elapsed]
    # Containers round to their own clock: both a time and the first may be half a tick off.
    allowed = min(Fraction(above, below), Fraction(1, 3)) * below
    distances = [abs(each - number * below) for each, number in zip(elapsed, order, strict=True)]
    grid = f"grid of {fps} frames a second"
    if (worst := max(distances)) > allowed:
        off = float((times[distances.index(worst)] - first) * time_base)
        raise MediaFault(f"has frames off the {grid}: one at {off:.6f} s")
    seen = set(order)
    if len(seen) != len(order):
        raise MediaFault(f"has two frames at one time on the {grid}")
    if max(seen) != len(order) - 1:
        missing = next(number for number in range(len(order)) if number not in seen)
        raise MediaFault(f"has {len(order)} frames with a hole at frame {missing} on the {grid}")
    return order, Fraction(worst, above) * time_base


def ticks_of(time_base: Fraction, fps: Fraction) -> Callable[[int], int]:
    """Return the function that tells when a frame is shown, in whole units of `time_base`."""
    tick = 1 / (time_base * fps)
    above, below = 2 * tick.numerator, 2 * tick.denominator
    half = tick.denominator
    return lambda frame: (frame * above + half) // below


def reorder_depth(order: Sequence[int]) -> int:
    """Return by how many packets decoding runs ahead of display in the order of `frame_order`."""
    return max(place - number for place, number in enumerate(order))
