"""What it means that a run of `render-chunks` ended before all of its chunks were done."""

from __future__ import annotations

from collections import Counter

from prefect_renderfarm.blocks.errors import (
    SetupError,
    StorageError,
    StorageRefused,
    WorkerLost,
    WorkStopped,
)
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.flows.rendering.pool_run import BatchRun
from prefect_renderfarm.flows.state.job_state import JobState
from prefect_renderfarm.flows.state.notes import RunNotes

# So many runs that were at the same chunk may be lost, whatever `retries` says: a machine that is
# taken away is not the chunk's fault.
_LEAST_LOST = 2


class RunLosses:
    """Tells runs that were lost from those that failed, and counts the lost ones.

    A chunk that failed has had its further attempts in its run, so its failure is the job's. A run
    is lost if its process or machine is, or if it cannot reach the storage: another may do better.
    A loss is put down to the chunk that the run was at.

    Args:
        state: The job, where failed runs write why.
        retries: Number of further attempts that a chunk has.
    """

    def __init__(self, state: JobState, retries: int) -> None:
        self.count: Counter[int] = Counter()
        self._state = state
        self._most = max(retries, _LEAST_LOST)

    def judge(self, run: BatchRun) -> None:
        """Return if the run was lost and its chunks may be given out again.

        Raises:
            WorkerError: The last attempt at a chunk failed, or too many runs were lost at it.
            SetupError: The run did not come to any chunk, or wrote to another place.
            StorageRefused: The storage does not let the run in.
        """
        state = run.run.state
        assert state is not None  # noqa: S101 -- it is final
        where = f"render-chunks run {run.name!r} on work pool {run.run.work_pool_name!r}"
        why = run.lost or f"ended as {state.name}: {state.message}"
        first = run.chunks[0].id
        if not run.lost:
            if state.is_completed():
                raise SetupError(
                    f"{where} says that it is done, but chunk {first} is not in the storage or "
                    "job folder that render-job sees: let both use the same"
                )
            if state.is_cancelled():
                raise WorkStopped(f"{where} was cancelled, and so its job ends")
            if state.is_failed():
                why = self._reason_of_failure(run, f"{where} {why}")
        self.count[first] += 1
        if self.count[first] > self._most:
            raise WorkerLost(
                f"chunk {first}: {self.count[first]} runs that were at it were lost; the last one, "
                f"{where}: {why}"
            )
        run_log().warning("%s was lost: %s; its unfinished chunks are given out again", where, why)

    def _reason_of_failure(self, run: BatchRun, instead: str) -> str:
        try:
            error = RunNotes(self._state, str(run.run.id)).failure()
        except StorageRefused:
            raise
        except (StorageError, OSError) as unread:
            return f"{instead}; what it wrote of that cannot be read: {unread}"
        if error is None:
            raise SetupError(instead)
        if isinstance(error, StorageRefused) or not isinstance(error, WorkerLost | StorageError):
            raise error
        return str(error)
