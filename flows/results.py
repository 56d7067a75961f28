"""What the flows return."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, Field

from prefect_renderfarm.blocks.stitchers.base import StitchReport
from prefect_renderfarm.blocks.storage.manifest import ChunkResult


class Assembly(StrEnum):
    """How the chunks became a film, or why they did not."""

    STITCHED = "stitched"
    MERGED = "merged"  # by the merge command
    SKIPPED = "skipped"  # neither is given
    OFF = "off"

    @property
    def wanted(self) -> bool:
        """Whether somebody assembles."""
        return self in (Assembly.STITCHED, Assembly.MERGED)


class FailedAttempt(BaseModel, frozen=True):
    """An attempt at a chunk that failed."""

    chunk: int = Field(description="Id of the chunk.")
    attempt: int = Field(description="Number of the attempt, from 1.")
    seconds: float = Field(description="Its duration, in seconds.")
    kind: str = Field(description="The class of its error.")
    message: str = Field(description="What failed.")
    worker: str = Field(default="", description="Where the command ran, if that is known.")
    output: str = Field(default="", description="The last lines of the command's output.")
    ended_at: datetime | None = Field(default=None, description="When it failed.")


class MergeReport(BaseModel, frozen=True):
    """How a film was assembled."""

    assembly: Assembly = Field(description="Who assembled, or why nobody did.")
    film: Path | None = Field(default=None, description="The film, if its path is known.")
    stitch: StitchReport | None = Field(default=None, description="The stitcher's own report.")
    seconds: float = Field(default=0.0, description="Duration of the assembly, in seconds.")
    finished_at: datetime | None = Field(default=None, description="When the film was complete.")


class RenderReport(BaseModel, frozen=True):
    """The result of a job."""

    job: str = Field(description="Name of the job.")
    key: str = Field(default="", description="The job's key: the name of its folder of records.")
    job_dir: Path = Field(description="The job folder.")
    frames: int = Field(description="Number of frames of all chunks.")
    fps: str = Field(description="Frames a second, as a fraction.")
    chunks: tuple[ChunkResult, ...] = Field(description="The chunks, in order of id.")
    reused: tuple[int, ...] = Field(default=(), description="Ids of chunks of other runs.")
    failed_attempts: tuple[FailedAttempt, ...] = Field(default=(), description="Of this run.")
    assembly: Assembly = Field(description="Who assembled, or why nobody did.")
    film: Path | None = Field(default=None, description="The film, if its path is known.")
    stitch: StitchReport | None = Field(default=None, description="The stitcher's own report.")
    render_seconds: float = Field(description="Seconds from the first chunk to the last one's end.")
    assembly_seconds: float = Field(default=0.0, description="Seconds from there to the film.")
    rendered_at: datetime | None = Field(default=None, description="When the last chunk was done.")
    assembled_at: datetime | None = Field(default=None, description="When the film was complete.")
