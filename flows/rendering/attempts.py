"""How often a chunk is tried, with which pauses and limits, and which attempts have failed."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from prefect_renderfarm.blocks.errors import (
    ChunkFileError,
    FatalWorkerError,
    JobError,
    RenderFarmError,
    RepeatedFault,
    StorageError,
    StorageRefused,
    TooManyFailures,
    WorkerError,
    WorkStopped,
)
from prefect_renderfarm.flows.results import FailedAttempt

_LONGEST_PAUSE_SECONDS = 300.0


class SlowChunks(StrEnum):
    """What to do about a chunk that takes far longer than the others."""

    REPORT = "report"
    DUPLICATE = "duplicate"
    END = "end"


@dataclass(frozen=True)
class Attempts:
    """How a job's chunks are tried.

    Attributes:
        retries: Number of further attempts that a chunk has.
        retry_delay: Seconds before the second attempt, about; twice as many before each further.
        max_failures: Number of failed attempts that the job as a whole may have; None: any.
        timeout: Seconds that an attempt may take; None: the adapter's own limit.
        slow_factor: A chunk is slow that takes this many times as long as the others; None: never.
        slow_chunks: What to do about it.
    """

    retries: int = 0
    retry_delay: float = 1.0
    max_failures: int | None = None
    timeout: float | None = None
    slow_factor: float | None = None
    slow_chunks: SlowChunks = SlowChunks.REPORT

    def pause(self, failed: int) -> float:
        """Return how long to wait before the next attempt, in seconds.

        The wait doubles, up to 300 s, and half of it is left to chance, so that chunks that failed
        together do not come back together: "equal jitter" of the AWS Architecture Blog,
        "Exponential Backoff And Jitter".

        Args:
            failed: Number of attempts at the chunk that have failed.
        """
        longest = max(self.retry_delay, _LONGEST_PAUSE_SECONDS)
        pause = min(self.retry_delay * 2.0 ** (min(failed, 64) - 1), longest)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 -- no secret

    def parameters(self) -> dict[str, object]:
        """Return the parameters of `render_chunks` that mean the same."""
        return {
            "retries": self.retries,
            "retry_delay": self.retry_delay,
            "max_failures": self.max_failures,
            "timeout": self.timeout,
            "slow_factor": self.slow_factor,
            # Two attempts in one run would share its machine: `ChunkRuns` gives out the second.
            "slow_chunks": SlowChunks.REPORT
            if self.slow_chunks is SlowChunks.DUPLICATE
            else self.slow_chunks,
        }


class Failures:
    """The failed attempts of one job or run; safe to use from several threads.

    Args:
        most: Number of failed attempts that may be; None: any.
        tell: Called with all of them whenever one more is known; None: nobody is told.
    """

    def __init__(
        self,
        most: int | None = None,
        tell: Callable[[Sequence[FailedAttempt]], None] | None = None,
    ) -> None:
        self._most = most
        self._tell = tell
        self._all: list[FailedAttempt] = []
        self._lock = threading.Lock()

    @property
    def all(self) -> tuple[FailedAttempt, ...]:
        """All that is known of, in the order in which they failed."""
        with self._lock:
            return tuple(self._all)

    def add(self, chunk: int, attempt: int, seconds: float, error: Exception) -> None:
        """Take note of a failed attempt.

        Raises:
            RepeatedFault: The chunk's file was wrong in the same way before.
            TooManyFailures: The job has had more than it may have.
        """
        if isinstance(error, WorkStopped):
            return  # its job was; nothing failed
        failed = FailedAttempt(
            chunk=chunk,
            attempt=attempt,
            seconds=seconds,
            kind=type(error).__name__,
            message=str(error),
        )
        with self._lock:
            known = {(one.chunk, one.kind, one.message) for one in self._all}
            self._all.append(failed)
        if self._tell is not None:
            self._tell(self.all)
        if isinstance(error, ChunkFileError) and (chunk, failed.kind, failed.message) in known:
            raise RepeatedFault(f"{error}, for the second time: it is not tried again") from None
        self.check()

    def take(self, others: Iterable[FailedAttempt]) -> None:
        """Take note of failed attempts of a run that this one has started."""
        with self._lock:
            self._all.extend(others)

    def check(self) -> None:
        """Give up if the job has failed too often.

        Raises:
            TooManyFailures: It has had more failed attempts than it may have.
        """
        failed = self.all
        if self._most is not None and len(failed) > self._most:
            raise TooManyFailures(
                f"{len(failed)} attempts of the job have failed, and max_failures is {self._most}; "
                f"the last one: {failed[-1].message}"
            ) from None


def check_attempts(attempts: Attempts, storage: object | None) -> None:
    """Refuse what a job without a storage cannot do.

    Raises:
        JobError: Two attempts at a chunk would write the same file in the job folder.
    """
    if attempts.slow_chunks is SlowChunks.DUPLICATE and storage is None:
        raise JobError(
            "slow_chunks is 'duplicate', and two attempts at a chunk would write the same file in "
            "the job folder: choose a storage, or 'report' or 'end'"
        )


def worth_another_attempt(error: object) -> bool:
    """Tell from an error's type whether the chunk may succeed another time."""
    if isinstance(error, RenderFarmError):
        fatal = isinstance(error, FatalWorkerError | StorageRefused)
        return isinstance(error, WorkerError | StorageError) and not fatal
    return True
