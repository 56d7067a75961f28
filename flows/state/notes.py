"""What a run of `render-chunks` and the run that started it write to each other.

They share the storage or the job folder, and nothing else for sure: the server keeps no more of an
error than a line of text.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, TypeAdapter

from prefect_renderfarm.blocks.adapters.protocol import WorkerFailure
from prefect_renderfarm.flows.results import FailedAttempt
from prefect_renderfarm.flows.state.job_folder import JobFolder

_ATTEMPTS = TypeAdapter(list[FailedAttempt])


class _MoreChunks(BaseModel):
    model_config = ConfigDict(frozen=True)

    chunk_ids: tuple[int, ...]


class RunNotes:
    """The notes on one run.

    Args:
        folder: The job's folder.
        run_id: The run's id.
    """

    def __init__(self, folder: JobFolder, run_id: str) -> None:
        self._folder = folder
        self._failure = f"runs/{run_id}-failure.json"
        self._more = f"runs/{run_id}-more.json"
        self._attempts = f"runs/{run_id}-attempts.json"

    def write_failure(self, error: Exception) -> None:
        """Write why the run failed."""
        self._folder.write_record(self._failure, WorkerFailure.of(error).model_dump_json())

    def failure(self) -> Exception | None:
        """Return why the run failed; None: it left no word."""
        text = self._folder.read_record(self._failure)
        return None if text is None else WorkerFailure.model_validate_json(text).as_error()

    def write_failed_attempts(self, attempts: Sequence[FailedAttempt]) -> None:
        """Write which of the run's attempts have failed."""
        self._folder.write_record(self._attempts, _ATTEMPTS.dump_json(list(attempts)).decode())

    def failed_attempts(self) -> list[FailedAttempt]:
        """Return which of the run's attempts have failed, if it has left word of them."""
        text = self._folder.read_record(self._attempts)
        return [] if text is None else _ATTEMPTS.validate_json(text)

    def write_more(self, chunk_ids: Sequence[int]) -> None:
        """Give the run more chunks, which it begins after those that it was started with."""
        note = _MoreChunks(chunk_ids=tuple(chunk_ids))
        self._folder.write_record(self._more, note.model_dump_json())

    def more(self) -> tuple[int, ...]:
        """Return the chunks that the run was given while it ran."""
        text = self._folder.read_record(self._more)
        return () if text is None else _MoreChunks.model_validate_json(text).chunk_ids
