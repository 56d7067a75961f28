"""Job specs: what to render, as chunks; their JSON may come from anybody."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from prefect_renderfarm.blocks.errors import JobError
from prefect_renderfarm.blocks.http.url_rules import public_part
from prefect_renderfarm.blocks.media.frame_grid import parse_fps
from prefect_renderfarm.blocks.runtime.text import excerpt, one_line
from prefect_renderfarm.flows.jobs.checks import require_apart, require_command, require_plain

# 100,000 chunks with commands of 500 characters take 65 MB.
MOST_BYTES = 100_000_000
# Commas and opening brackets, in text as well as outside of it: those 100,000 chunks, with 40 in
# each command. Their number is limited because an object of 8 bytes takes 192 in memory: a text
# takes 0.7 GB at worst, and not 3 (tests/unit/jobs/test_hostile_specs.py).
MOST_PARTS = 5_000_000
# A number of any use has 17 digits; the time to read one grows with their square.
_MOST_DIGITS = 100
# RFC 8259, section 6: beyond these, programs that read JSON do not agree about a whole number.
MOST_NUMBER = 2**53 - 1
# A film of 24 hours in chunks of 5 frames. They take 0.7 GB of memory, and a process some 12 s.
_MOST_CHUNKS = 500_000


def _whole(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():  # as Python writes 240 / 8
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("give a whole number")  # noqa: TRY004 -- pydantic takes ValueError
    if abs(value) > MOST_NUMBER:
        raise ValueError(f"the largest number is {MOST_NUMBER:,}")
    return value


def _or_none(text: str | None) -> str | None:
    return text if text and text.strip() else None


def _plain(text: str | None, most: int, what: str) -> str | None:
    """Refuse invisible characters, and more characters than `most`; an empty text is None."""
    if (text := _or_none(text)) is not None:
        if len(text) > most:
            raise ValueError(f"the longest {what} has {most:,} characters")
        require_plain(text)
    return text


_WholeNumber = Annotated[int, BeforeValidator(_whole)]
_PositiveNumber = Annotated[int, BeforeValidator(_whole), Field(gt=0)]
_Length = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
_OptionalText = Annotated[str | None, AfterValidator(_or_none)]
# Every log line, tag and title has it.
_Name = Annotated[str | None, AfterValidator(partial(_plain, most=255, what="name"))]
# As long as a browser's address line takes; presigned URLs of S3 have up to 2,000 characters.
_Url = Annotated[str | None, AfterValidator(partial(_plain, most=8_000, what="URL"))]


class _SpecModel(BaseModel):
    """A part of a job spec: camelCase as Helios has it, or snake_case; ignores other keys."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore"
    )

    @model_validator(mode="before")
    @classmethod
    def _each_field_once(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name, field in cls.model_fields.items():
                if name in data and field.alias in data and field.alias != name:
                    raise ValueError(f"{field.alias} is there as {name}, too: keep one of them")
        return data


class Chunk(_SpecModel):
    """A frame range, the command that renders it, and the media file that the command writes."""

    id: _WholeNumber = Field(description="Number of the chunk; the film is assembled by it.")
    start_frame: _WholeNumber = Field(description="First frame of the range.")
    frame_count: _WholeNumber = Field(description="Number of frames.")
    output_file: str = Field(description="The file that it writes, relative to the job folder.")
    command: str = Field(description="Renders the range; run in the job folder, without a shell.")

    @property
    def end_frame(self) -> int:
        """The frame after the last one of the range."""
        return self.start_frame + self.frame_count


class JobMetadata(_SpecModel):
    """Properties of the whole film."""

    total_frames: _PositiveNumber = Field(description="Number of frames of the film.")
    fps: int | float | str = Field(description="Frames a second: a number, or '30000/1001'.")
    width: _PositiveNumber | None = Field(default=None, description="Width in pixels.")
    height: _PositiveNumber | None = Field(default=None, description="Height in pixels.")
    duration: _Length | None = Field(default=None, description="Length in seconds.")

    @field_validator("fps", mode="plain")
    @classmethod
    def _fps_is_a_rate(cls, value: Any) -> int | float | str:
        rate = parse_fps(value)
        return value if isinstance(value, int | float | str) else str(rate)

    @property
    def rate(self) -> Fraction:
        """Frames a second, exactly."""
        return parse_fps(self.fps)


class RenderJob(_SpecModel):
    """A film to render: its metadata, its chunks, and how it may be assembled.

    The JSON that `helios render --emit-job` writes is one. Every job is checked as a whole, and its
    chunks are in order of id. A spec may come from anybody: an invalid one is refused before
    anything runs or is written.

    Raises:
        JobError: It is no job spec, or its chunks do not make up the film; one line that names the
            chunk and the fix.
    """

    id: _Name = Field(default=None, description="Name of the job.")
    assets_url: _Url = Field(
        default=None,
        description=(
            "The job's input files, for workers that share no folder: a folder (a path or a "
            "file:// URL), s3://bucket/prefix, or an archive at an https:// address."
        ),
    )
    metadata: JobMetadata
    chunks: Annotated[tuple[Chunk, ...], FailFast()]
    audio_track: _OptionalText = Field(
        default=None,
        description="A file with the audio of the whole film, relative to the job folder.",
    )
    merge_command: _OptionalText = Field(
        default=None, description="Assembles the film; run in the job folder, without a shell."
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

    @field_validator("chunks", mode="wrap")
    @classmethod
    def _in_order(cls, given: Any, validate: ValidatorFunctionWrapHandler) -> tuple[Chunk, ...]:
        if isinstance(given, Sequence) and len(given) > _MOST_CHUNKS:
            raise JobError(
                f"the job has {len(given):,} chunks, and {_MOST_CHUNKS:,} are the most: give each "
                "more frames"
            )
        if not (chunks := validate(given)):
            raise JobError("the job has no chunks: give it at least one")
        for chunk in chunks:  # all have all fields: a set each of their names would be 0.7 kB
            object.__setattr__(chunk, "__pydantic_fields_set__", chunks[0].model_fields_set)
        return tuple(sorted(chunks, key=lambda chunk: chunk.id))

    def model_post_init(self, context: Any) -> None:
        """Check the job as a whole: here, since pydantic calls a model validator twice."""
        check_each(self.chunks, self.audio_track)
        _check_ranges(self.chunks, self.metadata.total_frames)
        if self.merge_command is not None:
            require_command(self.merge_command, "the merge command")
        require_size(len(self.to_json().encode()), "the job spec")  # others have to read it

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
        return cls.model_validate(parse_spec(json_data), **options)


def is_key(text: str) -> bool:
    """Return whether a text has the form of a `RenderJob.key`."""
    return re.fullmatch(r"[a-z0-9-]+-[0-9a-f]{12}", text) is not None


def check_each(chunks: Sequence[Chunk], audio_track: str | None) -> None:
    """Check every chunk, and that no file of the job conflicts with another. Raises: JobError."""
    files = []
    previous: int | None = None
    for chunk in chunks:
        name = f"chunk {chunk.id}"
        if chunk.id == previous:
            raise JobError(f"{name} is there twice: give every chunk an id of its own")
        previous = chunk.id
        if chunk.id < 0:
            raise JobError(f"{name} has a negative id: ids count from 0")
        if chunk.frame_count < 1:
            raise JobError(f"{name} has frameCount {chunk.frame_count}: it must be 1 or more")
        if not chunk.command.strip():
            raise JobError(f"{name} has an empty command: give the command that renders it")
        require_command(chunk.command, name)
        files.append((name, "outputFile", chunk.output_file))
    if audio_track is not None:
        files.append(("the job", "audioTrack", audio_track))
    require_apart(files)


def _check_ranges(chunks: Sequence[Chunk], total_frames: int) -> None:
    """Check that frame ranges, in order of id, make up the film. Raises: JobError."""
    for previous, chunk in itertools.pairwise(chunks):
        if chunk.start_frame != (end := previous.end_frame):
            what = "leaves a gap after" if chunk.start_frame > end else "overlaps"
            raise JobError(
                f"chunk {chunk.id} {what} chunk {previous.id}: it starts at frame "
                f"{chunk.start_frame}, not {end}; make the ranges follow each other by id"
            )
    first, last = chunks[0].start_frame, chunks[-1]
    if last.end_frame - first != total_frames:
        raise JobError(
            f"the chunks have {last.end_frame - first} frames, but totalFrames is {total_frames}: "
            f"the last, chunk {last.id}, must end at frame {first + total_frames}"
        )
    if last.end_frame > MOST_NUMBER:
        raise JobError(f"chunk {last.id} ends at frame {last.end_frame}: {MOST_NUMBER} is the last")


def parse_spec(data: str | bytes | bytearray, name: str = "job spec") -> Any:
    """Return the values in a JSON text (RFC 8259), in memory that is limited.

    A byte order mark at its beginning, which some editors write, is skipped. A key that is twice in
    one object is refused: RFC 8259 does not define what it means. Raises: JobError.
    """
    require_size(len(data), name)
    text = data if isinstance(data, str) else _decoded(bytes(data), name)
    parts = sum(text.count(mark) for mark in ",[{")
    if parts > MOST_PARTS:
        raise JobError(
            f"{name} has {parts:,} commas and brackets, more than {MOST_PARTS:,}: is it a job spec?"
        )
    try:
        return json.loads(
            text.removeprefix("\ufeff"), object_pairs_hook=_object, parse_int=_whole_number
        )
    except RecursionError:
        raise JobError(f"{name} is nested too deeply: is it a job spec?") from None
    except ValueError as error:
        raise JobError(f"{name} is not JSON: {one_line(error)}") from None


def require_size(size: int, name: str) -> None:
    """Refuse a job spec of more bytes than the limit. Raises: JobError."""
    if size > MOST_BYTES:
        raise JobError(f"{name} has more than {MOST_BYTES:,} bytes: is it a job spec?")


def _decoded(data: bytes, name: str) -> str:
    try:
        if b"\0" in data:  # UTF-16 and UTF-32 are full of them, and JSON has none
            raise ValueError("it has NUL bytes")  # noqa: TRY301
        return data.decode("utf-8")
    except ValueError as error:
        raise JobError(
            f"{name} is not in UTF-8 ({one_line(error)}): save it as UTF-8, as JSON has to be "
            "(RFC 8259, section 8.1)"
        ) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {excerpt(twice)} is there twice in one object, keep one of them")
    return found


def _whole_number(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits, {_MOST_DIGITS} are the most")
    return int(digits)


@contextmanager
def _one_line_errors(data: Any) -> Iterator[None]:
    """Replace pydantic's error on a job spec by a JobError: the first fault, in one short line."""
    try:
        yield
    except ValidationError as error:
        raise JobError(_one_line(error, data)) from None


def _one_line(error: ValidationError, data: Any) -> str:
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, JobError):
        return str(cause)
    name, where = "job spec", first["loc"]
    if len(where) > 1 and isinstance(where[1], int):  # chunks is the only list
        try:
            name = f"chunk {excerpt(data['chunks'][where[1]]['id'])}"
        except (KeyError, TypeError, IndexError):
            name = f"chunk at place {where[1]} of the list"
        where = where[2:]
    field = ".".join(str(part) for part in where)
    fault = one_line(cause or first["msg"])
    if first["type"] == "missing":
        fault = f"{field} is missing"
    elif field:
        value = first["input"]
        if isinstance(value, str):
            value = public_part(value)  # a presigned URL's secret is in its query
        fault = f"{field} is {excerpt(value)}: {fault}"
    more = error.error_count() - 1
    return f"{name}: {fault}" + (f" (and {more} more)" if more else "")
