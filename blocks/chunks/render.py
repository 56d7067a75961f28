"""What a worker does with one chunk: fetch the input, run the command, verify, publish."""

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
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

from prefect.blocks.abstract import ObjectStorageBlock
from prefect.blocks.core import UnknownBlockType
from pydantic import BaseModel

from prefect_renderfarm.blocks.assets.inputs import lay_out
from prefect_renderfarm.blocks.assets.workspace import (
    MIN_FREE_BYTES,
    disk_errors,
    require_chosen_disk,
    require_room,
)
from prefect_renderfarm.blocks.command import WorkerJob, WorkerResult
from prefect_renderfarm.blocks.errors import (
    ChunkFileError,
    MediaFault,
    RenderFarmError,
    SetupError,
    WorkerLost,
)
from prefect_renderfarm.blocks.media.model import Media, Verify
from prefect_renderfarm.blocks.media.reader import read_by_index, read_media
from prefect_renderfarm.blocks.media.reader_process import prepare
from prefect_renderfarm.blocks.media.thumbnail import thumbnail
from prefect_renderfarm.blocks.storage.atomic_file import disk_of
from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.blocks.storage.job_store import JobStore
from prefect_renderfarm.blocks.storage.manifest import ChunkResult, content, remove


class StorageAddress(BaseModel, frozen=True):
    """A storage block without its secrets; a worker opens it with credentials of its own."""

    kind: str  # the block type's slug, such as s3-bucket
    fields: dict[str, str | int | bool]

    @classmethod
    def of(cls, block: ObjectStorageBlock) -> Self:
        """Return the address of a block."""
        fields = {name: getattr(block, name) for name in type(block).model_fields}
        plain = {name: value for name, value in fields.items() if isinstance(value, str | int)}
        return cls(kind=block.get_block_type_slug(), fields=plain)

    def open(self) -> ObjectStorageBlock:
        """Return the storage block, with this machine's own credentials. Raises: SetupError."""
        try:
            kind: Any = ObjectStorageBlock.get_block_class_from_key(self.kind)
            block = kind(**self.fields)
        except (UnknownBlockType, ValueError) as error:
            raise SetupError(f"storage {self.kind!r} cannot be opened here: {error}") from None
        if not isinstance(block, ObjectStorageBlock):
            raise SetupError(f"{self.kind!r} is no storage: use a block such as s3-bucket")
        return block


class PlannedChunk(BaseModel, frozen=True):
    """What a chunk's file has to be."""

    chunk_id: int
    identity: str = ""  # the cache key
    start_frame: int
    frame_count: int
    output_file: str  # what the command writes, in its workspace
    fps: str  # as a fraction
    thumbnail: bool = False  # whether a small picture of its first frame is wanted


class ChunkRequest(PlannedChunk, frozen=True):
    """A chunk to render, for a worker that shares only the storage with whoever asks."""

    job: str  # its name, for messages
    key: str  # the job's key: the name of its folder in the storage
    command: str
    verify: Verify = Verify.PACKETS
    storage: StorageAddress
    assets: str | None = None  # the key of the list of the job's input files, or their URL
    timeout: float | None = None  # seconds after which the command is ended
    index: int = 0  # position of the chunk in the job spec
    fresh: bool = False  # no other attempt has begun, so that none can have rendered it


# Jobs that this process has found in their storages: each is looked for once, not at each chunk.
_found: set[tuple[str, str]] = set()


class ChunkReader:
    """Reads chunk files; safe to use from several threads.

    Of a file whose headers equal those of the first one, byte for byte, only the sample table is
    read, which takes a seventh of the time.
    """

    def __init__(self, verify: Verify) -> None:
        self._verify = verify
        self._first: Media | None = None

    def read(self, path: Path, fps: Fraction) -> Media:
        """Read a file or image sequence with frames on a grid of `fps`. See `read_media`."""
        media = None
        if self._first is not None and self._verify is not Verify.DECODE:
            media = read_by_index(path, fps, self._first)
        media = media or read_media(path, fps, verify=self._verify)
        self._first = self._first or media
        return media


