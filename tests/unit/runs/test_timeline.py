"""The picture of who rendered what when."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree

from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.results import FailedAttempt
from prefect_renderfarm.flows.runs.timeline import Bar, bars_of, timeline

START = datetime(2026, 1, 1, tzinfo=UTC)
SVG = "{http://www.w3.org/2000/svg}"


def bar(worker: str, first: float, last: float, *, failed: bool = False) -> Bar:
    """Return an attempt between two moments, in seconds."""
    return Bar(worker, START + timedelta(seconds=first), START + timedelta(seconds=last), failed)


def test_attempts_of_results() -> None:
    """Done chunks and failed attempts whose end is known are in it, by their start."""
    done = ChunkResult(
        id=0, start_frame=0, frame_count=1, output_file="0.mp4", path=Path("0.mp4"), size=1,
        sha256="", seconds=4, worker="a", published_at=START + timedelta(seconds=10),
    )  # fmt: skip
    unknown = done.model_copy(update={"published_at": None})
    failed = FailedAttempt(
        chunk=0, attempt=1, seconds=3, kind="CommandFailed", message="", worker="b",
        ended_at=START + timedelta(seconds=5),
    )  # fmt: skip
    assert bars_of([done, unknown], [failed]) == [bar("b", 2, 5, failed=True), bar("a", 6, 10)]
    assert timeline([]) == ""


def test_rows() -> None:
    """A worker has as many rows as it does chunks at once; names are text, not markup."""
    attempts = [bar("a<b>", 0, 10), bar("a<b>", 5, 15), bar("a<b>", 10, 20, failed=True)]
    svg = ElementTree.fromstring(timeline([*attempts, bar("c", 0, 20)]))  # noqa: S314
    good, bad = svg.findall(f"{SVG}path")
    assert len(re.findall("M", good.attrib["d"])) == 3
    assert len(re.findall("M", bad.attrib["d"])) == 1
    texts = [text.text for text in svg.findall(f"{SVG}text")]
    assert texts == ["a<b>", "c", "0 s", "10 s", "20 s"]
    rows = {y for path in (good, bad) for y in re.findall(r"M\d+ (\d+)", path.attrib["d"])}
    assert len(rows) == 3
    assert svg.attrib["viewBox"] == "0 0 720 68"


def test_many_attempts() -> None:
    """Of more than 1,000 the longest are shown, and the picture stays small."""
    attempts = [bar(f"w{n % 100}", n, n + 1 + n % 7) for n in range(5000)]
    svg = timeline(attempts)
    assert 500 < svg.count("M") <= 1000
    assert len(svg) < 60_000
