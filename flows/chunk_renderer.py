"""A chunk's round: run its command, check its file, publish it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from datetime import UTC, datetime

from prefect_renderfarm.blocks import (
    ChunkFileError,
    CommandFailed,
    CommandNotRunnable,
    WorkerAdapter,
    WorkerJob,
    WorkerResult,
    WorkStopped,
)
from prefect_renderfarm.blocks.chunk_file import content
from prefect_renderfarm.blocks.errors import MediaFault
from prefect_renderfarm.blocks.media import Media
from prefect_renderfarm.blocks.media_reader import read_media
from prefect_renderfarm.blocks.run_log import run_log
from prefect_renderfarm.blocks.signature import Signature, difference
from prefect_renderfarm.blocks.video_stitcher import ChunkRules
from prefect_renderfarm.flows.job import Chunk
from prefect_renderfarm.flows.job_folder import JobFolder
from prefect_renderfarm.flows.pace import Pace
from prefect_renderfarm.flows.results import ChunkResult


class ChunkRenderer:
    """Renders the chunks of one job; safe to use from several threads.

    Args:
        folder: The job's folder.
        adapter: Where commands run.
        retry_delay: Seconds between two attempts of a chunk.
        rules: What the stitcher asks of chunks.
    """

    def __init__(
        self,
        folder: JobFolder,
        adapter: WorkerAdapter,
        retry_delay: float = 0.0,
        rules: ChunkRules = ChunkRules(),  # noqa: B008 -- frozen
    ) -> None:
        self.stop = threading.Event()
        self.done: dict[int, ChunkResult] = {}
        self.failure: Exception | None = None
        self._folder = folder
        self._adapter = adapter
        self._retry_delay = retry_delay
        self._attempts: Counter[int] = Counter()
        self._rules = rules
        self._first: tuple[int, Signature] | None = None
        self._lock = threading.Lock()
        self._running: dict[int, float] = {}

    def render(self, chunk: Chunk) -> ChunkResult:
        """Render a chunk, unless an earlier attempt of this run already did.

        When it fails, no file of the chunk is left under its name.

        Raises:
            WorkerError: The command failed, or its file is not what was planned.
        """
        if chunk.id in self.done:
            return self.done[chunk.id]
        if self.stop.is_set():
            raise WorkStopped(f"chunk {chunk.id}: not started, because its job was stopped")
        if self._attempts[chunk.id]:
            self._wait_before_retry(chunk)
        self._attempts[chunk.id] += 1
        self._folder.drop_chunk(chunk)
        started = self._running[chunk.id] = time.monotonic()
        try:
            worker = self._run_command(chunk)
            media = self._check_file(chunk)
            path = self._folder.chunk_file(chunk)
            size, sha256 = content(path) or (0, "")
        except BaseException:
            self._folder.drop_chunk(chunk)
            raise
        finally:
            del self._running[chunk.id]
        result = ChunkResult(
            id=chunk.id,
            start_frame=chunk.start_frame,
            frame_count=media.frames,
            output_file=chunk.output_file,
            path=path,
            size=size,
            sha256=sha256,
            seconds=time.monotonic() - started,
            attempts=self._attempts[chunk.id],
            worker=worker,
            signature=dict(media.signature),
            published_at=datetime.now(UTC),
        )
        self._folder.publish_chunk(chunk, result)
        self.done[chunk.id] = result
        return result

    def pace(self) -> Pace:
        """Return how far the rendering is."""
        now = time.monotonic()
        running = [now - started for started in list(self._running.values())]
        finished = [result.seconds for result in list(self.done.values())]
        return Pace(finished, running, len(self._folder.job.chunks) - len(finished) - len(running))

    def give_up(self, failure: Exception) -> None:
        """Stop the job because a chunk failed for good; the first failure is the job's."""
        self.failure = self.failure or failure
        self.stop.set()

    def _wait_before_retry(self, chunk: Chunk) -> None:
        """Wait here and not in Prefect's retry, which sleeps through the end of its job."""
        attempt = self._attempts[chunk.id] + 1
        run_log().info("chunk %s: attempt %d begins in %g s", chunk.id, attempt, self._retry_delay)
        if self.stop.wait(self._retry_delay):
            raise WorkStopped(f"chunk {chunk.id}: not tried again, because its job was stopped")

    def _run_command(self, chunk: Chunk) -> str:
        result = self._adapter.execute(
            WorkerJob(
                command=chunk.command,
                cwd=self._folder.path,
                name=f"chunk {chunk.id}",
                chunk_id=chunk.id,
                output_file=chunk.output_file,
                stop=self.stop,
            )
        )
        require_success(result, f"chunk {chunk.id}")
        return result.worker

    def _check_file(self, chunk: Chunk) -> Media:
        path = self._folder.chunk_file(chunk)
        try:
            media = read_media(path, self._folder.job.metadata.rate, verify=self._rules.verify)
            if media.frames != chunk.frame_count:
                raise MediaFault(f"has {media.frames} frames, not the planned {chunk.frame_count}")  # noqa: TRY301
            self._check_signature(chunk, media.signature)
        except MediaFault as fault:
            raise ChunkFileError(
                f"chunk {chunk.id}: its command succeeded, but its file {str(path)!r} {fault}"
            ) from None
        return media

    def _check_signature(self, chunk: Chunk, signature: Signature) -> None:
        if self._rules.may_differ is None:
            return
        with self._lock:
            self._first = self._first or (chunk.id, signature)
            first, expected = self._first
        if odd := difference(expected, signature, self._rules.may_differ):
            raise MediaFault(f"differs from that of chunk {first}, which was done before it: {odd}")


def require_success(result: WorkerResult, name: str) -> None:
    """Raise unless a command ended with exit code 0.

    Raises:
        CommandNotRunnable: Its program is missing or cannot be executed.
        CommandFailed: It ended with any other code.
    """
    if result.exit_code == 0:
        return
    kind = CommandNotRunnable if result.exit_code in (126, 127) else CommandFailed
    words = result.last_words()
    raise kind(
        f"{name}: its command ended with exit code {result.exit_code}"
        + (f": {' / '.join(words.splitlines())}" if words else "")
    )
