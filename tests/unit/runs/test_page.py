"""The artifact of a job: what it shows, and how large it is at most."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from jobs import small_job

from prefect_renderfarm.blocks.errors import (
    AssemblyError,
    CommandFailed,
    JobError,
    RenderFarmError,
    RepeatedFault,
    TooManyFailures,
)
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.results import FailedAttempt
from prefect_renderfarm.flows.runs.page import JobPage, Snapshot, page_markdown
from prefect_renderfarm.flows.runs.report import about


def result(number: int) -> ChunkResult:
    """Return a finished chunk."""
    return ChunkResult(
        id=number, start_frame=number, frame_count=6, output_file=f"{number}|.mp4",
        path=Path("0.mp4"), size=1000, sha256="", seconds=number % 13, worker="cloud-1 (host)",
        published_at=datetime.now(UTC),
    )  # fmt: skip


def failed(message: str = "chunk 1: bad", output: str = "") -> FailedAttempt:
    """Return a failed attempt at chunk 1."""
    return FailedAttempt(
        chunk=1, attempt=1, seconds=1, kind="CommandFailed", message=message, output=output,
        worker="w", ended_at=datetime.now(UTC),
    )  # fmt: skip


def lines_of_failure(error: RenderFarmError, now: Snapshot) -> str:
    """Return what the page of a failed job says first."""
    return "\n".join(JobPage(small_job(), lambda _: {})._failure(error, now))


def test_size() -> None:
    """A page has 300 kB at most, whatever is shown: pictures give way, evenly."""
    done = {number: result(number) for number in range(2000)}
    images = {number: bytes(9_000) for number in range(0, 2000, 42)}
    failures = [failed("chunk 1: " + "x" * 5000)] * 500
    running = dict.fromkeys(range(5000, 8000), 5.0)
    now = Snapshot(done, frozenset(), running, failures, dict.fromkeys(running, "it is slow"))
    page = page_markdown(small_job(), "done", ["first"], now, images)
    assert len(page.encode()) <= 300_000
    assert 3 < page.count("data:image/jpeg") < 24
    assert "The 200 slowest of 2,000." in page
    assert page.count("data:image/svg+xml") == 1
    long = {n: one.model_copy(update={"output_file": "é" * 900}) for n, one in done.items()}
    wide = page_markdown(
        small_job(), "done", [], Snapshot(long, failed=[failed("é" * 300)] * 500), {}
    )
    assert 100_000 < len(wide.encode()) <= 300_000
    without = page_markdown(small_job(), "rendering", [], now, {1: bytes(400_000)})
    assert "jpeg" not in without
    assert "svg" not in without


def test_pictures_are_in_the_order_of_the_film() -> None:
    """Four in a row, each with its chunk's number."""
    done = {number: result(number) for number in (5, 0, 3, 1, 4)}
    images = dict.fromkeys((5, 3, 0, 1, 4), b"jpeg")
    rows = [
        line
        for line in page_markdown(small_job(), "rendering", [], Snapshot(done), images).splitlines()
        if "data:image" in line
    ]
    assert [row.count("![") for row in rows] == [4, 1]
    assert rows[0].index("![chunk 0]") < rows[0].index("![chunk 1]") < rows[0].index("![chunk 4]")


def test_failure() -> None:
    """The reason, command, end of the output, and what to do; nothing of it is Markdown."""
    error = CommandFailed("chunk 1: bad *program*")
    now = Snapshot({0: result(0)}, failed=[failed(str(error), "line\n```\n# no title")])
    text = lines_of_failure(error, now)
    assert text.startswith("**chunk 1: bad \\*program\\***")
    assert small_job().chunks[1].command in text
    assert "line\n'''\n# no title\n```" in text
    assert "Run the job again: the chunks that are done are not rendered a second time." in text
    assert "1 of 3 chunks done, 1 failed attempt" in text
    for more in (RepeatedFault(f"{error}, again"), TooManyFailures(f"3 failed; last: {error}")):
        assert small_job().chunks[1].command in lines_of_failure(more, now)
    assert "renderfarm assemble" in lines_of_failure(AssemblyError("no film"), now)
    assert "Command" not in lines_of_failure(JobError("no job"), Snapshot())


def test_durations() -> None:
    """They are rounded, so that a page does not change all the time."""
    assert [about(s) for s in (0.4, 9, 14, 47, 75, 3_600, 10_000)] == [
        "0 s", "9 s", "10 s", "50 s", "1 min", "60 min", "3 h",
    ]  # fmt: skip
