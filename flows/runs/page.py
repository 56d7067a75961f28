"""What a flow run's page shows of a job: one artifact, from the first chunk to the film."""

from __future__ import annotations

import base64
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from humanize import naturalsize
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.events import emit_event
from slugify import slugify

from prefect_renderfarm.blocks.errors import AssemblyError, RenderFarmError, WorkerError
from prefect_renderfarm.blocks.runtime.prefect_api import call_sync
from prefect_renderfarm.blocks.runtime.repeat import periodic
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.spec import RenderJob
from prefect_renderfarm.flows.results import Assembly, FailedAttempt, RenderReport
from prefect_renderfarm.flows.runs.report import about, only_logged, summarized
from prefect_renderfarm.flows.runs.timeline import bars_of, timeline

# The artifact is sent whole: often while a job is young, then once in a quarter of its age.
_FIRST_SECONDS, _MOST_SECONDS = 5.0, 60.0
_POLL_SECONDS = 1.0
# Nobody reads a longer table, and the page that shows it becomes slow.
_MOST_ROWS = 200
_MOST_CHARACTERS = 300
_MOST_BYTES = 300_000
_BAR = 30  # characters
_COLUMNS = 4  # of pictures
_MOST_EVENTS = 20  # of each kind: the server keeps them all

_ASSEMBLY = {
    Assembly.STITCHED: "Assembled by the stitcher",
    Assembly.MERGED: "Assembled by the job's merge command",
    Assembly.SKIPPED: "Not assembled: the job has no merge command, and no stitcher was chosen",
    Assembly.OFF: "Not assembled: `merge` is off, and the chunks are the result",
}
_AGAIN = "Run the job again: the chunks that are done are not rendered a second time."
_ASSEMBLE_AGAIN = (
    "The chunks stay. Correct what is wrong, and assemble them again: `renderfarm assemble`, or "
    "run the job again."
)


@dataclass(frozen=True)
class Snapshot:
    """How far the rendering of a job is."""

    results: Mapping[int, ChunkResult] = field(default_factory=dict)
    reused: frozenset[int] = frozenset()  # ids of the chunks that another run rendered
    running: Mapping[int, float] = field(default_factory=dict)  # seconds, by chunk
    failed: Sequence[FailedAttempt] = ()
    slow: Mapping[int, str] = field(default_factory=dict)  # in what a chunk is slow


