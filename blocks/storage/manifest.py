"""A chunk that is done, as its manifest tells it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class ChunkResult(BaseModel):
    """A chunk that is done: its file is in its place, whole and checked."""

    model_config = ConfigDict(frozen=True)

    id: int = Field(description="Number of the chunk.")
    identity: str = Field(
        default="",
        description="Hash of all that decides what its command makes.",
    )
    start_frame: int = Field(description="First frame of its range.")
    frame_count: int = Field(description="Number of frames, counted in the file.")
    output_file: str = Field(description="Its file, relative to the job folder.")
    path: Path = Field(description="Its file, as an absolute path where it was rendered.")
    size: int = Field(description="Size of the file, in bytes.")
    sha256: str = Field(description="SHA-256 of the file, in hexadecimal.")
    seconds: float = Field(description="Time that the successful attempt took, in seconds.")
    attempts: int = Field(default=1, description="Number of attempts it took.")
    worker: str = Field(default="", description="The machine or function that rendered it.")
    signature: dict[str, str | int | None] = Field(
        default={}, description="How the file is coded: the same in all chunks of a film."
    )
    billed_seconds: float | None = Field(
        default=None, description="Seconds that the worker's provider charges for."
    )
    memory_mb: int | None = Field(
        default=None, description="Memory that they are charged with, in 1,048,576 bytes."
    )
    images: tuple[str, ...] | None = Field(
        default=None, description="The names of its images, if it is an image sequence."
    )
    stored_as: str | None = Field(default=None, description="The file's key in the storage.")
    log: str | None = Field(default=None, description="The key of its full log in the storage.")
    published_at: datetime | None = Field(default=None, description="When it counted as done.")
