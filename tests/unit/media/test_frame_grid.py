"""Frame rates, frame numbers and times, in exact arithmetic."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest

from prefect_renderfarm.blocks.errors import MediaFault
from prefect_renderfarm.blocks.media.frame_grid import (
    exact,
    frame_order,
    parse_fps,
    reorder_depth,
    ticks_of,
)

NTSC = Fraction(30_000, 1001)
MS = Fraction(1, 1000)


@pytest.mark.parametrize(
    ("given", "rate"),
    [(24, Fraction(24)), (29.97, Fraction(2997, 100)), ("30000/1001", NTSC), (" 25 ", Fraction(25)),
     (Fraction(1, 2), Fraction(1, 2)), (23.976, Fraction(23976, 1000)), (1000, Fraction(1000)),
     ("0.001", Fraction(1, 1000)), (Fraction(1_001_000, 1001), Fraction(1000))],
)  # fmt: skip
def test_frame_rates(given: object, rate: Fraction) -> None:
    """A rate is exactly what is written."""
    assert parse_fps(given) == rate


@pytest.mark.parametrize(
    "given",
    [0, -24, 1001, float("inf"), float("nan"), "1/0", "a", "", "1e9", "-1", None, True,
     Fraction(1, 1001), Fraction(1_001_001, 1009), "29.9700299", [24]],
)  # fmt: skip
def test_bad_frame_rates(given: object) -> None:
    """Nonsense is refused with its value."""
    with pytest.raises(ValueError, match="fps"):
        parse_fps(given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([24], "fps a list is not a finite number"),
        (Fraction(1, 1001), "fps 1/1001 is not above 0"),
        ("29.9700299", "fps '29.9700299' has more digits"),
        (Fraction(1_001_001, 1009), "fps 1001001/1009 has more digits"),
    ],
)
def test_bad_rate_is_shown(given: object, words: str) -> None:
    """The error shows the rate as it was given."""
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_fps(given)


def test_largest_parts_of_a_rate() -> None:
    """A numerator or denominator may be as large as FFmpeg reads it."""
    assert parse_fps(Fraction(1_001_000, 1009)) == Fraction(1_001_000, 1009)


def test_unknown_rate_is_0() -> None:
    """PyAV's None is 0; its rationals are exact."""
    assert exact(None) == 0
    assert exact(NTSC) == NTSC


@pytest.mark.parametrize(
    ("times", "clock", "fps", "order"),
    [
        ([0, 133, 67, 33, 100], MS, Fraction(30), [0, 4, 2, 1, 3]),
        ([1400], MS, Fraction(30), [0]),
        ([7, 9, 8], Fraction(1, 30), Fraction(30), [0, 2, 1]),
        ([1001, 3003, 2002], Fraction(1, 30_000), NTSC, [0, 2, 1]),
        # Both ends of a distance are rounded, each by up to half a tick.
        ([0, 34, 66], MS, Fraction(30), [0, 1, 2]),
        ([0, 4, 7], Fraction(1, 120), Fraction(30), [0, 1, 2]),
        # With a clock as coarse as the frames a third of a frame is allowed.
        ([0, 2, 4, 6, 8, 10, 12, 14], Fraction(1, 50), Fraction(24), [*range(8)]),
    ],
)
def test_frame_order(times: list[int], clock: Fraction, fps: Fraction, order: list[int]) -> None:
    """Packets are numbered by the grid."""
    assert frame_order(times, clock, fps)[0] == order


@pytest.mark.parametrize(
    ("times", "clock", "words"),
    [
        ([], MS, "no video frame"),
        ([0, 33, 34], MS, "two frames at one time on the grid of 30"),
        ([0, 33, 100], MS, "has 3 frames with a hole at frame 2 on the grid of 30"),
        ([0, 33, 50], MS, "off the grid of 30 frames a second: one at 0.050000 s"),
        ([0, 35, 67, 117], MS, "off the grid of 30 frames a second: one at 0.117000 s"),
        ([0, 35], MS, "off the grid of 30 frames a second: one at 0.035000 s"),
        ([0, 1, 1], Fraction(1, 30), "two frames at one time"),
        ([0, 2], Fraction(1, 30), "hole at frame 1"),
        ([0, 4, 6], Fraction(1, 120), "off the grid"),
        ([0, 42], Fraction(1, 1200), "off the grid"),
        ([0, 2], Fraction(1, 43), "off the grid of 30 frames a second: one at 0.046512 s"),
    ],
)
def test_frames_off_the_grid(times: list[int], clock: Fraction, words: str) -> None:
    """Doubled frames, holes and other times are refused."""
    with pytest.raises(MediaFault, match=words):
        frame_order(times, clock, Fraction(30))


def test_times_of_frames() -> None:
    """A frame's time is its number / fps, rounded to the nearest tick, with no drift."""
    ms = ticks_of(MS, NTSC)
    assert [ms(frame) for frame in (0, 1, 2, 3, 30_000)] == [0, 33, 67, 100, 1_001_000]
    assert ms(-1) == -33
    film = ticks_of(1 / NTSC, NTSC)
    assert [film(frame) for frame in (0, 1, 1000)] == [0, 1, 1000]
    half = ticks_of(Fraction(1, 15), Fraction(30))
    assert [half(frame) for frame in (0, 1, 2, 3)] == [0, 1, 1, 2]


def test_reorder_depth() -> None:
    """Decoding runs ahead of display by as many packets as B-frames need."""
    assert reorder_depth([0, 1, 2]) == 0
    assert reorder_depth([0, 2, 1, 3]) == 1
    assert reorder_depth([0, 4, 2, 1, 3]) == 2


def test_clock_error() -> None:
    """The largest distance of a frame from its time is told in seconds."""
    assert frame_order([0, 1001, 2002], Fraction(1, 30_000), NTSC)[1] == 0
    assert frame_order([67, 0, 33], MS, Fraction(30))[1] == Fraction(1, 3000)
    assert frame_order([100, 133, 167, 201], MS, Fraction(30))[1] == Fraction(1, 1000)
    assert frame_order([100, 133, 167, 199], MS, Fraction(30))[1] == Fraction(1, 1000)
