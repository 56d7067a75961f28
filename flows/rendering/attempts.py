"""How often a chunk is tried, with which pauses and limits, and which attempts have failed."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from statistics import median

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
# So many chunks have to be done before others can be called slow ...
_LEAST_DONE = 3
# ... and so long a chunk has to take: below, the start of a program is most of it.
_LEAST_SLOW_SECONDS = 5.0


class SlowChunks(StrEnum):
    """What to do about a chunk that takes far longer than the others."""

    REPORT = "report"
    DUPLICATE = "duplicate"
    END = "end"


@dataclass(frozen=True)
class Attempts:
    """How a job's chunks are tried: the parameters of `render_job` with these names."""

    retries: int = 0
    retry_delay: float = 1.0
    max_failures: int | None = None
    timeout: float | None = None
    slow_factor: float | None = None
    slow_chunks: SlowChunks = SlowChunks.REPORT

    def check(self, storage: object | None) -> None:
        """Refuse what a job without a storage cannot do. Raises: JobError."""
        if self.slow_chunks is SlowChunks.DUPLICATE and storage is None:
            raise JobError(
                "slow_chunks is 'duplicate', and two attempts at a chunk would write the same file "
                "in the job folder: choose a storage, or 'report' or 'end'"
            )

    def pause(self, failed: int) -> float:
        """Return the seconds to wait after a chunk's n-th failed attempt.

        The wait doubles, up to 300 s, and half of it is left to chance, so that chunks that failed
        together do not come back together: "equal jitter" of the AWS Architecture Blog,
        "Exponential Backoff And Jitter".
        """
        longest = max(self.retry_delay, _LONGEST_PAUSE_SECONDS)
        pause = min(self.retry_delay * 2.0 ** (min(failed, 64) - 1), longest)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 -- no secret

    def slowness(self, frames: int, seconds: float, frame_times: Sequence[float]) -> str | None:
        """Say in what a chunk is slow that is rendered for some seconds; None if it is not.

        `frame_times` are the seconds that a frame took, of each finished chunk.
        """
        if self.slow_factor is None or len(frame_times) < _LEAST_DONE:
            return None
        usual = median(frame_times) * frames
        if seconds < max(self.slow_factor * usual, _LEAST_SLOW_SECONDS):
            return None
        return (
            f"it takes {self.slow_factor:g} times as long as the others, which took {usual:.1f} s"
        )

    def parameters(self) -> dict[str, object]:
        """Return the parameters of a run of `render_chunks` on a work pool."""
        if self.slow_chunks is SlowChunks.DUPLICATE:
            # Two attempts in one run would share its machine: another run makes the second one.
            return asdict(self) | {"slow_chunks": SlowChunks.REPORT}
        return asdict(self)


@dataclass(eq=False)
class Failures:
    """The failed attempts of one job or run; safe to use from several threads.

    `most` is how many there may be; None means unlimited. `tell` is called with all of them
    whenever one more is known.
    """

    most: int | None = None
    tell: Callable[[Sequence[FailedAttempt]], None] | None = None

    def __post_init__(self) -> None:
        self._all: list[FailedAttempt] = []
        self._lock = threading.Lock()

    @property
    def all(self) -> tuple[FailedAttempt, ...]:
        """The failed attempts, in the order in which they failed."""
        with self._lock:
            return tuple(self._all)

    def add(self, chunk: int, attempt: int, seconds: float, error: Exception) -> None:
        """Record a failed attempt.

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
        if self.tell is not None:
            self.tell(self.all)
        if isinstance(error, ChunkFileError) and (chunk, failed.kind, failed.message) in known:
            raise RepeatedFault(f"{error}, for the second time: it is not tried again") from None
        self.check()

    def take(self, others: Iterable[FailedAttempt]) -> None:
        """Record failed attempts of a run that this one has started."""
        with self._lock:
            self._all.extend(others)

    def check(self) -> None:
        """Raise TooManyFailures if the job has had more failed attempts than it may have."""
        failed = self.all
        if self.most is not None and len(failed) > self.most:
            raise TooManyFailures(
                f"{len(failed)} attempts of the job have failed, and max_failures is {self.most}; "
                f"the last one: {failed[-1].message}"
            ) from None


def worth_another_attempt(error: object) -> bool:
    """Tell from an error's type whether the chunk may succeed another time."""
    if isinstance(error, RenderFarmError):
        fatal = isinstance(error, FatalWorkerError | StorageRefused)
        return isinstance(error, WorkerError | StorageError) and not fatal
    return True
