"""A picture of who rendered what when: one row for each chunk that a worker renders at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from xml.sax.saxutils import escape

from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.results import FailedAttempt

# Beyond these the picture is large, and shows no more.
_MOST_ATTEMPTS = 1000
_MOST_ROWS = 60
_WIDTH, _LABEL, _ROW, _AXIS = 720, 140, 16, 20  # pixels
_LABEL_CHARACTERS = 22


@dataclass(frozen=True)
class Bar:
    """An attempt at a chunk."""

    worker: str
    start: datetime
    end: datetime
    failed: bool


def bars_of(results: Iterable[ChunkResult], failed: Iterable[FailedAttempt]) -> list[Bar]:
    """Return the attempts whose time is known, by their start."""
    ends = [(one.worker, one.published_at, one.seconds, False) for one in results]
    ends += [(one.worker, one.ended_at, one.seconds, True) for one in failed]
    bars = [
        Bar(worker, end - timedelta(seconds=seconds), end, is_failed)
        for worker, end, seconds, is_failed in ends
        if end is not None
    ]
    return sorted(bars, key=lambda bar: bar.start)


def timeline(bars: Sequence[Bar]) -> str:
    """Return an SVG of some attempts; empty if there is none. The longest 1,000 are in it."""
    if not bars:
        return ""
    longest = sorted(bars, key=lambda bar: bar.start - bar.end)[:_MOST_ATTEMPTS]
    begin, end = min(bar.start for bar in bars), max(bar.end for bar in bars)
    seconds = max((end - begin).total_seconds(), 0.001)
    scale = (_WIDTH - _LABEL) / seconds
    shapes: dict[bool, list[str]] = {False: [], True: []}
    labels: list[str] = []
    rows = _rows(sorted(longest, key=lambda bar: bar.start))[:_MOST_ROWS]
    for number, (worker, row) in enumerate(rows):
        if worker != (rows[number - 1][0] if number else None):
            name = escape(worker[:_LABEL_CHARACTERS] or "worker")
            labels.append(f'<text x="0" y="{number * _ROW + 12}">{name}</text>')
        for bar in row:
            x = _LABEL + (bar.start - begin).total_seconds() * scale
            width = max((bar.end - bar.start).total_seconds() * scale - 1, 1)
            path = f"M{x:.0f} {number * _ROW + 1}h{width:.0f}v{_ROW - 2}h-{width:.0f}z"
            shapes[bar.failed].append(path)
    height = len(rows) * _ROW + _AXIS
    ticks = "".join(
        f'<text x="{_LABEL + part * (_WIDTH - _LABEL):.0f}" y="{height - 4}" '
        f'text-anchor="{anchor}">{part * seconds:.0f} s</text>'
        for part, anchor in ((0, "start"), (0.5, "middle"), (1, "end"))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
        f'<path fill="#2a9d5c" d="{"".join(shapes[False])}"/>'
        f'<path fill="#d43f3a" d="{"".join(shapes[True])}"/>{"".join(labels)}{ticks}</svg>'
    )


def _rows(bars: Iterable[Bar]) -> list[tuple[str, list[Bar]]]:
    """Return rows of attempts that do not overlap, those of a worker one below the other."""
    workers: dict[str, list[list[Bar]]] = {}
    for bar in bars:
        own = workers.setdefault(bar.worker, [])
        for row in own:
            if row[-1].end <= bar.start:
                row.append(bar)
                break
        else:
            own.append([bar])
    return [(worker, row) for worker, own in sorted(workers.items()) for row in own]
