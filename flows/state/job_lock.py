"""One run of a job at a time: the others wait, then take what is done.

In a shared folder the lock is the operating system's, which frees it when its holder dies. In a
storage it is the highest of numbered objects, `lock/00000001.json` and so on, each created on the
condition that it does not exist. The holder writes its own object again and again, which is its
heartbeat. Who finds the holder dead creates the next number. Numbers are never used twice.

Money hangs on the lock, not correctness: attempts never share a key, and the first manifest of a
chunk counts.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self
from uuid import UUID, uuid4

from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_renderfarm.blocks.errors import (
    JobError,
    RenderStopped,
    SetupError,
    StorageError,
    StorageRefused,
    WorkStopped,
)
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.runtime.repeat import once_a_minute, periodic, retry
from prefect_renderfarm.flows.jobs.checks import RECORDS
from prefect_renderfarm.flows.jobs.spec import RenderJob
from prefect_renderfarm.flows.runs.orphans import end_after_death
from prefect_renderfarm.flows.state.job_state import JobState

# How long a run waits that keeps a worker busy, which the holder of the lock may be waiting for.
_BUSY_SECONDS = 60.0
# The part of a silence that ends a lock after which its holder doubts that it is still its own.
_DOUBT = 0.8
_LOCK, _HOLDER, _USED = "lock", "holder.json", "used.lock"
_NAME = "lock/{:08d}.json"


class LockRecord(BaseModel):
    """Who holds a lock."""

    model_config = ConfigDict(frozen=True)

    holder: UUID = Field(default_factory=uuid4)
    job: str
    since: datetime
    heartbeat: int = 0
    released: bool = False
    run: UUID | None = None
    run_name: str = ""
    machine: str
    pid: int

    def __str__(self) -> str:
        run = f"run {self.run_name!r}" if self.run_name else f"process {self.pid}"
        since = f"{self.since:%Y-%m-%d %H:%M:%S} UTC"
        return f"{run} of job {self.job!r} on {self.machine}, which holds the lock since {since}"

    @property
    def mark(self) -> Path:
        """A file that the holder keeps locked, so that others on its machine see that it lives."""
        return Path(tempfile.gettempdir()) / f"renderfarm-{self.holder}.lock"

    def has_ended(self) -> bool:
        """Return whether the holder's process has ended for certain, as seen from here."""
        with suppress(OSError), self.mark.open() as file:  # it may be another machine's or user's
            return _try_lock(file, fcntl.LOCK_SH)
        return False


class JobLock(ABC):
    """The lock of a job, as a context: entering waits for it, leaving releases it.

    A run on a work pool gives `why_not`, which returns why it is in vain to wait, or None. It waits
    for a minute at most: then, or for that reason, `RenderStopped` is raised.
    """

    poll_seconds = 1.0
    first = False  # no run of the job has held the lock before, as far as the storage knows
    _freed_by_system = False  # when its holder dies
    _lost = False

    def __init__(self, state: JobState, why_not: Callable[[], str | None] | None = None) -> None:
        self.previous: LockRecord | None = None  # the holder that died with the lock
        self._state = state
        self._why_not = why_not
        self._timeout = None if why_not is None else _BUSY_SECONDS
        self._record = LockRecord(
            job=state.job.title, since=datetime.now(UTC), run=flow_run.id,
            run_name=flow_run.name or "", machine=socket.gethostname(), pid=os.getpid(),
        )  # fmt: skip
        self._one_waits = threading.Lock()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            with suppress(OSError):  # without the mark others wait for silence
                mark = stack.enter_context(self._record.mark.open("x"))
                stack.callback(self._record.mark.unlink, missing_ok=True)
                _try_lock(mark, fcntl.LOCK_EX)
            self._wait(threading.Event())
            stack.callback(self._release)
            stack.enter_context(self._heartbeats())
            if self.previous is not None:
                self._take_over_from(self.previous)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def is_held(self) -> bool:
        """Return whether the lock is this run's own for certain."""
        return True

    def ensure(self, stop: threading.Event) -> None:
        """Wait until the lock is held, if it was lost. Raises: WorkStopped, when `stop` is set."""
        while not self.is_held():
            with self._one_waits:
                if self._lost:
                    self._wait(stop)
            if not self.is_held() and stop.wait(0.5):
                raise WorkStopped("the job was stopped while its storage did not answer")

    def _wait(self, stop: threading.Event) -> None:
        since = time.monotonic()
        log = once_a_minute(run_log().info)
        while (holder := retry(self._try, "the job lock")) is not None:
            waited = time.monotonic() - since
            who = f"job {self._state.job.title!r} waits for {holder}"
            if self._why_not is not None and (reason := self._why_not()):
                raise RenderStopped(f"{who}: {reason}")
            if self._timeout is not None and waited > self._timeout:
                raise RenderStopped(f"{who}: it has held the lock for more than {waited:.0f} s")
            log(who)
            # At random, so that two that wait for each other's files do not meet again and again.
            if stop.wait(self.poll_seconds * random.uniform(0.5, 1.5)):  # noqa: S311
                raise WorkStopped("the job was stopped while it waited for its lock")

    def _take_over_from(self, previous: LockRecord) -> None:
        """End what a dead holder had started, and wait until nobody uses the job's files."""
        run_log().warning("%s has died: its work is taken over", previous)
        if previous.run is not None:
            end_after_death(previous.run, certain=self._freed_by_system or previous.has_ended())
        with suppress(OSError):
            previous.mark.unlink(missing_ok=True)
        log = once_a_minute(run_log().info)
        while _is_used(self._state):
            log(f"waiting for the end of the runs that {previous} had started")
            time.sleep(self.poll_seconds)

    def _updated(self, **changes: Any) -> bytes:
        """Change this run's record; return it as it is stored."""
        self._record = self._record.model_copy(update=changes)
        return self._record.model_dump_json().encode()

    def _heartbeats(self) -> AbstractContextManager[None]:
        return nullcontext()

    @abstractmethod
    def _try(self) -> LockRecord | None:
        """Take the lock if it is free; else return its holder."""

    @abstractmethod
    def _release(self) -> None: ...


