"""Jobs that several runs render at the same time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs import small_job, with_commands

from prefect_renderfarm.blocks import LocalAdapter
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.flows import RenderJob
from prefect_renderfarm.flows.rendering.chunk_renderer import ChunkRenderer
from prefect_renderfarm.flows.state.job_state import JobState

SAME = ChunkRules(uniform=True)


def prepared(path: Path, job: RenderJob, kind: type[JobState] = JobState) -> Any:
    """Return a job's folder, ready to render."""
    folder = kind(path, job)
    folder.prepare()
    folder.identify(LocalAdapter())
    return folder


def render(folder: JobState, *chunk_ids: int) -> None:
    """Render chunks as another run does."""
    other = ChunkRenderer(folder, LocalAdapter())
    for number in chunk_ids:
        other.render(folder.job.chunks[number])


def one_with_sound(**options: Any) -> RenderJob:
    """Return a job of three chunks, of which the second is unlike the others: it has sound."""
    job = small_job(output_template="chunks/{id}.mkv", **options)
    return with_commands(job, {1: f"{job.chunks[1].command} --audio pcm_s16le"})
