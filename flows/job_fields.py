"""What the single values of a job spec may be, whoever wrote it."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from prefect_renderfarm.blocks import JobError
from prefect_renderfarm.blocks.command_line import split_command
from prefect_renderfarm.blocks.excerpt import excerpt

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