class FolderLock(JobLock):
    """A lock of the operating system on a file of the job's records.

    Jobs in one folder whose chunks have the same files exclude each other, too: a job of which
    something was changed is another job, but its chunks have the same names.
    """

    _freed_by_system = True
    _locked: ExitStack | None = None

    def _try(self) -> LockRecord | None:
        with ExitStack() as stack:
            try:
                if not self._state.job_file.exists():  # other jobs read there which files it has
                    self._state.local.write("job.json", self._state.job.to_json().encode())
                # Reading, too: NFS gives locks to readers that are none to writers.
                file = stack.enter_context((self._state.records / _LOCK).open("a+"))
                if not _try_lock(file, fcntl.LOCK_EX):
                    return self._holder(self._state.job.key)
            except OSError as error:  # not every network file system has locks
                run_log().warning(
                    "%s cannot be locked (%s): other runs of this job at the same time are not "
                    "noticed", self._state.name, error.strerror,
                )  # fmt: skip
                return None
            if (other := self._other_job()) is not None:
                return other
            previous = _parse(self._state.local.read(_HOLDER))
            self.previous = previous if previous and not previous.released else None
            self._state.local.write(_HOLDER, self._updated(since=datetime.now(UTC)))
            self._locked = stack.pop_all()
        return None

    def _release(self) -> None:
        if self._locked is not None:
            with self._locked, suppress(OSError):
                self._state.local.write(_HOLDER, self._updated(released=True))

    def _other_job(self) -> LockRecord | None:
        """Return the holder of another job's lock whose chunks have some of the same files."""
        own = {chunk.output_file for chunk in self._state.job.chunks}
        for path in sorted((self._state.path / RECORDS).glob(f"*/{_LOCK}")):
            if path.parent == self._state.records:
                continue
            with suppress(OSError, JobError), path.open() as file:
                if not _try_lock(file, fcntl.LOCK_SH):
                    job = RenderJob.model_validate_json(path.with_name("job.json").read_bytes())
                    if not own.isdisjoint(chunk.output_file for chunk in job.chunks):
                        return self._holder(path.parent.name)
        return None

    def _holder(self, job_key: str) -> LockRecord:
        """Return who has locked a job; it may be about to write so."""
        store = self._state.local.store
        for _ in range(10):
            record = _parse(store.read(f"{store.root}/{job_key}/{_HOLDER}"))
            if record is not None and not record.released:
                return record
            time.sleep(0.02)
        return record or self._record


