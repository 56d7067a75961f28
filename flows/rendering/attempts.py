"""Attempts at chunks: how many, with which pauses and limits, which failed; one that runs."""

from __future__ import annotations

import contextvars
import random
import threading
import time
from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum

from prefect_renderfarm.blocks.errors import (
    ChunkFileError,
    CommandTimeout,
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
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.spec import Chunk
from prefect_renderfarm.flows.results import FailedAttempt

_LONGEST_PAUSE_SECONDS = 300.0
_KEPT_CHARACTERS = 2_000  # of a command's output
_KEPT_OUTPUTS = 20  # of the last failed attempts
# So many chunks have to be done before others can be called slow ...
_LEAST_DONE = 3
# ... and so long a chunk has to take: below, the start of a program is most of it.
_LEAST_SLOW_SECONDS = 5.0


class SlowChunks(StrEnum):
    """What to do about a chunk that takes far longer than the others.

    `auto` duplicates where that costs no place for another chunk, by runs on a work pool that share
    a storage, and reports elsewhere.
    """

    AUTO = "auto"
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
        """Return the seconds to wait after a chunk's n-th failed attempt: doubling, up to 300 s.

        Half of it is left to chance, so that chunks that failed together do not come back together:
        "equal jitter" of the AWS Architecture Blog, "Exponential Backoff And Jitter".
        """
        longest = max(self.retry_delay, _LONGEST_PAUSE_SECONDS)
        pause = min(self.retry_delay * 2.0 ** (min(failed, 64) - 1), longest)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 -- no secret

    def slowness(self, frames: int, seconds: float, times: Timings) -> str | None:
        """Say in what a chunk is slow that is rendered for some seconds; None if it is not."""
        if self.slow_factor is None or len(times.chunks) < _LEAST_DONE:
            return None
        usual = times.frame * frames
        if seconds < max(self.slow_factor * usual, _LEAST_SLOW_SECONDS):
            return None
        return (
            f"it takes {self.slow_factor:g} times as long as the others, which took {usual:.1f} s"
        )

    def parameters(self) -> dict[str, object]:
        """Return the parameters of a run of `render_chunks` on a work pool."""
        # Two attempts in one run would share its machine: another run makes the second one.
        ends = self.slow_chunks is SlowChunks.END
        return asdict(self) | {"slow_chunks": SlowChunks.END if ends else SlowChunks.REPORT}


@dataclass(eq=False)
class Failures:
    """The failed attempts of one job or run; safe to use from several threads."""

    most: int | None = None  # None means unlimited
    tell: Callable[[Sequence[FailedAttempt]], None] | None = None  # is given all, at each new one

    def __post_init__(self) -> None:
        self._all: list[FailedAttempt] = []
        self._lock = threading.Lock()

    @property
    def all(self) -> tuple[FailedAttempt, ...]:
        """The failed attempts, in the order in which they failed."""
        return tuple(self._all)

    def add(self, chunk: int, attempt: int, seconds: float, error: Exception) -> None:
        """Record a failed attempt. Raises: RepeatedFault, TooManyFailures."""
        if isinstance(error, WorkStopped):
            return  # its job was; nothing failed
        kind, message = type(error).__name__, str(error)
        worker, output = (getattr(error, name, "") for name in ("worker", "output"))
        failed = FailedAttempt(
            chunk=chunk, attempt=attempt, seconds=seconds, kind=kind, message=message,
            worker=worker, output=output[-_KEPT_CHARACTERS:], ended_at=datetime.now(UTC),
        )  # fmt: skip
        fault = (chunk, kind, message)
        with self._lock:
            repeated = isinstance(error, ChunkFileError) and any(
                (one.chunk, one.kind, one.message) == fault for one in self._all
            )
            self._all.append(failed)
            if len(self._all) > _KEPT_OUTPUTS:  # a report of thousands would have 2 kB of each
                old = self._all[-1 - _KEPT_OUTPUTS]
                self._all[-1 - _KEPT_OUTPUTS] = old.model_copy(update={"output": ""})
        if self.tell is not None:
            self.tell(self.all)
        if repeated:
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


class Timings:
    """How long chunks took that are done: at hand without a look at all of them; for threads.

    Attributes:
        chunks: Seconds of each chunk.
        longest: Seconds of the longest one; 0 if there is none.
    """

    def __init__(self, results: Iterable[ChunkResult] = ()) -> None:
        known = list(results)
        self.chunks = [result.seconds for result in known]
        self.longest = max(self.chunks, default=0.0)
        self._frames = sorted(result.seconds / result.frame_count for result in known)
        self._lock = threading.Lock()

    def add(self, result: ChunkResult) -> None:
        """Take a chunk that is done."""
        with self._lock:
            self.chunks.append(result.seconds)
            self.longest = max(self.longest, result.seconds)
            insort(self._frames, result.seconds / result.frame_count)

    @property
    def frame(self) -> float:
        """Seconds of a frame in the middle one of the chunks; there has to be one."""
        return self._frames[len(self._frames) // 2]


@dataclass(eq=False)
class RunningAttempt:
    """An attempt at a chunk, which may be ended, or overtaken by a second one beside it."""

    chunk: Chunk
    _run: Callable[[Chunk, threading.Event], ChunkResult]
    _job_stop: threading.Event
    known_as_slow: bool = False

    def __post_init__(self) -> None:
        self._stop, self._second_stop = threading.Event(), threading.Event()
        self._started = time.monotonic()
        self._why = ""
        self._second: Future[ChunkResult] | None = None
        self._context = contextvars.copy_context()  # made here, where the run's logger is known

    @property
    def age(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._started

    def run(self) -> ChunkResult:
        """Go through with it. Raises CommandTimeout if it was ended because it took too long."""
        if self._job_stop.is_set():  # perhaps before this attempt was among those that are stopped
            self.stop()
        try:
            return self._run(self.chunk, self._stop)
        except RenderFarmError as error:
            stopped = isinstance(error, WorkStopped)
            if stopped and self._job_stop.is_set():
                raise
            if self._second is not None and self._second.exception() is None:
                return self._second.result()
            if stopped:
                raise CommandTimeout(f"chunk {self.chunk.id}: {self._why}") from None
            raise
        finally:
            self._second_stop.set()

    def stop(self) -> None:
        """End it with its job."""
        self._stop.set()
        self._second_stop.set()

    def end(self, why: str) -> None:
        """End it because it takes too long."""
        self._why = why
        self._stop.set()

    def duplicate(self) -> None:
        """Begin a second attempt at the chunk; the first to be done counts."""
        second: Future[ChunkResult] = Future()
        self._second = second
        run, name = self._context.run, f"second attempt at chunk {self.chunk.id}"
        thread = threading.Thread(
            target=run, args=(self._run_second, second), name=name, daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # there are too many; else the first one would wait for it
            second.set_exception(error)
            raise

    def _run_second(self, second: Future[ChunkResult]) -> None:
        try:
            second.set_result(self._run(self.chunk, self._second_stop))
        except BaseException as error:  # the first one goes on, and says how it ends
            second.set_exception(error)
        else:
            self._stop.set()
