"""Job specs: what to render, as the chunks that a farm renders one by one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel

from prefect_renderfarm.blocks import JobError
from prefect_renderfarm.blocks.frame_rate import parse_fps
from prefect_renderfarm.blocks.local_adapter import split_command

# As `RenderJob.key` makes them.
_KEY = re.compile(r"[a-z0-9-]+-[0-9a-f]{12}")


class _Spec(BaseModel):
    """A part of a job spec: camelCase as Helios writes it, or snake_case; others are dropped."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore"
    )


class Chunk(_Spec):
    """A frame range, the command that renders it, and the media file that the command writes."""

    id: int = Field(description="Number of the chunk; the film is assembled by it.")
    start_frame: int = Field(description="First frame of the range.")
    frame_count: int = Field(description="Number of frames.")
    output_file: str = Field(
        description="The file that the command writes, relative to the job folder."
    )
    command: str = Field(
        description="Command line that renders the range; run in the job folder, without a shell."
    )

    @property
    def end_frame(self) -> int:
        """The frame after the last one of the range."""
        return self.start_frame + self.frame_count


class JobMetadata(_Spec):
    """What is true of the whole film."""

    total_frames: int = Field(gt=0, description="Number of frames of the film.")
    fps: int | float | str = Field(
        description="Frames a second: a number, or a fraction such as 30000/1001 as a string."
    )
    width: int | None = Field(default=None, description="Width in pixels.")
    height: int | None = Field(default=None, description="Height in pixels.")
    duration: float | None = Field(default=None, description="Length in seconds.")

    @field_validator("fps")
    @classmethod
    def _fps_is_a_rate(cls, value: int | float | str) -> int | float | str:
        parse_fps(value)
        return value

    @property
    def rate(self) -> Fraction:
        """Frames a second, exactly."""
        return parse_fps(self.fps)


class RenderJob(_Spec):
    """A film to render: its metadata, its chunks, and how it may be assembled.

    The JSON that `helios render --emit-job` writes is one. However it is made, a job is checked as
    a whole, and its chunks are in order of id.

    Raises:
        JobError: It is no job spec, or its chunks do not make up the film; one line that names the
            chunk and the fix.
    """

    id: str | None = Field(default=None, description="Name of the job.")
    assets_url: str | None = Field(
        default=None,
        description=(
            "The job's input files, for workers that share no folder: a folder (a path or a "
            "file:// URL), s3://bucket/prefix, or an archive at an https:// address."
        ),
    )
    metadata: JobMetadata
    chunks: tuple[Chunk, ...]
    audio_track: str | None = Field(
        default=None,
        description="A file with the sound of the whole film, relative to the job folder.",
    )
    merge_command: str | None = Field(
        default=None,
        description="Command line that assembles the film; run in the job folder, without a shell.",
    )

    @property
    def key(self) -> str:
        """A name for the job that is the same for the same spec and safe as a folder name."""
        digest = hashlib.sha256(self.to_json().encode()).hexdigest()[:12]
        name = re.sub(r"[^a-z0-9]+", "-", (self.id or "job").lower()).strip("-")[:40]
        return f"{name or 'job'}-{digest}"

    @property
    def title(self) -> str:
        """What people call the job."""
        return self.id or self.key

    def to_json(self) -> str:
        """Return the job spec as JSON."""
        return self.model_dump_json(by_alias=True, exclude_none=True)

    @field_validator("merge_command")
    @classmethod
    def _merge_command_can_be_split(cls, command: str | None) -> str | None:
        if command is None or not command.strip():
            return None
        try:
            split_command(command)
        except JobError as error:
            raise JobError(f"the merge command: {error}") from None
        return command

    @field_validator("audio_track")
    @classmethod
    def _audio_track_is_inside(cls, track: str | None) -> str | None:
        if not track:
            return None
        _inside("the job", track, "audioTrack")
        return track

    @field_validator("chunks")
    @classmethod
    def _chunks_in_order(cls, chunks: tuple[Chunk, ...]) -> tuple[Chunk, ...]:
        if not chunks:
            raise JobError("the job has no chunks: give it at least one")
        ordered = tuple(sorted(chunks, key=lambda chunk: chunk.id))
        _check_each(ordered)
        return ordered

    @model_validator(mode="after")
    def _chunks_make_up_the_film(self) -> Self:
        _check_ranges(self.chunks, self.metadata.total_frames)
        return self

    def __init__(self, **data: Any) -> None:
        with _one_line_errors(data):
            super().__init__(**data)

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Make a job from parsed JSON. Raises: JobError."""
        with _one_line_errors(obj):
            return super().model_validate(obj, **options)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """Make a job from JSON text. Raises: JobError."""
        with _one_line_errors(None):
            return super().model_validate_json(json_data, **options)


def is_key(text: str) -> bool:
    """Return whether a text has the form of a job's key."""
    return _KEY.fullmatch(text) is not None


