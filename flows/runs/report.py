"""The report on a job that people read: an artifact on the flow run's page."""

from __future__ import annotations

from collections.abc import Sequence

from prefect.artifacts import create_markdown_artifact
from slugify import slugify

from prefect_renderfarm.blocks.runtime.prefect_api import call_sync
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.results import Assembly, FailedAttempt, RenderReport

# Beyond this a table is no longer read, and the page that shows it becomes slow.
_MAX_ROWS = 1000
_MAX_WORDS = 300

_ASSEMBLY = {
    Assembly.STITCHED: "Put together by the stitcher",
    Assembly.MERGED: "Put together by the job's merge command",
    Assembly.SKIPPED: "Skipped: the job has no merge command, and no stitcher was chosen",
    Assembly.OFF: "Not asked for (`merge` is off): the chunks are the result",
}


def publish_report(report: RenderReport) -> None:
    """Put the report on the current flow run's page."""
    try:
        call_sync(
            create_markdown_artifact,
            key=f"render-report-{slugify(report.job, max_length=60) or 'job'}",
            markdown=report_markdown(report),
            description=f"{report.job}: {report.frames:,} frames",
        )
    except Exception as error:
        run_log().warning("the report cannot be shown: %s", error)


def report_markdown(report: RenderReport) -> str:
    """Return the report as Markdown: where the film is, totals, and a table of the chunks."""
    lines = [f"# {_cell(report.job)}", "", f"**{_ASSEMBLY[report.assembly]}.**"]
    if report.film is not None:
        lines += ["", f"Film: {_cell(str(report.film))}"]
    lines += ["", "| Total | |", "|---|---:|"]
    lines += [f"| {name} | {value} |" for name, value in _totals(report)]
    if report.failed_attempts:
        lines += ["", *failure_table(report.failed_attempts)]
    lines += ["", *chunk_table(report.chunks)]
    return "\n".join(lines)


def chunk_table(chunks: Sequence[ChunkResult]) -> list[str]:
    """Return the chunks as a Markdown table; of very many, the slowest."""
    shown = chunks
    lines = ["## Chunks", ""]
    if len(chunks) > _MAX_ROWS:
        slowest = sorted(chunks, key=lambda chunk: chunk.seconds, reverse=True)[:_MAX_ROWS]
        shown = sorted(slowest, key=lambda chunk: chunk.id)
        lines += [f"The {_MAX_ROWS:,} slowest of {len(chunks):,}.", ""]
    lines += [
        "| Chunk | First frame | Frames | Seconds | Attempts | Size | Worker | File |",
        "|---:|---:|---:|---:|---:|---:|---|---|",
    ]
    lines += [
        f"| {chunk.id} | {chunk.start_frame} | {chunk.frame_count} | {chunk.seconds:.1f} "
        f"| {chunk.attempts} | {human_size(chunk.size)} | {_cell(chunk.worker)} "
        f"| {_cell(chunk.output_file)} |"
        for chunk in shown
    ]
    return lines


def failure_table(attempts: Sequence[FailedAttempt]) -> list[str]:
    """Return the attempts that failed as a Markdown table; of very many, the last."""
    lines = ["## Failed attempts", ""]
    if len(attempts) > _MAX_ROWS:
        lines += [f"The last {_MAX_ROWS:,} of {len(attempts):,}.", ""]
    lines += ["| Chunk | Attempt | Seconds | Error | What failed |", "|---:|---:|---:|---|---|"]
    lines += [
        f"| {failed.chunk} | {failed.attempt} | {failed.seconds:.1f} | {failed.kind} "
        f"| {_cell(' '.join(failed.message.split())[:_MAX_WORDS])} |"
        for failed in attempts[-_MAX_ROWS:]
    ]
    return lines


def human_size(size: int) -> str:
    """Return a number of bytes in decimal units, as in IEC 80000-13."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _totals(report: RenderReport) -> list[tuple[str, str]]:
    chunks = report.chunks
    busy = sum(chunk.seconds for chunk in chunks)
    totals = [
        ("Chunks", f"{len(chunks):,}"),
        ("Chunks from other runs", f"{len(report.reused):,}"),
        ("Frames", f"{report.frames:,} at {report.fps} a second"),
        ("Size of all chunks", human_size(sum(chunk.size for chunk in chunks))),
        ("Attempts", f"{sum(chunk.attempts for chunk in chunks):,}"),
        ("Failed attempts, of this run", f"{len(report.failed_attempts):,}"),
        ("Rendering, wall time", f"{report.render_seconds:.1f} s"),
        ("Rendering, all chunks added up", f"{busy:.1f} s"),
    ]
    if report.assembly in (Assembly.STITCHED, Assembly.MERGED):
        totals.append(("Assembly, after the last chunk", f"{report.assembly_seconds:.1f} s"))
    if report.rendered_at and report.assembled_at:
        waited = (report.assembled_at - report.rendered_at).total_seconds()
        totals.append(("From the last chunk to the film", f"{waited:.2f} s"))
    if report.stitch is not None:
        totals.append(("Film", f"{report.stitch.duration:.3f} s, {human_size(report.stitch.size)}"))
    return totals


def _cell(text: str) -> str:
    return "`" + text.replace("|", "\\|").replace("`", "'") + "`" if text else ""
