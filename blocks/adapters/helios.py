"""Helios' protocol: a function that renders one chunk of a job spec, and leaves its file beside it.

    payload  {"jobPath": "s3://bucket/…/job.json", "chunkIndex": 0}
    answer   {"statusCode": 200, "body": {"exitCode": 0, "output": "…"}}

`body` may also be a string of JSON, as an API gateway wants it. Such a function knows nothing of
manifests: after its answer, this end looks for the chunk's file in the storage and checks it.
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

from prefect_renderfarm.blocks.chunks.render import measure_order
from prefect_renderfarm.blocks.chunks.request import ChunkRequest
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
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.blocks.storage.job_store import JobStore


def helios_payload(
    order: ChunkRequest, storage: ObjectStorageBlock, job_path: str
) -> dict[str, Any]:
    """Return the payload that asks for a chunk.

    Args:
        order: The chunk.
        storage: Where the job's spec is.
        job_path: How the function finds the spec: a text with `{bucket}` and `{key}`.
    """
    store = BucketStore(storage)
    key = store.absolute(f"{JobStore(store, order.key).root}/job.json")
    path = job_path.replace("{bucket}", store.bucket).replace("{key}", key)
    return {"jobPath": path, "chunkIndex": order.place}


def helios_result(answer: Any, name: str) -> WorkerResult:
    """Return what a Helios function answered.

    Args:
        answer: The parsed JSON of the answer.
        name: What was asked for, in errors.

    Raises:
        WorkerLost: Its status is 429 or 500 and above, or it is no answer of a Helios function.
        WorkerRefused: Its status is another one of 400 and above.
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


def helios_round(
    order: ChunkRequest,
    storage: ObjectStorageBlock,
    ask: Callable[[], WorkerResult],
    worker: str,
) -> WorkerResult:
    """Have a chunk rendered by a Helios function, and let its file count if it is as planned.

    The file is the object `output_file` beside the job spec. What an earlier run left there is
    removed before the function is asked. If the answer is lost, but the file is there, the chunk is
    done: it is not rendered twice.

    Args:
        order: The chunk.
        storage: Where its file comes to.
        ask: Invokes the function.
        worker: What the function is called in reports.

    Returns:
        How the command ended. If well, the chunk's manifest is in the storage.

    Raises:
        ChunkFileError: The command succeeded, but its file is missing or not what was planned.
        WorkerError: See `helios_result`, and what `ask` raises.
        StorageError: The storage did not answer.
    """
    started = time.monotonic()
    store = JobStore(BucketStore(storage), order.key)
    if (done := store.manifest(order.chunk_id, order.identity)) is not None:
        return WorkerResult(exit_code=0, stdout="rendered before", worker=done.worker)
    key = f"{store.root}/{order.output_file}"
    store.store.delete([key])
    try:
        result = ask()
    except FatalWorkerError:
        raise
    except WorkerError as error:
        result = WorkerResult(exit_code=0, stdout=f"its answer was lost: {error}", worker=worker)
        try:
            _adopt(order, store, key, result, started)
        except ChunkFileError:
            raise error from None
        run_log().warning("chunk %d: done, though its answer was lost: %s", order.chunk_id, error)
        return result
    result = dataclasses.replace(result, worker=worker)
    if result.exit_code == 0:
        _adopt(order, store, key, result, started)
    else:
        store.keep_log(order.chunk_id, result.stdout.encode())
    return result


def _adopt(
    order: ChunkRequest, store: JobStore, key: str, result: WorkerResult, started: float
) -> None:
    with TemporaryDirectory(prefix="renderfarm-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / Path(order.output_file).name
        try:
            store.store.download(key, path)
        except StorageRefused:
            raise
        except (StorageError, OSError) as error:
            raise ChunkFileError(
                f"chunk {order.chunk_id}: its command succeeded, but its file does not come home: "
                f"{error}; a Helios function has to put it beside the job spec"
            ) from None
        done = measure_order(order, path, result.worker, started)
        store.adopt(done.model_copy(update={"stored_as": key}), result.stdout.encode())
