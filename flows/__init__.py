"""Prefect flows of the render farm: render a job's chunks, and assemble the film."""

from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.clean_storage import clean_storage
from prefect_renderfarm.flows.jobs.plan import plan_job
from prefect_renderfarm.flows.jobs.spec import Chunk, RenderJob
from prefect_renderfarm.flows.merge_job import merge_job
from prefect_renderfarm.flows.render_chunks import render_chunks
from prefect_renderfarm.flows.render_job import render_job
from prefect_renderfarm.flows.results import RenderReport

__all__ = [
    "Chunk",
    "ChunkResult",
    "RenderJob",
    "RenderReport",
    "clean_storage",
    "merge_job",
    "plan_job",
    "render_chunks",
    "render_job",
]
