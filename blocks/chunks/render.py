"""A worker's round: input files, command, check, publish; the same wherever a worker runs."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

from prefect.blocks.abstract import ObjectStorageBlock

from prefect_renderfarm.blocks.assets.cache import LEAST_FREE_BYTES, require_room
from prefect_renderfarm.blocks.assets.manifest import lay_out
from prefect_renderfarm.blocks.assets.workspace import disk_errors
from prefect_renderfarm.blocks.chunks.request import ChunkRequest
from prefect_renderfarm.blocks.command import WorkerJob, WorkerResult
from prefect_renderfarm.blocks.errors import (
    ChunkFileError,
    MediaFault,
    RenderFarmError,
    WorkerLost,
)
from prefect_renderfarm.blocks.media.model import Media, Verify
from prefect_renderfarm.blocks.media.reader import read_by_index, read_media
from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.blocks.storage.chunk_files import content, remove
from prefect_renderfarm.blocks.storage.job_store import JobStore
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.blocks.storage.publish import disk_of


class ChunkReader:
    """Reads chunk files; safe to use from several threads.

    A file that is coded like the first one, byte for byte of its headers, is read by its sample
    table alone, which takes a seventh of the time.

    Args:
        verify: How closely to look.
    """

    def __init__(self, verify: Verify) -> None:
        self._verify = verify
        self._first: Media | None = None

    def read(self, path: Path, fps: Fraction) -> Media:
        """Read a file, or an image sequence, and check that its frames lie on a grid of `fps`.

        Raises:
            MediaFault: See `read_media`.
        """
        first = self._first
        if first is not None and self._verify is not Verify.DECODE:
            media = read_by_index(path, fps, first)
            if media is not None:
                return media
        media = read_media(path, fps, verify=self._verify)
        self._first = first or media
        return media


def render_here(
    order: ChunkRequest,
    storage: ObjectStorageBlock,
    run: Callable[[WorkerJob], WorkerResult],
    stop: threading.Event,
    worker: str | None = None,
) -> WorkerResult:
    """Do a chunk's round on this machine, in a workspace that is removed afterwards.

    A chunk whose manifest is there already is not rendered again: an answer was lost, or another
    attempt was faster.

    Args:
        order: The chunk.
        storage: Where its input comes from and its file goes.
        run: Runs the command.
        stop: Ends the command when set.
        worker: What the worker is called in reports; None: as `run` calls it.

    Returns:
        How the command ended.

    Raises:
        ChunkFileError: The command succeeded, but its file is missing or not what was planned.
        WorkerError: The command could not be run to its end, or its input not laid out.
        WorkerLost: The same, or the command failed, on a disk that is full.
        StorageError: The storage did not answer, or an input file is not what was sent.
        StorageRefused: It does not let this machine in, or is not the one that has the job.
    """
    started = time.monotonic()
    bucket = BucketStore(storage)
    store = JobStore(bucket, order.key)
    with naming_chunk_and_worker(order, worker):
        if (done := store.manifest(order.chunk_id, order.identity)) is not None:
            return WorkerResult(exit_code=0, stdout="rendered before", worker=done.worker)
        store.require_job()
        with _workspace() as folder:
            workspace, log_file = folder / "work", folder / "log.txt"
            output = workspace / order.output_file
            workspace.mkdir()
            if order.assets is not None:
                lay_out(order.assets, bucket, workspace, stop)
            with disk_errors("output file"):
                remove(output)  # an old one among the input is not what the command writes
                _make_folder(output, order.output_file)
            result = run(
                WorkerJob(
                    command=order.command,
                    cwd=workspace,
                    name=f"chunk {order.chunk_id}",
                    chunk_id=order.chunk_id,
                    output_file=order.output_file,
                    log_file=log_file,
                    timeout=order.timeout,
                    stop=stop,
                )
            )
            log = log_file.read_bytes() if log_file.exists() else _output_of(result)
            if result.exit_code != 0:
                store.keep_log(order.chunk_id, log)
                if result.exit_code not in (126, 127):  # there is no program to find a disk full
                    words = f"its command ended with exit code {result.exit_code}"
                    _blame_full_disk(f"{words}: {result.last_words()}", folder)
                return result
            try:
                done = measure_order(order, output, worker or result.worker, started)
            except ChunkFileError as error:
                store.keep_log(order.chunk_id, log)
                _blame_full_disk(str(error), folder)
                raise
            store.publish(done, log)
            return result


@contextmanager
def naming_chunk_and_worker(order: ChunkRequest, worker: str | None) -> Iterator[None]:
    """Have errors that come of a machine, its disk or its access to the storage, name it.

    Args:
        order: The chunk, which all errors name.
        worker: What the machine is called in reports; None: as it calls itself.

    Raises:
        WorkerLost: The machine's disk is full.
    """
    name = f"chunk {order.chunk_id}"
    where = f"{name}: worker {worker or socket.gethostname()}"
    try:
        yield
    except RenderFarmError as error:
        if not str(error).startswith(f"{name}:"):
            error.args = (f"{where}: {error}",)
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise WorkerLost(f"{where}: {error}; {_full_disk(Path(tempfile.gettempdir()))}") from None


def measure_order(order: ChunkRequest, path: Path, worker: str, started: float) -> ChunkResult:
    """Read the file that was ordered; see `measure`."""
    return measure(
        path,
        chunk_id=order.chunk_id,
        identity=order.identity,
        start_frame=order.start_frame,
        frame_count=order.frame_count,
        output_file=order.output_file,
        fps=Fraction(order.fps),
        reader=ChunkReader(order.verify),
        worker=worker,
        started=started,
    )


def measure(
    path: Path,
    *,
    chunk_id: int,
    identity: str,
    start_frame: int,
    frame_count: int,
    output_file: str,
    fps: Fraction,
    reader: ChunkReader,
    worker: str,
    started: float,
) -> ChunkResult:
    """Read a chunk's file, hold it to its plan, and say what it is.

    Args:
        path: The file, or the folder or name of an image sequence.
        chunk_id: Number of the chunk.
        identity: What the chunk is known by.
        start_frame: First frame of its range.
        frame_count: Number of frames that are planned.
        output_file: Its file, as the job names it.
        fps: Frames a second that are planned.
        reader: Reads it.
        worker: Who rendered it.
        started: When that began, by `time.monotonic`.

    Raises:
        ChunkFileError: It is missing, damaged, or has other frames than planned.
    """
    try:
        media = reader.read(path, fps)
        if media.frames != frame_count:
            raise MediaFault(f"has {media.frames} frames, not the planned {frame_count}")  # noqa: TRY301
    except MediaFault as fault:
        raise ChunkFileError(
            f"chunk {chunk_id}: its command succeeded, but its file {output_file!r} {fault}"
        ) from None
    size, sha256 = content(path) or (0, "")
    return ChunkResult(
        id=chunk_id,
        identity=identity,
        start_frame=start_frame,
        frame_count=media.frames,
        output_file=output_file,
        path=path,
        size=size,
        sha256=sha256,
        seconds=time.monotonic() - started,
        worker=worker,
        signature=dict(media.signature),
        images=tuple(image.name for image in media.images) or None,
        published_at=datetime.now(UTC),
    )


@contextmanager
def _workspace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="renderfarm-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        require_room(folder)
        yield folder


def _blame_full_disk(failure: str, folder: Path) -> None:
    """Raise if a chunk failed because the disk is full, or was until its command tidied up.

    Raises:
        WorkerLost: So it is.
    """
    told = os.strerror(errno.ENOSPC) in failure
    if told or shutil.disk_usage(folder).free < LEAST_FREE_BYTES:
        failure = " / ".join(failure.splitlines())
        raise WorkerLost(f"{failure}; {_full_disk(folder)}")


def _full_disk(folder: Path) -> str:
    return f"{disk_of(folder / 'any')}: free some space, or set TMPDIR to another disk"


def _make_folder(output: Path, name: str) -> None:
    (output if name.endswith("/") else output.parent).mkdir(parents=True, exist_ok=True)


def _output_of(result: WorkerResult) -> bytes:
    return f"{result.stdout}\n{result.stderr}".strip().encode()