def render_here(
    request: ChunkRequest,
    storage: ObjectStorageBlock,
    run: Callable[[WorkerJob], WorkerResult],
    stop: threading.Event,
    worker: str | None = None,
    stored_as: str | None = None,
) -> WorkerResult:
    """Render a chunk as `WorkerAdapter.render` does, in a workspace that is removed afterwards.

    A chunk whose manifest exists already is not rendered again: an answer was lost, or another
    attempt was faster. What fails on a full disk raises WorkerLost. `stored_as`: the key of the
    file in the storage, if another machine renders and sends it and `run` only fetches it.
    """
    started = time.monotonic()
    bucket = BucketStore(storage)
    store = JobStore(bucket, request.key)
    if (before := rendered_before(store, request)) is not None:
        return before
    if (place := (request.storage.model_dump_json(), request.key)) not in _found:
        store.require_job()
        _found.add(place)
    require_chosen_disk()
    with tempfile.TemporaryDirectory(prefix="renderfarm-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        require_room(folder)
        workspace, log_file = folder / "work", folder / "log.txt"
        output = workspace / request.output_file
        workspace.mkdir()
        if request.assets is not None:
            lay_out(request.assets, bucket, workspace, stop)
        with disk_errors("output file"):
            remove(output)  # an old one among the input is not what the command writes
            folder_of_output = output if request.output_file.endswith("/") else output.parent
            folder_of_output.mkdir(parents=True, exist_ok=True)
        prepare()  # beside the command
        result = run(
            WorkerJob(
                command=request.command, cwd=workspace, name=f"chunk {request.chunk_id}",
                chunk_id=request.chunk_id, output_file=request.output_file, log_file=log_file,
                timeout=request.timeout, stop=stop,
            )
        )  # fmt: skip
        last_output = f"{result.stdout}\n{result.stderr}".strip().encode()
        log = log_file.read_bytes() if log_file.exists() else last_output
        if result.exit_code != 0:
            store.keep_log(request.chunk_id, log)
            # A full disk here ends no program that was not started, or ran on another machine.
            if result.exit_code not in (126, 127) and stored_as is None:
                failure = f"its command ended with exit code {result.exit_code}"
                _blame_full_disk(f"{failure}: {result.last_lines()}", folder)
            return result
        try:
            reader = ChunkReader(request.verify)
            done = measure(request, output, reader, worker or result.worker, started)
        except ChunkFileError as error:
            store.keep_log(request.chunk_id, log)
            _blame_full_disk(str(error), folder)
            raise
        done = done.model_copy(update={"stored_as": stored_as})
        done = store.publish(done, log, thumbnail(output) if request.thumbnail else b"")
        return replace(result, manifest=done.model_dump_json())


def rendered_before(store: JobStore, request: ChunkRequest) -> WorkerResult | None:
    """Return the result of another attempt at a chunk, if one may have rendered it and has."""
    done = None if request.fresh else store.manifest(request.chunk_id, request.identity)
    if done is None:
        return None
    return WorkerResult(
        exit_code=0, stdout="rendered before", worker=done.worker, manifest=done.model_dump_json()
    )


@contextmanager
def naming_chunk_and_worker(request: ChunkRequest, worker: str | None) -> Iterator[None]:
    """Name the chunk in all errors, and the worker in those of its disk or its storage access."""
    name = f"chunk {request.chunk_id}"
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


def measure(
    chunk: PlannedChunk, path: Path, reader: ChunkReader, worker: str, started: float
) -> ChunkResult:
    """Read a chunk's file or images, verify them against the plan, and return their manifest.

    `started` is when the attempt began, by `time.monotonic`. Raises ChunkFileError if the file is
    missing, damaged, or has another number of frames than planned.
    """
    try:
        media = reader.read(path, Fraction(chunk.fps))
        if media.frames != chunk.frame_count:
            raise MediaFault(f"has {media.frames} frames, not the planned {chunk.frame_count}")  # noqa: TRY301
    except MediaFault as fault:
        raise ChunkFileError(
            f"chunk {chunk.chunk_id}: its command succeeded, but its file "
            f"{chunk.output_file!r} {fault}"
        ) from None
    size, sha256 = content(path) or (0, "")
    return ChunkResult(
        id=chunk.chunk_id, identity=chunk.identity, start_frame=chunk.start_frame,
        frame_count=media.frames, output_file=chunk.output_file, path=path, size=size,
        sha256=sha256, seconds=time.monotonic() - started, worker=worker,
        signature=dict(media.signature), published_at=datetime.now(UTC),
        images=tuple(image.name for image in media.images) or None,
    )  # fmt: skip


def _blame_full_disk(failure: str, folder: Path) -> None:
    """Raise WorkerLost if the disk is full, or was until the command tidied up."""
    reported = os.strerror(errno.ENOSPC) in failure
    if reported or shutil.disk_usage(folder).free < MIN_FREE_BYTES:
        raise WorkerLost(f"{' / '.join(failure.splitlines())}; {_full_disk(folder)}")


def _full_disk(folder: Path) -> str:
    return f"{disk_of(folder / 'any')}: free some space, or set TMPDIR to another disk"
