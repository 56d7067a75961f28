"""The logger of the current run."""

from __future__ import annotations

import logging
from typing import Any

from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger

RunLog = logging.Logger | logging.LoggerAdapter[Any]


def run_log() -> RunLog:
    """Return the logger of the current flow or task run, or an ordinary one outside a run."""
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("renderfarm")
