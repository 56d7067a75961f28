"""Faults of a job spec, each in one line that names the chunk, what is wrong and the fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from prefect_renderfarm.blocks import JobError
from prefect_renderfarm.blocks.excerpt import excerpt, one_line
from prefect_renderfarm.blocks.url_guard import public_part


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
