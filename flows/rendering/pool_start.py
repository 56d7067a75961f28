"""Have the server start flow runs of `render-chunks`, though its answers may be lost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from uuid import uuid4

from prefect_renderfarm.blocks.adapters.work_pool import WorkPoolAdapter
from prefect_renderfarm.blocks.runtime.prefect_api import is_away
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.flows.jobs.fields import Chunk
from prefect_renderfarm.flows.rendering.pool_run import BatchRun
from prefect_renderfarm.flows.runs.names import batch_name

# So long the server may start no run before the job fails, and so often it is asked.
_SILENT_SERVER_SECONDS = 900.0
_SECONDS_BETWEEN_REPEATS = 5.0


class BatchStarts:
    """Starts the runs of a job, each once: what was not answered is asked again by the same key.

    Args:
        adapter: Where the runs are.
        parameters: Their parameters, but for the chunks.
        title: The job's title.
        tag: What the runs are found by.
    """

    def __init__(
        self, adapter: WorkPoolAdapter, parameters: Mapping[str, object], title: str, tag: str
    ) -> None:
        self._adapter = adapter
        self._parameters = dict(parameters)
        self._title = title
        self._tag = tag
        self._open: list[tuple[Sequence[Chunk], bool, str]] = []
        self._away_since: float | None = None
        self._asked_at = 0.0

    def __len__(self) -> int:
        """Return how many runs may have been started of which nothing was heard."""
        return len(self._open)

    def start(self, chunks: Sequence[Chunk], *, again: bool = False) -> list[BatchRun]:
        """Start a run of some chunks; return it, or nothing if the server does not answer.

        Args:
            chunks: The chunks.
            again: Whether another run has them, too.

        Raises:
            SetupError: The server refuses the run.
        """
        self._open.append((chunks, again, uuid4().hex))
        return self._ask(self._open[-1])

    def repeat(self) -> Iterator[BatchRun]:
        """Ask again for the runs of which nothing was heard; give those that are known now.

        Raises:
            SetupError: The server refuses one.
            httpx.TransportError, PrefectHTTPStatusError: It has not answered for too long.
        """
        if time.monotonic() - self._asked_at >= _SECONDS_BETWEEN_REPEATS:
            for asked in list(self._open):
                yield from self._ask(asked)

    def find(self) -> list[BatchRun]:
        """Return the runs of which nothing was heard, for them to be ended."""
        found = []
        for asked in self._open:
            try:
                found.append(self._start(*asked))
            except Exception as error:
                run_log().warning("a run may be left of which nothing was heard: %s", error)
        return found

    def _ask(self, asked: tuple[Sequence[Chunk], bool, str]) -> list[BatchRun]:
        try:
            run = self._start(*asked)
        except Exception as error:
            if not is_away(error) or self._silent_for() > _SILENT_SERVER_SECONDS:
                self._open.remove(asked)
                raise
            # Perhaps only the answer was lost.
            if self._away_since is None:
                self._away_since = time.monotonic()
                run_log().warning("the server starts no run: %s; it is asked again", error)
            self._asked_at = time.monotonic()
            return []
        self._away_since = None
        self._open.remove(asked)
        return [run]

    def _silent_for(self) -> float:
        return 0.0 if self._away_since is None else time.monotonic() - self._away_since

    def _start(self, chunks: Sequence[Chunk], again: bool, key: str) -> BatchRun:
        ids = [chunk.id for chunk in chunks]
        given = self._parameters | {"chunk_ids": ids}
        run = self._adapter.start(given, batch_name(ids, self._title), [self._tag], key)
        return BatchRun(run, chunks, again)
