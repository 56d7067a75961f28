"""The grid on which a film's frames lie: frame n is shown at n / fps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from prefect_renderfarm.blocks.errors import MediaFault


def frame_order(times: Sequence[int], time_base: Fraction, fps: Fraction) -> list[int]:
    """Return the frame number of each packet, in the order of the packets, and check the grid.

    Args:
        times: Display times in units of `time_base`.
        time_base: Seconds.
        fps: Frames a second.

    Raises:
        MediaFault: The numbers are not exactly 0 … n - 1.
    """
    if not times:
        raise MediaFault("has no video frame")
    first = min(times)
    tick = 1 / (time_base * fps)
    # In whole numbers: frame = elapsed * above / below.
    above, below = tick.denominator, tick.numerator
    order = [(2 * (time - first) * above + below) // (2 * below) for time in times]
    # Containers round to their own clock: both a time and the first may be half a tick off.
    allowed = min(Fraction(above, below), Fraction(1, 3)) * below
    for time, number in zip(times, order, strict=True):
        if abs((time - first) * above - number * below) > allowed:
            raise MediaFault(
                f"has frames off the grid of {fps} frames a second: one at "
                f"{float((time - first) * time_base):.6f} s"
            )
    _check_complete(order, fps)
    return order


def ticks_of(time_base: Fraction, fps: Fraction) -> Callable[[int], int]:
    """Return the function that tells when a frame is shown, in whole units of `time_base`.

    Args:
        time_base: Seconds.
        fps: Frames a second.
    """
    tick = 1 / (time_base * fps)
    above, below = 2 * tick.numerator, 2 * tick.denominator
    half = tick.denominator
    return lambda frame: (frame * above + half) // below


def _check_complete(order: Sequence[int], fps: Fraction) -> None:
    seen = set(order)
    if len(seen) != len(order):
        raise MediaFault(f"has two frames at one time on the grid of {fps} frames a second")
    if max(seen) != len(order) - 1:
        missing = next(number for number in range(len(order)) if number not in seen)
        raise MediaFault(
            f"has {len(order)} frames with a hole at frame {missing} on the grid of {fps} frames "
            "a second"
        )


def reorder_depth(order: Sequence[int]) -> int:
    """Return by how many packets decoding runs ahead of display in the order of `frame_order`."""
    return max(place - number for place, number in enumerate(order))


def clock_error(times: Sequence[int], time_base: Fraction, fps: Fraction) -> Fraction:
    """Return the largest distance of a frame's display time from the grid, in seconds."""
    first = min(times)
    tick = 1 / (time_base * fps)
    above, below = tick.denominator, tick.numerator
    worst = max(
        abs((time - first) * above - number * below) for number, time in enumerate(sorted(times))
    )
    return Fraction(worst, above) * time_base