class StorageLock(JobLock):
    """Numbered objects in a storage that has lists and conditional requests."""

    poll_seconds = 5.0
    heartbeat_seconds = 10.0
    # Four heartbeats may be lost: long enough for a storage's hiccups, short for people who wait.
    silent_seconds = 45.0

    _number = 0  # none: the storage has no locks
    _written_at = 0.0
    # Number and heartbeat of the record that was seen last, and since when they have not changed.
    _seen: tuple[int, int, float] = (0, 0, 0.0)

    def is_held(self) -> bool:
        """Return whether the lock is this run's own for certain."""
        if not self._number:
            return True
        return not self._lost and _clock() - self._written_at <= _DOUBT * self.silent_seconds

    def _try(self) -> LockRecord | None:
        jobs = self._state.objects
        try:
            number = self._highest()
            record = _parse(jobs.read(_NAME.format(number))) if number else None
            if record and not record.released and not self._is_dead(number, record):
                return record
            begun = _clock()
            created = jobs.create(_NAME.format(number + 1), self._updated(since=datetime.now(UTC)))
            # A number may have been used and deleted since the list was read.
            if not created or self._highest() > number + 1:
                return self._try()
        except (SetupError, StorageRefused) as error:
            self._number = 0
            run_log().warning(
                "other runs of this job at the same time are not noticed, and render it, too: %s",
                error,
            )
            return None
        self._number, self._lost, self._written_at = number + 1, False, begun
        self.first = number == 0
        self.previous = record if record and not record.released else None
        with suppress(StorageError, SetupError):
            jobs.delete(name for name in jobs.names(_LOCK) if name < _NAME.format(number))
        return None

    def _highest(self) -> int:
        stems = [Path(name).stem for name in self._state.objects.names(_LOCK)]
        return max((int(stem) for stem in stems if stem.isdecimal()), default=0)

    def _is_dead(self, number: int, record: LockRecord) -> bool:
        """Return whether a holder has ended, or has been silent for too long."""
        if record.has_ended():
            return True
        seen, beat, since = self._seen
        if (seen, beat) != (number, record.heartbeat):
            self._seen = (number, record.heartbeat, _clock())
            return False
        return _clock() - since >= self.silent_seconds

    def _heartbeats(self) -> AbstractContextManager[None]:
        # One that is being written is waited for: it would undo the release.
        name = "heartbeat of the job lock"
        return periodic(self._heartbeat, self.heartbeat_seconds, name, wait=True)

    def _heartbeat(self) -> None:
        if self._lost or not self._number:
            return
        begun = _clock()
        if self._highest() > self._number:
            self._lost = True
            run_log().warning(
                "another run has taken the lock of job %r, because this one was silent for more "
                "than %.0f s", self._state.job.title, self.silent_seconds,
            )  # fmt: skip
            return
        data = self._updated(heartbeat=self._record.heartbeat + 1)
        self._state.objects.write(_NAME.format(self._number), data)
        self._written_at = begun

    def _release(self) -> None:
        if self._lost or not self._number:
            return
        try:
            self._state.objects.write(_NAME.format(self._number), self._updated(released=True))
        except StorageError as error:
            run_log().warning(
                "the job lock is not released, and ends %.0f s after its last heartbeat: %s",
                self.silent_seconds, error,
            )  # fmt: skip


def job_lock(state: JobState, why_not: Callable[[], str | None] | None = None) -> JobLock:
    """Return the lock of a job: of its folder, or of its storage. See `JobLock`."""
    return (FolderLock if state.block is None else StorageLock)(state, why_not)


@contextmanager
def using_chunks(state: JobState) -> Iterator[None]:
    """Inside the block, let a successor of a dead lock holder, which started this run, wait.

    In a shared folder the successor would write the files that this run reads or writes.
    """
    with ExitStack() as stack:
        if state.block is None:
            with suppress(OSError):
                state.records.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((state.records / _USED).open("a+"))
                fcntl.flock(file, fcntl.LOCK_SH)
        yield


def _is_used(state: JobState) -> bool:
    """Return whether a run is inside `using_chunks`."""
    with suppress(OSError), (state.records / _USED).open("r+") as file:
        return not _try_lock(file, fcntl.LOCK_EX)
    return False


def _try_lock(file: IO[str], mode: int) -> bool:
    """Lock a file, if no other has locked it; return whether it is locked."""
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _clock() -> float:
    """Return seconds that go on while this machine sleeps, where the system counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _parse(data: bytes | None) -> LockRecord | None:
    try:
        return LockRecord.model_validate_json(data) if data else None
    except ValidationError:
        return None
