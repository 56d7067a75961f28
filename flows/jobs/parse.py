"""The JSON text of a job spec, which may come from anybody: limits, and errors of one line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from prefect_renderfarm.blocks.errors import JobError
from prefect_renderfarm.blocks.http.url_rules import public_part
from prefect_renderfarm.blocks.runtime.text import excerpt, one_line

# 100,000 chunks with commands of 500 characters take 65 MB.
MOST_BYTES = 100_000_000
# Commas and opening brackets, in text as well as outside of it: those 100,000 chunks, with 40 in
# each command. Their number is limited because an object of 8 bytes takes 192 in memory: a text
# takes 0.7 GB at worst, and not 3 (tests/unit/jobs/test_hostile_specs.py).
MOST_PARTS = 5_000_000
# A number of any use has 17 digits; the time to read one grows with their square.
_MOST_DIGITS = 100


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
def one_line_errors(data: Any) -> Iterator[None]:
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
