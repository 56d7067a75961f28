"""Measure ways of doing the same thing, turn by turn, and print their ratios to one of them."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable


def measure(
    ways: dict[str, Callable[[], None]],
    rounds: int,
    before: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Run all ways in turn, once to warm up and then `rounds` times; return median seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            before()
            started = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(title: str, found: dict[str, float], peer: str) -> None:
    """Print each way's median and its ratio to the peer."""
    print(f"\n{title}" if title else "")
    for name, seconds in found.items():
        print(f"  {name:<46} {seconds:8.3f} s   {seconds / found[peer]:6.2f} x {peer}")
    sys.stdout.flush()
