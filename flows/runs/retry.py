"""Questions to a storage that are asked again when it does not answer for a moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from prefect_renderfarm.blocks.errors import ObjectMissing, StorageError, StorageRefused
from prefect_renderfarm.blocks.runtime.run_log import run_log

# The storage's own client has repeated each request before.
_PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0)

_Answer = TypeVar("_Answer")


def patiently(
    ask: Callable[[], _Answer], what: str, wait: Callable[[float], None] = time.sleep
) -> _Answer:
    """Ask a storage, and again for a quarter of a minute if it does not answer.

    Args:
        ask: Asks it.
        what: What it is asked for, in the log.
        wait: Waits for some seconds.

    Returns:
        Its answer.

    Raises:
        ObjectMissing: It has no such object.
        StorageRefused: It will not, however often it is asked.
        StorageError: It did not answer in all that time.
    """
    pauses = iter(_PAUSES_SECONDS)
    while True:
        try:
            return ask()
        except (ObjectMissing, StorageRefused):
            raise
        except StorageError as error:
            pause = next(pauses, None)
            if pause is None:
                raise
            run_log().info("%s: asked for again in %g s: %s", what, pause, error)
        wait(pause)
