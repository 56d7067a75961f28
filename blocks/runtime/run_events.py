"""What the server tells of flow runs without being asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from anyio.from_thread import start_blocking_portal
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import (
    EventFilter,
    EventNameFilter,
    EventRelatedFilter,
    EventResourceFilter,
)

from prefect_renderfarm.blocks.runtime.prefect_api import run_log

# A proxy that passes no websockets is not asked for one all the time.
_RECONNECT_SECONDS = 30.0
_STATES = EventNameFilter(prefix=["prefect.flow-run."], exclude_name=["prefect.flow-run.heartbeat"])


@contextmanager
def run_events(
    *, run: UUID | None = None, tag: str | None = None
) -> Iterator[Callable[[float], bool]]:
    """Inside the block, a function waits until a run, or one with a tag, changes its state.

    It waits for some seconds at most, and returns whether there was a change since its last call.
    Prefect Cloud's free plan takes 625 requests a minute from all runs and workers together
    (https://docs.prefect.io/v3/concepts/rate-limits), so nothing should be asked each second. Where
    no events come, such as behind a proxy without websockets, the seconds are the interval.
    """
    changed, log = threading.Event(), run_log()

    wanted = EventFilter(
        event=_STATES,
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run}"]) if run else None,
        related=EventRelatedFilter(id=[f"prefect.tag.{tag}"]) if tag else None,
    )

    async def listen() -> None:
        tell = log.warning
        while True:
            try:
                async with get_events_subscriber(wanted, reconnection_attempts=0) as events:
                    changed.set()  # what happened before is told by nobody
                    async for _ in events:
                        changed.set()
            except Exception as error:
                tell("events of runs: %s; it is tried again", error)
                tell = log.debug
            await asyncio.sleep(_RECONNECT_SECONDS)

    def wait(seconds: float) -> bool:
        came = changed.wait(seconds)
        changed.clear()
        return came

    with start_blocking_portal() as portal:
        listening = portal.start_task_soon(listen)
        try:
            yield wait
        finally:
            listening.cancel()
