"""Job specs: what to render, as the chunks that a farm renders one by one."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import FailFast, Field, field_validator

from prefect_renderfarm.blocks.errors import JobError
from prefect_renderfarm.blocks.runtime.text import excerpt
from prefect_renderfarm.flows.jobs.checks import check_each, check_ranges
from prefect_renderfarm.flows.jobs.fields import (
    AssetsUrl,
    Chunk,
    JobMetadata,
    JobName,
    SpecModel,
    require_command,
)
from prefect_renderfarm.flows.jobs.parse import one_line_errors, parse_spec, require_size

# A film of 24 hours in chunks of 5 frames. They take 0.7 GB of memory, and a process some 12 s.
_MOST_CHUNKS = 500_000


class RenderJob(SpecModel):
    """A film to render: its metadata, its chunks, and how it may be assembled.

    The JSON that `helios render --emit-job` writes is one. Every job is checked as a whole, and its
    chunks are in order of id. A spec may come from anybody: an invalid one is refused before
    anything runs or is written.

    Raises:
        JobError: It is no job spec, or its chunks do not make up the film; one line that names the
            chunk and the fix.
    """

    id: JobName = Field(default=None, description="Name of the job.")
    assets_url: AssetsUrl = Field(
        default=None,
        description=(
            "The job's input files, for workers that share no folder: a folder (a path or a "
            "file:// URL), s3://bucket/prefix, or an archive at an https:// address."
        ),
    )
    metadata: JobMetadata
    chunks: Annotated[tuple[Chunk, ...], FailFast()]
    audio_track: str | None = Field(
        default=None,
        description="A file with the audio of the whole film, relative to the job folder.",
    )
    merge_command: str | None = Field(
        default=None,
        description="Command line that assembles the film; run in the job folder, without a shell.",
    )

    @property
    def key(self) -> str:
        """The name of the job's folder of records: the same for the same spec, safe as a name."""
        digest = hashlib.sha256(self.to_json().encode()).hexdigest()[:12]
        name = re.sub(r"[^a-z0-9]+", "-", (self.id or "job").lower()).strip("-")[:40]
        return f"{name or 'job'}-{digest}"

    @property
    def title(self) -> str:
        """The job's id, or its key if it has none."""
        return self.id or self.key

    def to_json(self) -> str:
        """Return the job spec as JSON."""
        return self.model_dump_json(by_alias=True, exclude_none=True)

    @field_validator("merge_command")
    @classmethod
    def _merge_command_can_be_run(cls, command: str | None) -> str | None:
        if command is None or not command.strip():
            return None
        require_command(command, "the merge command")
        return command

    @field_validator("audio_track")
    @classmethod
    def _empty_audio_track_is_none(cls, track: str | None) -> str | None:
        return track or None

    @field_validator("chunks", mode="before")
    @classmethod
    def _not_too_many_chunks(cls, chunks: Any) -> Any:
        if isinstance(chunks, Sequence) and len(chunks) > _MOST_CHUNKS:
            raise JobError(
                f"the job has {len(chunks):,} chunks, and {_MOST_CHUNKS:,} are the most: give each "
                "more frames"
            )
        return chunks

    @field_validator("chunks")
    @classmethod
    def _chunks_in_order(cls, chunks: tuple[Chunk, ...]) -> tuple[Chunk, ...]:
        if not chunks:
            raise JobError("the job has no chunks: give it at least one")
        return tuple(sorted(chunks, key=lambda chunk: chunk.id))

    def model_post_init(self, context: Any) -> None:
        """Check the job as a whole: here, since pydantic calls a model validator twice."""
        check_each(self.chunks, self.audio_track)
        check_ranges(self.chunks, self.metadata.total_frames)
        require_size(len(self.to_json().encode()), "the job spec")  # others have to read it

    def __init__(self, **data: Any) -> None:
        with one_line_errors(data):
            super().__init__(**data)

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Make a job from parsed JSON. Raises: JobError."""
        with one_line_errors(obj):
            return super().model_validate(obj, **options)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """Make a job from JSON text. Raises: JobError."""
        return cls.model_validate(parse_spec(json_data), **options)


def is_key(text: str) -> bool:
    """Return whether a text has the form of a `RenderJob.key`."""
    return re.fullmatch(r"[a-z0-9-]+-[0-9a-f]{12}", text) is not None


def job_file_path(folder: Path, chunk: Chunk) -> Path:
    """Return the absolute path of a chunk's file; see `require_inside`."""
    require_inside(folder, [chunk])
    return folder / chunk.output_file


def require_inside(folder: Path, chunks: Iterable[Chunk], others: Iterable[str] = ()) -> None:
    """Check files of chunks, and other paths relative to the job folder.

    Raises:
        JobError: A symbolic link leads one of them out of the folder.
    """
    names = itertools.chain(
        ((chunk.output_file, f"chunk {chunk.id} has outputFile") for chunk in chunks),
        ((name, "the job folder has") for name in others),
    )
    for name, owner in names:
        if _has_link(folder, name) and not _is_inside(folder, name):
            raise JobError(
                f"{owner} {excerpt(name)}, which a symbolic link leads out of the job folder "
                f"{excerpt(str(folder), 200)}: remove the link"
            )


def _has_link(folder: Path, name: str) -> bool:
    """Return whether a path has a symbolic link below the folder, or another part to resolve."""
    path = str(folder)
    for part in name.split("/"):
        path = f"{path}/{part}"
        if part in ("", "..") or os.path.islink(path):  # noqa: PTH114 -- asked for each chunk, thrice
            return True
    return False


def _is_inside(folder: Path, name: str) -> bool:
    root = os.path.realpath(folder).rstrip("/")
    return os.path.realpath(folder / name).startswith(f"{root}/")
