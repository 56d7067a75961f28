"""The cache key of a chunk: the hash of all that determines its pictures.

A finished chunk counts for every chunk with the same cache key: of the same run, of a later one, of
another job. Secrets are no part of it, since a hash of a short one can be guessed.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.flows.jobs.spec import Chunk


def inputs_digest(adapter: WorkerAdapter, assets: str) -> str:
    """Return the part of a cache key that is the same for all chunks of a job.

    The adapter says with which variables, image or version commands run; `assets` stands for the
    content of the job's input files.
    """
    return _digest({"adapter": adapter.digest_inputs(), "assets": assets})


def chunk_identity(chunk: Chunk, rate: str, inputs: str) -> str:
    """Return a chunk's cache key; its id does not count, so that a job may be cut anew.

    `rate` is the planned number of frames a second, as a fraction.
    """
    frames = [chunk.start_frame, chunk.frame_count]
    key = {"command": chunk.command, "frames": frames, "file": chunk.output_file}
    return _digest(key | {"rate": rate, "inputs": inputs})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
