"""Helios' protocol: a function that renders one chunk of a job spec, and puts its file beside it.

    payload  {"jobPath": "s3://bucket/…/job.json", "chunkIndex": 0}
    answer   {"statusCode": 200, "body": {"exitCode": 0, "output": "…"}}

`body` may also be a string of JSON, as an API gateway wants it. Such a function writes no manifest:
after its answer, this side downloads the chunk's file from the storage, verifies and publishes it.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prefect.blocks.abstract import ObjectStorageBlock

from prefect_renderfarm.blocks.chunks.render import ChunkRequest, measure_output
from prefect_renderfarm.blocks.command import WorkerResult
from prefect_renderfarm.blocks.errors import (
    ChunkFileError,
    FatalWorkerError,
    StorageError,
    StorageRefused,
    WorkerError,
    WorkerLost,
    WorkerRefused,
)
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.blocks.storage.job_store import JobStore


def helios_payload(
    request: ChunkRequest, storage: ObjectStorageBlock, job_path: str
) -> dict[str, Any]:
    """Return the payload that asks for a chunk; `job_path` has `{bucket}` and `{key}` in it."""
    store = BucketStore(storage)
    key = store.absolute(f"{JobStore(store, request.key).root}/job.json")
    path = job_path.replace("{bucket}", store.bucket).replace("{key}", key)
    return {"jobPath": path, "chunkIndex": request.index}


def parse_helios_answer(answer: Any, name: str) -> WorkerResult:
    """Return the result in the parsed JSON of a Helios function's answer; `name` is for errors.

    Raises:
        WorkerLost: Its status is 429 or at least 500, or it is not an answer of Helios' protocol.
        WorkerRefused: Its status is another one of at least 400.
    """
    try:
        status = int(answer["statusCode"])
        body = answer.get("body")
        body = json.loads(body) if isinstance(body, str) and status < 400 else body
        if status < 400:
            output = str(body.get("output") or "")
            return WorkerResult(exit_code=int(body["exitCode"]), stdout=output)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise WorkerLost(
            f"{name}: the function's answer is none of Helios' protocol: {str(answer)[:200]!r}"
        ) from None
    kind = WorkerLost if status == 429 or status >= 500 else WorkerRefused
    raise kind(f"{name}: the function answered with status {status}: {str(body)[:500]}")


def render_by_helios(
    request: ChunkRequest,
    storage: ObjectStorageBlock,
    ask: Callable[[], WorkerResult],
    worker: str,
) -> WorkerResult:
    """Render a chunk in a Helios function, and publish its file if it is as planned.

    The file is the object `output_file` beside the job spec. One that an earlier run left there is
    removed first. If the answer is lost, but the file is there, the chunk is done: it is not
    rendered twice.

    Args:
        request: The chunk.
        storage: Where the function puts its file.
        ask: Invokes the function.
        worker: Name of the function in reports.

    Returns and raises: As `WorkerAdapter.render`.
    """
    started = time.monotonic()
    store = JobStore(BucketStore(storage), request.key)
    if (done := store.manifest(request.chunk_id, request.identity)) is not None:
        return WorkerResult(exit_code=0, stdout="rendered before", worker=done.worker)
    key = f"{store.root}/{request.output_file}"
    store.store.delete([key])
    try:
        result = dataclasses.replace(ask(), worker=worker)
    except FatalWorkerError:
        raise
    except WorkerError as error:
        result = WorkerResult(exit_code=0, stdout=f"its answer was lost: {error}", worker=worker)
        try:
            _publish(request, store, key, result, started)
        except ChunkFileError:
            raise error from None
        run_log().warning("chunk %d: done, but its answer was lost: %s", request.chunk_id, error)
        return result
    if result.exit_code == 0:
        _publish(request, store, key, result, started)
    else:
        store.keep_log(request.chunk_id, result.stdout.encode())
    return result


def _publish(
    request: ChunkRequest, store: JobStore, key: str, result: WorkerResult, started: float
) -> None:
    with TemporaryDirectory(prefix="renderfarm-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / Path(request.output_file).name
        try:
            store.store.download(key, path)
        except StorageRefused:
            raise
        except (StorageError, OSError) as error:
            raise ChunkFileError(
                f"chunk {request.chunk_id}: its command succeeded, but its output file could not "
                f"be downloaded: {error}; a Helios function has to put it beside the job spec"
            ) from None
        done = measure_output(request, path, result.worker, started)
        store.publish(done.model_copy(update={"stored_as": key}), result.stdout.encode())
