"""Prefect's functions that are synchronous or asynchronous by where they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def call_sync(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call one of them synchronously, whatever runs around it; their types do not tell of that."""
    return call(*arguments, _sync=True, **options)
