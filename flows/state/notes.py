"""What a run of `render-chunks` leaves for the run that started it.

They share the storage or the job folder, and nothing else for sure: the server keeps no more of an
error than a line of text.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import TypeAdapter

from prefect_renderfarm.blocks.adapters.remote import WorkerFailure
from prefect_renderfarm.flows.results import FailedAttempt
from prefect_renderfarm.flows.state.job_state import JobState

_ATTEMPTS = TypeAdapter(list[FailedAttempt])


class RunNotes:
    """The notes of one run.

    Args:
        state: The job.
        run_id: The run's id.
    """

    def __init__(self, state: JobState, run_id: str) -> None:
        self._objects = state.objects
        self._failure = f"runs/{run_id}-failure.json"
        self._attempts = f"runs/{run_id}-attempts.json"

    def write_failure(self, error: Exception) -> None:
        """Write why the run failed."""
        self._objects.write(self._failure, WorkerFailure.of(error).model_dump_json().encode())

    def failure(self) -> Exception | None:
        """Return why the run failed; None: it wrote nothing."""
        data = self._objects.read(self._failure)
        return None if data is None else WorkerFailure.model_validate_json(data).as_error()

    def write_failed_attempts(self, attempts: Sequence[FailedAttempt]) -> None:
        """Write which of the run's attempts have failed."""
        self._objects.write(self._attempts, _ATTEMPTS.dump_json(list(attempts)))

    def failed_attempts(self) -> list[FailedAttempt]:
        """Return which of the run's attempts have failed, as far as it has written so."""
        data = self._objects.read(self._attempts)
        return [] if data is None else _ATTEMPTS.validate_json(data)
