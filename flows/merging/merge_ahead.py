"""Start the merge run shortly before the last chunk is done, so that it is warm by then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prefect_renderfarm.blocks.runtime.repeat import periodic
from prefect_renderfarm.flows.merging.merge_run import MergeRun
from prefect_renderfarm.flows.state.eta import Eta

_POLL_SECONDS = 0.25


@contextmanager
def starting_ahead(
    merge_run: MergeRun | None, eta: Callable[[], Eta], width: int, lead: float
) -> Iterator[None]:
    """Inside the block, in which chunks are rendered, start the merge run in time.

    The merge run is started once the rendering will take no longer than `lead` seconds by its ETA.
    If all chunks run at once there is no ETA yet: then it is started at once. A merge run that gave
    its slot back, because chunks took longer, is started again after the next chunk. If the block
    ends with an error, the merge run is cancelled.

    Args:
        merge_run: The run to start; None: there is none.
        eta: Returns how far the rendering is.
        width: Number of chunks that are rendered at once.
        lead: Seconds; 0: the merge run is not started ahead.
    """
    if merge_run is None:
        yield
        return
    finished_at_start = -1

    def look() -> None:
        nonlocal finished_at_start
        now = eta()
        left = now.seconds_left(width)
        due = now.waiting == 0 if left is None else left <= lead
        if due and len(now.finished) > finished_at_start and not merge_run.alive():
            finished_at_start = len(now.finished)  # a start that fails is not tried again at once
            merge_run.start()

    try:
        if lead > 0:
            with periodic(look, _POLL_SECONDS, "start of the merge run", wait=True):
                yield
        else:
            yield
    except BaseException:
        merge_run.cancel("its render-job ended without all chunks")
        raise