class JobPage:
    """The artifact `renderfarm-<job id>` of the current flow run.

    What the server does not take is only logged.
    """

    def __init__(
        self, job: RenderJob, thumbnails: Callable[[Iterable[ChunkResult]], Mapping[int, bytes]]
    ) -> None:
        self._job = job
        self._thumbnails = thumbnails
        self._images: dict[int, bytes] = {}
        self._look: Callable[[], Snapshot] = Snapshot
        self._artifact: Any = None
        self._key = f"renderfarm-{slugify(job.title, max_length=60) or 'job'}"
        self._told: defaultdict[str, set[Any]] = defaultdict(set)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Show the job from here on; if the block ends with an error, show why."""
        self._publish("waiting to begin")
        try:
            yield
        except RenderFarmError as error:
            self._publish("failed", self._failure(error, self._look()))
            raise
        except BaseException:
            self._publish("cancelled", [*self._progress(self._look()), "", _AGAIN])
            raise

    @contextmanager
    def showing(
        self, look: Callable[[], Snapshot], seconds_left: Callable[[], float | None]
    ) -> Iterator[None]:
        """Inside the block, show how far the rendering is."""
        self._look = look
        began = due = time.monotonic()

        def update() -> None:
            nonlocal due
            if (now := time.monotonic()) >= due:
                due = now + min(max(_FIRST_SECONDS, (now - began) / 4), _MOST_SECONDS)
                self._publish("rendering", seconds_left=seconds_left())

        with periodic(update, _POLL_SECONDS, "page of the run", wait=True):
            yield

    def assembling(self) -> None:
        """Show that all chunks are rendered."""
        self._publish("assembling")

    def finish(self, report: RenderReport, link: str | None = None) -> None:
        """Show what the job came to, and where the film is; `link` is its URL, for a day."""
        with only_logged("show the job on the run's page"):
            if link is not None:
                text = f"{self._job.title}: the film, for 24 hours"
                key = self._key.replace("renderfarm-", "renderfarm-film-", 1)
                call_sync(create_link_artifact, key=key, link=link, link_text=text)
            if report.film is not None:
                self._tell("film.ready", film=str(report.film), summary=summarized(report))
        done = {result.id: result for result in report.chunks}
        last = replace(self._look(), results=done, running={})
        self._look = lambda: last
        self._publish("done", _outcome(report), _totals(report))

    def _publish(
        self,
        state: str,
        lines: Sequence[str] = (),
        totals: Sequence[str] = (),
        seconds_left: float | None = None,
    ) -> None:
        """Show the job as it is now; `lines` stand first, by default its progress."""
        with only_logged("show the job on the run's page"):
            now = self._look()
            self._tell_news(now)
            new = [one for number, one in now.results.items() if number not in self._images]
            self._images |= self._thumbnails(new)
            lines = lines or self._progress(now, seconds_left)
            markdown = page_markdown(self._job, state, lines, now, self._images, totals)
            description = f"{self._job.title}: {state}"
            if self._artifact is None:
                content = {"markdown": markdown, "description": description}
                self._artifact = call_sync(create_markdown_artifact, key=self._key, **content)
                return
            # In place: a new version each time would fill the page with old ones.
            with get_client(sync_client=True) as client:
                change = ArtifactUpdate(data=markdown, description=description)
                client.update_artifact(self._artifact, change)

    def _tell(self, event: str, **payload: Any) -> None:
        """Emit an event of the job, to which an automation may react."""
        resource = {
            "prefect.resource.id": f"renderfarm.job.{self._job.key}",
            "prefect.resource.name": self._job.title,
        }
        emit_event(f"renderfarm.{event}", resource, payload=payload)

    def _tell_news(self, now: Snapshot) -> None:
        """Emit an event for each attempt that failed and each chunk that is slow, 20 at most."""
        news: dict[str, dict[Any, str]] = {
            "chunk.failed": {(one.chunk, one.attempt): one.message for one in now.failed},
            "chunk.slow": {each: f"chunk {each}: {why}" for each, why in now.slow.items()},
        }
        for event, messages in news.items():
            told = self._told[event]
            new = [key for key in messages if key not in told][: _MOST_EVENTS - len(told)]
            told.update(new)
            for key in new:
                self._tell(event, message=messages[key])

    def _progress(self, now: Snapshot, seconds_left: float | None = None) -> list[str]:
        total = self._job.metadata.total_frames
        frames = sum(result.frame_count for result in now.results.values())
        counts = [f"{len(now.results):,} of {len(self._job.chunks):,} chunks done"]
        if now.running:
            counts.append(f"{len(now.running):,} running")
        if now.failed:
            counts.append(f"{len(now.failed):,} failed attempt{'s'[: len(now.failed) > 1]}")
        if seconds_left:
            counts.append(f"about {about(seconds_left)} left")
        bar = ("█" * (_BAR * frames // total)).ljust(_BAR, "░")
        share = f"`{bar}` {100 * frames // total} %: {frames:,} of {total:,} frames"
        return [share, "", ", ".join(counts)]

    def _failure(self, error: RenderFarmError, now: Snapshot) -> list[str]:
        lines = [f"**{_text(str(error), 2 * _MOST_CHARACTERS)}**", ""]
        # A job that gives up for the sum of its failures says so, and quotes the last one.
        failed = next((one for one in reversed(now.failed) if one.message in str(error)), None)
        output = getattr(error, "output", "") or (failed.output if failed else "")
        commands = {chunk.id: chunk.command for chunk in self._job.chunks}
        if failed is not None and failed.chunk in commands:
            lines += ["Command:", "", *_code(commands[failed.chunk][: 4 * _MOST_CHARACTERS]), ""]
        if output:
            lines += ["The end of its output:", "", *_code(output), ""]
        advice = _AGAIN
        if isinstance(error, AssemblyError):
            advice = _ASSEMBLE_AGAIN
        elif isinstance(error, WorkerError):
            advice = f"Correct the command or its input. {_AGAIN}"
        return [*lines, advice, "", *self._progress(now)]


def page_markdown(
    job: RenderJob,
    state: str,
    lines: Sequence[str],
    now: Snapshot,
    images: Mapping[int, bytes],
    totals: Sequence[str] = (),
) -> str:
    """Return the page of a job, of at most 300 kB: pictures that are too much are left out."""
    parts = [f"# {_cell(job.title)}: {state}", "", *lines, ""]
    done = [now.results[number] for number in sorted(now.results)]
    tables = [*_failures(now.failed), *_slow(now.slow), *_running(now.running)]
    tables += [*totals, *_chunks(done)]
    if state != "rendering":
        own = [result for result in done if result.id not in now.reused]
        if svg := timeline(bars_of(own, now.failed)):
            picture = f"![timeline]({_data('svg+xml', svg.encode())})"
            parts += _section("Who rendered when (red: failed)", [picture])
    while len(text := "\n".join([*parts, *tables]).encode()) > _MOST_BYTES:
        tables = tables[: len(tables) * 3 // 4]  # the last rows
    shown = [(result.id, images[result.id]) for result in done if images.get(result.id)]
    room = _MOST_BYTES - len(text)
    while sum(len(image) * 4 // 3 + 60 for _, image in shown) > room:
        shown = shown[::2] if len(shown) > 1 else []
    cells = [f"{number} ![chunk {number}]({_data('jpeg', image)})" for number, image in shown]
    rows = [cells[first : first + _COLUMNS] for first in range(0, len(cells), _COLUMNS)]
    sheet = _table("First frames", "| " * _COLUMNS + "|", "|---" * _COLUMNS + "|", rows)
    return "\n".join([*parts, *sheet, *tables])


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""] if lines else []


def _table(
    title: str, head: str, columns: str, rows: Sequence[Sequence[object]], note: str = ""
) -> list[str]:
    """Return a section with a table; none if it has no rows. The note stands before it."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return _section(title, [*([note, ""] if note else []), head, columns, *lines] if rows else [])


