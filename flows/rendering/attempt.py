"""An attempt at a chunk that is under way, and may be ended or overtaken."""

from __future__ import annotations

import contextvars
import threading
import time
from weakref import WeakSet

from prefect_renderfarm.blocks.errors import CommandTimeout, RenderFarmError, WorkStopped
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.fields import Chunk
from prefect_renderfarm.flows.rendering.executors import ChunkExecutor


class StopSwitch(threading.Event):
    """An event that sets those that were made from it, too."""

    def __init__(self) -> None:
        super().__init__()
        self._children: WeakSet[StopSwitch] = WeakSet()
        self._family = threading.Lock()

    def child(self) -> StopSwitch:
        """Return an event that is set when this one is, and may be set alone."""
        child = StopSwitch()
        with self._family:
            self._children.add(child)
            if self.is_set():
                child.set()
        return child

    def set(self) -> None:
        """Set this event and all that came of it."""
        super().set()
        with self._family:
            children = list(self._children)
        for child in children:
            child.set()


class RunningAttempt:
    """An attempt at a chunk.

    Args:
        chunk: The chunk.
        executor: How attempts go.
        job_stop: Ends it when set.

    Attributes:
        slow: Whether it has been found to take too long.
    """

    def __init__(self, chunk: Chunk, executor: ChunkExecutor, job_stop: StopSwitch) -> None:
        self.chunk = chunk
        self.slow = False
        self._executor = executor
        self._job_stop = job_stop
        self._stop = job_stop.child()
        self._started = time.monotonic()
        self._why = ""
        self._rival: threading.Thread | None = None
        self._rival_stop = job_stop.child()
        self._rival_result: ChunkResult | None = None
        # Made here, where the run's logger is known.
        self._context = contextvars.copy_context()

    @property
    def age(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._started

    def run(self) -> ChunkResult:
        """Go through with it.

        Raises:
            CommandTimeout: It was ended because it took too long.
            WorkStopped: It was ended because its job was.
            WorkerError: It failed, and so did a second one beside it, if there was one.
            StorageError: The storage did not answer.
        """
        try:
            return self._executor.attempt(self.chunk, self._stop)
        except WorkStopped:
            if self._job_stop.is_set():
                raise
            if (result := self._result_of_rival()) is not None:
                return result
            raise CommandTimeout(f"chunk {self.chunk.id}: {self._why}") from None
        except RenderFarmError:
            if (result := self._result_of_rival()) is not None:
                return result
            raise
        finally:
            self._rival_stop.set()

    def end(self, why: str) -> None:
        """End it because it takes too long."""
        self._why = why
        self._stop.set()

    def duplicate(self) -> None:
        """Begin another attempt at the chunk beside it; the first to be done counts."""
        self._rival = threading.Thread(
            target=self._context.run,
            args=(self._compete,),
            name=f"second attempt at chunk {self.chunk.id}",
            daemon=True,
        )
        self._rival.start()

    def _compete(self) -> None:
        try:
            self._rival_result = self._executor.attempt(self.chunk, self._rival_stop)
        except Exception:  # the first one goes on, and says how it ends
            return
        self._stop.set()

    def _result_of_rival(self) -> ChunkResult | None:
        if self._rival is not None:
            self._rival.join()
        return self._rival_result
