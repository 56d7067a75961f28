"""The parts of a job spec: what its values may be, whoever wrote it; chunks and metadata."""

from __future__ import annotations

import unicodedata
from fractions import Fraction
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from prefect_renderfarm.blocks.errors import JobError
from prefect_renderfarm.blocks.media.frame_rate import parse_fps
from prefect_renderfarm.blocks.processes.command_line import split_command
from prefect_renderfarm.blocks.runtime.text import excerpt

# RFC 8259, section 6: beyond these, programs that read JSON do not agree about a whole number.
MOST_NUMBER = 2**53 - 1
# The name is in every log line, tag and title.
_MOST_NAME_CHARACTERS = 255
# As long as a browser's address line takes; presigned URLs of S3 have up to 2,000.
_MOST_URL_CHARACTERS = 8_000
# Control characters, half characters, ends of lines and paragraphs, and what is not seen but
# changes what is seen (Unicode Standard, table 4-4). Two of the latter are needed to write Persian,
# Hindi and others: ZERO WIDTH NON-JOINER and JOINER.
_UNSEEN = frozenset({"Cc", "Cs", "Zl", "Zp", "Cf"})
_JOINERS = "\u200c\u200d"


def _whole(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():  # as Python writes 240 / 8
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("give a whole number")  # noqa: TRY004 -- pydantic takes ValueError
    if abs(value) > MOST_NUMBER:
        raise ValueError(f"the largest number is {MOST_NUMBER:,}")
    return value


def _number(value: Any) -> Any:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError("give a number")
    return value


def require_plain(text: str) -> None:
    """Refuse a text that would not be seen as what it is, in a log or a list of files.

    Raises:
        ValueError: It has a control character or the like.
    """
    if text.isascii() and text.isprintable():
        return
    for character in text:
        if unicodedata.category(character) in _UNSEEN and character not in _JOINERS:
            name = unicodedata.name(character, "a control character")
            raise ValueError(f"it has {name}, U+{ord(character):04X}: remove it")


def require_command(command: str) -> None:
    """Refuse a command that cannot be run, whatever program it names. Raises: JobError."""
    split_command(command)
    require_text(command)


def require_text(text: str) -> None:
    """Refuse half a character (a lone surrogate), which no file takes. Raises: JobError."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise JobError(
            f"{excerpt(text)} has half a character, which is no text: remove it"
        ) from None


def _name(text: str | None) -> str | None:
    if text is None or not text.strip():
        return None
    if len(text) > _MOST_NAME_CHARACTERS:
        raise ValueError(f"the longest name has {_MOST_NAME_CHARACTERS} characters")
    require_plain(text)
    return text


def _url(text: str | None) -> str | None:
    if not text:
        return None
    if len(text) > _MOST_URL_CHARACTERS:
        raise ValueError(f"the longest URL has {_MOST_URL_CHARACTERS:,} characters")
    require_plain(text)
    return text


WholeNumber = Annotated[int, BeforeValidator(_whole)]
PositiveNumber = Annotated[int, BeforeValidator(_whole), Field(gt=0)]
Duration = Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]
JobName = Annotated[str | None, AfterValidator(_name)]
AssetsUrl = Annotated[str | None, AfterValidator(_url)]


class SpecModel(BaseModel):
    """A part of a job spec: camelCase as Helios writes it, or snake_case; others are dropped."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore"
    )

    # Names that are written in two ways.
    _spellings: ClassVar[tuple[tuple[str, str], ...]]

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Take note of the fields' names."""
        super().__pydantic_init_subclass__(**options)
        pairs = [(name, field.alias or name) for name, field in cls.model_fields.items()]
        cls._spellings = tuple((name, alias) for name, alias in pairs if name != alias)

    @model_validator(mode="before")
    @classmethod
    def _each_field_once(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name, alias in cls._spellings:
                if name in data and alias in data:
                    raise ValueError(f"{alias} is there as {name}, too: keep one of them")
        return data


class Chunk(SpecModel):
    """A frame range, the command that renders it, and the media file that the command writes."""

    id: WholeNumber = Field(description="Number of the chunk; the film is assembled by it.")
    start_frame: WholeNumber = Field(description="First frame of the range.")
    frame_count: WholeNumber = Field(description="Number of frames.")
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


class JobMetadata(SpecModel):
    """What is true of the whole film."""

    total_frames: PositiveNumber = Field(description="Number of frames of the film.")
    fps: int | float | str = Field(
        description="Frames a second: a number, or a fraction such as 30000/1001 as a string."
    )
    width: PositiveNumber | None = Field(default=None, description="Width in pixels.")
    height: PositiveNumber | None = Field(default=None, description="Height in pixels.")
    duration: Duration | None = Field(default=None, description="Length in seconds.")

    @field_validator("fps", mode="plain")
    @classmethod
    def _fps_is_a_rate(cls, value: Any) -> int | float | str:
        rate = parse_fps(value)
        return value if isinstance(value, int | float | str) else str(rate)

    @property
    def rate(self) -> Fraction:
        """Frames a second, exactly."""
        return parse_fps(self.fps)
