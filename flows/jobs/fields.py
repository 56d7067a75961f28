"""The parts of a job spec, and which values they take, whoever wrote them."""

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
from prefect_renderfarm.blocks.media.frame_grid import parse_fps
from prefect_renderfarm.blocks.processes.programs import split_command
from prefect_renderfarm.blocks.runtime.text import excerpt

# RFC 8259, section 6: beyond these, programs that read JSON do not agree about a whole number.
MOST_NUMBER = 2**53 - 1
# ZERO WIDTH NON-JOINER and JOINER: Persian, Hindi and other scripts need them.
JOINERS = "\u200c\u200d"
# Control characters, surrogates, line and paragraph ends, and invisible characters that change how
# others look (Unicode Standard, table 4-4).
_INVISIBLE = frozenset({"Cc", "Cs", "Zl", "Zp", "Cf"})


def _whole(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():  # as Python writes 240 / 8
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("give a whole number")  # noqa: TRY004 -- pydantic takes ValueError
    if abs(value) > MOST_NUMBER:
        raise ValueError(f"the largest number is {MOST_NUMBER:,}")
    return value


def require_plain(text: str) -> None:
    """Refuse a text that a log or a list of files would not show as it is. Raises: ValueError."""
    if text.isascii() and text.isprintable():
        return
    for character in text:
        if unicodedata.category(character) in _INVISIBLE and character not in JOINERS:
            name = unicodedata.name(character, "a control character")
            raise ValueError(f"it has {name}, U+{ord(character):04X}: remove it")


def require_command(command: str, name: str) -> None:
    """Refuse a command, called so in the error, that no machine can run. Raises: JobError."""
    try:
        split_command(command)
        command.encode()
    except JobError as error:
        raise JobError(f"{name}: {error}") from None
    except UnicodeEncodeError:  # a lone surrogate
        raise JobError(
            f"{name}: {excerpt(command)} has half a character, which is no text: remove it"
        ) from None


def _plain(most: int, what: str) -> AfterValidator:
    """Return a validator: no invisible characters, at most so many characters, empty is None."""

    def check(text: str | None) -> str | None:
        if text is None or not text.strip():
            return None
        if len(text) > most:
            raise ValueError(f"the longest {what} has {most:,} characters")
        require_plain(text)
        return text

    return AfterValidator(check)


WholeNumber = Annotated[int, BeforeValidator(_whole)]
PositiveNumber = Annotated[int, BeforeValidator(_whole), Field(gt=0)]
Duration = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
JobName = Annotated[str | None, _plain(255, "name")]  # every log line, tag and title has it
# As long as a browser's address line takes; presigned URLs of S3 have up to 2,000 characters.
AssetsUrl = Annotated[str | None, _plain(8_000, "URL")]


class SpecModel(BaseModel):
    """A part of a job spec: camelCase as Helios has it, or snake_case; ignores other keys."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore"
    )

    # The fields whose names differ in the two spellings.
    _spellings: ClassVar[tuple[tuple[str, str], ...]]

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Collect the spellings once: a job has many chunks."""
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
    """Properties of the whole film."""

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
