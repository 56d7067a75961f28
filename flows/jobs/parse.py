"""The JSON text of a job spec, which may come from anybody: what of it is read, and what is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from prefect_renderfarm.blocks.errors import JobError
from prefect_renderfarm.blocks.http.url_rules import public_part
from prefect_renderfarm.blocks.runtime.text import excerpt, one_line

# 100,000 chunks with commands of 500 characters take 65 MB.
MOST_BYTES = 100_000_000
# Commas and opening brackets, in text as well as outside of it: those 100,000 chunks, with 40 in
# each command. It is their number that has to be limited, since an object of 8 bytes takes 192 in
# memory: now a text takes 0.7 GB at worst, and not 3 (tests/test_hostile_jobs.py).
MOST_PARTS = 5_000_000
# A number of any use has 17 digits; reading one takes a time that grows with their square.
_MOST_DIGITS = 100


def parse_spec(data: str | bytes | bytearray, name: str = "job spec") -> Any:
    """Return the values in a JSON text (RFC 8259), in memory that is limited.

    A byte order mark at its beginning, which some editors write, is skipped.

    Args:
        data: The text, or its bytes in UTF-8.
        name: What it is, in errors.

    Raises:
        JobError: It is too large, not in UTF-8, no JSON or nested too deeply; or a key is there
            twice in one object, which RFC 8259 leaves to the reader to make sense of.
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
            text.removeprefix("\ufeff"),
            object_pairs_hook=_object,
            parse_int=_whole_number,
        )
    except RecursionError:
        raise JobError(f"{name} is nested too deeply: is it a job spec?") from None
    except ValueError as error:
        raise JobError(f"{name} is not JSON: {one_line(error)}") from None


def require_size(size: int, name: str) -> None:
    """Refuse a job spec of so many bytes, or of at least so many. Raises: JobError."""
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
        keys = [key for key, _ in pairs]
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise ValueError(f"key {excerpt(twice)} is there twice in one object, keep one of them")
    return found


def _whole_number(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits, {_MOST_DIGITS} are the most")
    return int(digits)


@contextmanager
def one_line_errors(data: Any) -> Iterator[None]:
    """Say the first fault that pydantic finds in one line of limited length.

    Args:
        data: The job spec, where chunks have their ids.

    Raises:
        JobError: Instead of pydantic's error.
    """
    try:
        yield
    except ValidationError as error:
        raise JobError(_one_line(error, data)) from None


def _one_line(error: ValidationError, data: Any) -> str:
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, JobError):
        return str(cause)
    where = list(first["loc"])
    name = "job spec"
    if len(where) > 1 and where[0] == "chunks" and isinstance(where[1], int):
        name = _chunk_name(data, where[1])
        where = where[2:]
    field = ".".join(str(part) for part in where)
    more = error.error_count() - 1
    return f"{name}: {_fault(first, field, cause)}" + (f" (and {more} more)" if more else "")


def _fault(first: ErrorDetails, field: str, cause: Exception | None) -> str:
    reason = one_line(cause or first["msg"])
    if first["type"] == "missing":
        return f"{field} is missing"
    if not field:
        return reason
    value = first["input"]
    if isinstance(value, str):
        value = public_part(value)  # a presigned URL's secret is in its query
    return f"{field} is {excerpt(value)}: {reason}"


def _chunk_name(data: Any, place: int) -> str:
    try:
        number = data["chunks"][place]["id"]
    except (KeyError, TypeError, IndexError):
        return f"chunk at place {place} of the list"
    return f"chunk {excerpt(number)}"
