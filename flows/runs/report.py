"""What a flow run's page shows of a job: a progress bar, and the report at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from humanize import naturalsize
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.context import FlowRunContext
from slugify import slugify

from prefect_renderfarm.blocks.runtime.prefect_api import call_sync, run_log
from prefect_renderfarm.blocks.runtime.repeat import periodic
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.results import Assembly, FailedAttempt, RenderReport

# An update is a request of some 30 ms to the server.
_SECONDS_BETWEEN_UPDATES = 1.0
# Nobody reads a longer table, and the page that shows it becomes slow.
_MOST_ROWS = 1000
_MOST_CHARACTERS = 300

_ASSEMBLY = {
    Assembly.STITCHED: "Assembled by the stitcher",
    Assembly.MERGED: "Assembled by the job's merge command",
    Assembly.SKIPPED: "Not assembled: the job has no merge command, and no stitcher was chosen",
    Assembly.OFF: "Not assembled: `merge` is off, and the chunks are the result",
}


@contextmanager
def showing_progress(total: int, what: str) -> Iterator[Callable[..., None]]:
    """Inside the block, show "3 of 9 chunks rendered" on the flow run's page, if there is a run.

    Yields `show(done, note="")`, which sets what a thread sends, at most once a second, and at the
    end: the work never waits for the server.
    """
    now = (0, "")
    sent: tuple[int, str] | None = None
    artifact: Any = None

    def show(done: int, note: str = "") -> None:
        nonlocal now
        now = (done, note)

    def send() -> None:
        nonlocal artifact, sent
        if (sending := now) == sent:
            return
        done, note = sending
        text = f"{done:,} of {total:,} {what}{note}"
        shown = {"progress": 100.0 * done / total, "description": text}
        if artifact is None:
            artifact = call_sync(create_progress_artifact, **shown)
        else:
            call_sync(update_progress_artifact, artifact, **shown)
        sent = sending

    if FlowRunContext.get() is None:
        yield show
        return
    try:
        with periodic(send, _SECONDS_BETWEEN_UPDATES, "progress", wait=True):
            yield show
    finally:
        try:
            send()
        except Exception as error:
            run_log().warning("cannot show progress: %s", error)


def publish_report(report: RenderReport) -> None:
    """Put the report on the current flow run's page."""
    publish(
        f"render-report-{slugify(report.job, max_length=60) or 'job'}",
        report_markdown(report),
        f"{report.job}: {report.frames:,} frames",
    )


def publish(key: str, markdown: str, description: str) -> None:
    """Create an artifact of the current flow run; an error of the server is only logged."""
    try:
        call_sync(create_markdown_artifact, key=key, markdown=markdown, description=description)
    except Exception as error:
        run_log().warning("cannot create the artifact %s: %s", key, error)


def report_markdown(report: RenderReport) -> str:
    """Return the report as Markdown: where the film is, totals, and a table of the chunks."""
    lines = [f"# {_cell(report.job)}", "", f"**{_ASSEMBLY[report.assembly]}.**"]
    if report.film is not None:
        lines += ["", f"Film: {_cell(str(report.film))}"]
    if report.stitch is not None and report.stitch.dropped:
        lines += ["", "Not in the film: " + ", ".join(map(_cell, report.stitch.dropped))]
    lines += ["", "| Total | |", "|---|---:|"]
    lines += [f"| {name} | {value} |" for name, value in _totals(report)]
    if report.failed_attempts:
        lines += ["", *_failure_table(report.failed_attempts)]
    return "\n".join([*lines, "", *_chunk_table(report.chunks)])


def _chunk_table(chunks: Sequence[ChunkResult]) -> list[str]:
    lines = ["## Chunks", ""]
    if len(chunks) > _MOST_ROWS:
        lines += [f"The {_MOST_ROWS:,} slowest of {len(chunks):,}.", ""]
        slowest = sorted(chunks, key=lambda chunk: chunk.seconds, reverse=True)[:_MOST_ROWS]
        chunks = sorted(slowest, key=lambda chunk: chunk.id)
    lines += [
        "| Chunk | First frame | Frames | Seconds | Attempts | Size | Worker | File |",
        "|---:|---:|---:|---:|---:|---:|---|---|",
    ]
    return lines + [
        f"| {chunk.id} | {chunk.start_frame} | {chunk.frame_count} | {chunk.seconds:.1f} "
        f"| {chunk.attempts} | {naturalsize(chunk.size)} | {_cell(chunk.worker)} "
        f"| {_cell(chunk.output_file)} |"
        for chunk in chunks
    ]


def _failure_table(attempts: Sequence[FailedAttempt]) -> list[str]:
    lines = ["## Failed attempts", ""]
    if len(attempts) > _MOST_ROWS:
        lines += [f"The last {_MOST_ROWS:,} of {len(attempts):,}.", ""]
    lines += ["| Chunk | Attempt | Seconds | Error | What failed |", "|---:|---:|---:|---|---|"]
    return lines + [
        f"| {failed.chunk} | {failed.attempt} | {failed.seconds:.1f} | {failed.kind} "
        f"| {_cell(' '.join(failed.message.split())[:_MOST_CHARACTERS])} |"
        for failed in attempts[-_MOST_ROWS:]
    ]


def _totals(report: RenderReport) -> Iterator[tuple[str, str]]:
    chunks = report.chunks
    yield "Chunks", f"{len(chunks):,}"
    yield "Chunks from other runs", f"{len(report.reused):,}"
    yield "Frames", f"{report.frames:,} at {report.fps} a second"
    yield "Size of all chunks", naturalsize(sum(chunk.size for chunk in chunks))
    yield "Attempts", f"{sum(chunk.attempts for chunk in chunks):,}"
    yield "Failed attempts, of this run", f"{len(report.failed_attempts):,}"
    yield "Rendering, wall time", f"{report.render_seconds:.1f} s"
    yield "Rendering, all chunks added up", f"{sum(chunk.seconds for chunk in chunks):.1f} s"
    if report.assembly.wanted:
        yield "Assembly, after the last chunk", f"{report.assembly_seconds:.1f} s"
    if report.rendered_at and report.assembled_at:
        seconds = (report.assembled_at - report.rendered_at).total_seconds()
        yield "From the last chunk to the film", f"{seconds:.2f} s"
    if report.stitch is not None:
        yield "Film", f"{report.stitch.duration:.3f} s, {naturalsize(report.stitch.size)}"


def _cell(text: str) -> str:
    return "`" + text.replace("|", "\\|").replace("`", "'") + "`" if text else ""
