"""How a job's chunks are rendered: by task runs here, or by flow runs on a work pool."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.adapters.work_pool import WorkPoolAdapter
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.fields import Chunk
from prefect_renderfarm.flows.rendering.attempts import Attempts, Failures
from prefect_renderfarm.flows.rendering.chunk_renderer import ChunkRenderer
from prefect_renderfarm.flows.rendering.pool import ChunkRuns
from prefect_renderfarm.flows.rendering.task import render_all
from prefect_renderfarm.flows.state.eta import Pace
from prefect_renderfarm.flows.state.job_folder import JobFolder
from prefect_renderfarm.flows.state.lease import Lease


class Rendering(NamedTuple):
    """A way to render a job's chunks.

    Attributes:
        render: Renders them; when one fails for good, it stops the others and raises its error.
        pace: Says how far the rendering is; may be called from another thread.
    """

    render: Callable[[], list[ChunkResult]]
    pace: Callable[[], Pace]


def rendering(
    folder: JobFolder,
    chunks: Sequence[Chunk],
    adapter: WorkerAdapter,
    rules: ChunkRules,
    attempts: Attempts,
    done: Mapping[int, ChunkResult],
    *,
    width: int,
    failures: Failures,
    lease: Lease,
) -> Rendering:
    """Return how an adapter's chunks are rendered.

    Args:
        folder: The job's folder.
        chunks: The chunks to render.
        adapter: Where commands run.
        rules: What the stitcher asks of chunks.
        attempts: How chunks are tried.
        done: Those of the chunks that need not be rendered, by their ids.
        width: Number of chunks to render at once.
        failures: Takes the attempts that fail.
        lease: Says which chunks this run has to itself.

    Raises:
        SetupError: The storage is not saved, so that other machines could not load it.
    """
    if isinstance(adapter, WorkPoolAdapter):
        most = min(adapter.max_runs, math.ceil(width / adapter.chunks_at_once))
        runs = ChunkRuns(
            folder, chunks, adapter, rules, attempts, done,
            width=most, failures=failures, family=lease.family,
        )  # fmt: skip
        return Rendering(runs.render, runs.pace)
    renderer = ChunkRenderer(folder, adapter, rules, attempts, done, failures, lease)
    return Rendering(partial(render_all, renderer, chunks, concurrency=width), renderer.pace)