def _data(kind: str, image: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _outcome(report: RenderReport) -> list[str]:
    """Return where the film is, and what it lacks."""
    lines = [f"**{_text(summarized(report), _MOST_CHARACTERS)}**", ""]
    lines.append(f"{_ASSEMBLY[report.assembly]}.")
    if report.stitch is not None and report.stitch.dropped:
        lines += ["", "Not in the film: " + ", ".join(map(_cell, report.stitch.dropped))]
    return lines


def _chunks(chunks: Sequence[ChunkResult]) -> list[str]:
    slowest = sorted(chunks, key=lambda chunk: -chunk.seconds)[:_MOST_ROWS]
    rows = [
        (chunk.id, chunk.start_frame, chunk.frame_count, f"{chunk.seconds:.1f}", chunk.attempts,
         naturalsize(chunk.size), _cell(chunk.worker), _cell(chunk.output_file))
        for chunk in sorted(slowest, key=lambda chunk: chunk.id)
    ]  # fmt: skip
    return _table(
        "Chunks",
        "| Chunk | First frame | Frames | Seconds | Attempts | Size | Worker | File |",
        "|---:|---:|---:|---:|---:|---:|---|---|",
        rows,
        f"The {len(rows):,} slowest of {len(chunks):,}." if len(rows) < len(chunks) else "",
    )


def _failures(attempts: Sequence[FailedAttempt]) -> list[str]:
    rows = [
        (one.chunk, one.attempt, f"{one.seconds:.1f}", _cell(one.worker), one.kind,
         _cell(" ".join(one.message.split())[:_MOST_CHARACTERS]))
        for one in attempts[-_MOST_ROWS:]
    ]  # fmt: skip
    return _table(
        "Failed attempts",
        "| Chunk | Attempt | Seconds | Worker | Error | What failed |",
        "|---:|---:|---:|---|---|---|",
        rows,
        f"The last {len(rows):,} of {len(attempts):,}." if len(rows) < len(attempts) else "",
    )


def _slow(slow: Mapping[int, str]) -> list[str]:
    lines = [f"- chunk {number}: {why}" for number, why in sorted(slow.items())[:_MOST_ROWS]]
    return _section("Slow chunks", lines)


def _running(running: Mapping[int, float]) -> list[str]:
    longest = sorted(running.items(), key=lambda item: -item[1])[:_MOST_ROWS]
    shown = ", ".join(f"{number} ({about(seconds)})" for number, seconds in longest)
    return _section("Running", [f"Chunks {shown}"] if shown else [])


def _totals(report: RenderReport) -> list[str]:
    chunks = report.chunks
    rows = [
        ("Chunks", f"{len(chunks):,}"),
        ("Chunks from other runs", f"{len(report.reused):,}"),
        ("Frames", f"{report.frames:,} at {report.fps} a second"),
        ("Size of all chunks", naturalsize(sum(chunk.size for chunk in chunks))),
        ("Attempts", f"{sum(chunk.attempts for chunk in chunks):,}"),
        ("Failed attempts, of this run", f"{len(report.failed_attempts):,}"),
        ("Rendering, wall time", f"{report.render_seconds:.1f} s"),
        ("Rendering, all chunks added up", f"{sum(chunk.seconds for chunk in chunks):.1f} s"),
    ]
    if report.rendered_at and report.assembled_at:
        seconds = (report.assembled_at - report.rendered_at).total_seconds()
        rows.append(("From the last chunk to the film", f"{seconds:.2f} s"))
    return _table("Totals", "| Total | |", "|---|---:|", rows)


def _cell(text: str) -> str:
    return "`" + text.replace("|", "\\|").replace("`", "'") + "`" if text else ""


def _text(text: str, most: int) -> str:
    """Return a text of one line in which nothing is Markdown."""
    short = " ".join(text.split())
    short = short if len(short) <= most else f"{short[:most]}…"
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|~" else c for c in short)


def _code(text: str) -> list[str]:
    """Return a text as a block of code, which no line of it can end."""
    return ["```text", *(line.replace("```", "'''") for line in text.splitlines()), "```"]
