"""Keep chunks as they are while a film is put together, also when their render-job has died."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from prefect_renderfarm.blocks.errors import RenderFarmError
from prefect_renderfarm.flows.state.lease import Lease

_SECONDS_BETWEEN_TRIES = 1.0


@contextmanager
def chunks_in_use(lease: Lease, chunk_ids: Iterable[int]) -> Iterator[None]:
    """Let other runs know that chunks are used, as soon as nobody renders them any more.

    The render-job lets them know as well, for as long as it lives; that it has rendered the last
    chunks is in its record only a moment later. The assembly waits for none of this.

    Args:
        lease: The lease of the run that assembles.
        chunk_ids: The chunks, which are done.
    """
    over = threading.Event()
    left = set(chunk_ids)

    def use() -> None:
        while left and not over.wait(_SECONDS_BETWEEN_TRIES):
            with suppress(RenderFarmError, OSError):
                left.difference_update(lease.use(left))

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(use,), daemon=True).start()
    try:
        yield
    finally:
        over.set()
