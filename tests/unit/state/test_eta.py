"""The ETA of a rendering: when its last chunk will be done."""

from __future__ import annotations

import pytest

from prefect_renderfarm.flows.state.finished import Eta


@pytest.mark.parametrize(
    ("eta", "width", "seconds"),
    [
        (Eta([], [5], 3), 2, None),  # nothing to go by
        (Eta([10, 20], [], 0), 2, 0),
        (Eta([10], [4, 7], 0), 2, 6),
        (Eta([10], [30], 0), 2, 0),  # late, but about to end
        (Eta([10], [4, 7], 1), 2, 13),  # begins where the first place is free
        (Eta([10], [4, 7], 3), 2, 23),
        (Eta([10], [], 3), 2, 20),
        (Eta([10], [5], 2000), 10, 2005),
        (Eta([10], [5], 1999), 10, 2000),
        (Eta([10], [2, 5, 9], 2), 3, 15),
        (Eta([10], [0, 5, 9], 4), 2, 21),
        (Eta([10], [4, 7], -1), 2, 6),  # one that has ended just now
    ],
)
def test_seconds_left(eta: Eta, width: int, seconds: float | None) -> None:
    """Every chunk lasts as long as the finished ones did on average, in as many places."""
    assert eta.seconds_left(width) == seconds
