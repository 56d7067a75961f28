"""What the server tells of flow runs without being asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

from prefect.events.clients import get_events_subscriber
from prefect.events.filters import (
    EventFilter,
    EventNameFilter,
    EventRelatedFilter,
    EventResourceFilter,
)

from prefect_renderfarm.blocks.runtime.repeat import periodic

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
    changed, over = threading.Event(), threading.Event()
    listening: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []

    async def listen() -> None:
        wanted = EventFilter(
            event=_STATES,
            resource=EventResourceFilter(id=[f"prefect.flow-run.{run}"]) if run else None,
            related=EventRelatedFilter(id=[f"prefect.tag.{tag}"]) if tag else None,
        )
        async with get_events_subscriber(wanted, reconnection_attempts=0) as events:
            changed.set()  # what happened before is told by nobody
            async for _ in events:
                changed.set()

    async def listen_until_over() -> None:
        task = asyncio.create_task(listen())
        listening[:] = [(asyncio.get_running_loop(), task)]
        if over.is_set():  # before `cancel` could know of the task
            task.cancel()
        await task

    def listen_here() -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(listen_until_over())

    def cancel() -> None:
        over.set()
        for loop, task in listening:
            with suppress(RuntimeError):  # the loop is closed: it has ended
                loop.call_soon_threadsafe(task.cancel)

    def wait(seconds: float) -> bool:
        came = changed.wait(seconds)
        changed.clear()
        return came

    with periodic(listen_here, _RECONNECT_SECONDS, "events of runs", at_once=True, wait=True):
        try:
            yield wait
        finally:
            cancel()