def _check_each(chunks: Sequence[Chunk]) -> None:
    ids: set[int] = set()
    files: dict[PurePosixPath, int] = {}
    for chunk in chunks:
        name = f"chunk {chunk.id}"
        if chunk.id in ids:
            raise JobError(f"{name} is there twice: give every chunk an id of its own")
        ids.add(chunk.id)
        if chunk.frame_count < 1:
            raise JobError(f"{name} has frameCount {chunk.frame_count}: it must be 1 or more")
        if not chunk.command.strip():
            raise JobError(f"{name} has an empty command: give the command that renders it")
        try:
            split_command(chunk.command)
        except JobError as error:
            raise JobError(f"{name}: {error}") from None
        path = _inside(name, chunk.output_file)
        if path in files:
            raise JobError(
                f"{name} and chunk {files[path]} write the same outputFile "
                f"{chunk.output_file!r}: give each its own"
            )
        files[path] = chunk.id


def _inside(name: str, file: str, field: str = "outputFile") -> PurePosixPath:
    path = PurePosixPath(file)
    if not path.name or "\0" in file:
        raise JobError(f"{name} has {field} {file!r}: name a file in the job folder")
    if path.is_absolute() or ".." in path.parts:
        raise JobError(
            f"{name} has {field} {file!r}, which is outside the job folder: "
            "use a path relative to the job folder, without '..'"
        )
    return path


def _check_ranges(chunks: Sequence[Chunk], total_frames: int) -> None:
    expected = chunks[0].start_frame
    for before, chunk in zip((None, *chunks), chunks, strict=False):
        if chunk.start_frame == expected:
            expected = chunk.end_frame
            continue
        what = "leaves a gap after" if chunk.start_frame > expected else "overlaps"
        raise JobError(
            f"chunk {chunk.id} {what} chunk {before.id if before else chunk.id}: it starts at "
            f"frame {chunk.start_frame}, not {expected}; make the ranges follow each other by id"
        )
    frames = expected - chunks[0].start_frame
    if frames != total_frames:
        raise JobError(
            f"the chunks have {frames} frames, but totalFrames is {total_frames}: the last, chunk "
            f"{chunks[-1].id}, must end at frame {chunks[0].start_frame + total_frames}"
        )


@contextmanager
def _one_line_errors(data: Any) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise JobError(_one_line(error, data)) from None


def _one_line(error: ValidationError, data: Any) -> str:
    """Say the first fault of a job spec in one line, naming the chunk by its id."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, JobError):
        return str(cause)
    where = list(first["loc"])
    name = "job spec"
    if len(where) > 1 and where[0] == "chunks" and isinstance(where[1], int):
        name = _chunk_name(data, where[1])
        where = where[2:]
    field = ".".join(str(part) for part in where)
    shown = repr(first["input"])[:60]
    reason = "is missing" if first["type"] == "missing" else f"is {shown}: {first['msg']}"
    more = error.error_count() - 1
    return f"{name}: {field + ' ' if field else ''}{reason}" + (
        f" (and {more} more)" if more else ""
    )


def _chunk_name(data: Any, place: int) -> str:
    try:
        return f"chunk {data['chunks'][place]['id']}"
    except (KeyError, TypeError, IndexError):
        return f"chunk at place {place} of the list"


def job_file_path(folder: Path, chunk: Chunk) -> Path:
    """Return the absolute path of a chunk's file in the job folder.

    Raises:
        JobError: A symbolic link leads out of the job folder.
    """
    path = folder / chunk.output_file
    if not path.resolve().is_relative_to(folder.resolve()):
        raise JobError(
            f"chunk {chunk.id} has outputFile {chunk.output_file!r}, which a symbolic link leads "
            "out of the job folder: remove the link"
        )
    return path
