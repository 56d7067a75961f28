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
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Self
from uuid import UUID, uuid4

from prefect.context import FlowRunContext
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
from prefect_renderfarm.blocks.runtime.repeat import periodic, retry
from prefect_renderfarm.flows.jobs.checks import RECORDS
from prefect_renderfarm.flows.jobs.spec import RenderJob
from prefect_renderfarm.flows.runs.orphans import end_after_death
from prefect_renderfarm.flows.state.job_state import JobState

HEARTBEAT_SECONDS = 10.0
# Four heartbeats may be lost: long enough for a storage's hiccups, short for people who wait.
SILENT_SECONDS = 45.0
# How long a run waits that keeps a worker busy, which the holder of the lock may be waiting for.
BUSY_SECONDS = 60.0
# The part of that silence after which a holder doubts that the lock is still its own.
_DOUBT = 0.8
_SECONDS_BETWEEN_LINES = 60.0
_LOCK, _USED = "lock", "used.lock"


class ProcessIdentity(BaseModel):
    """A process, so that another on the same machine can tell whether it still runs.

    Process ids are of a pid namespace and are used again; the kernel's boot id and the start of the
    process, in clock ticks since boot, tell one use from the next (Linux, proc(5)).
    """

    model_config = ConfigDict(frozen=True)

    machine: str
    boot: str
    namespace: int
    pid: int = Field(gt=0)
    started: int

    @classmethod
    def of_this_one(cls) -> Self | None:
        """Return the identity of this process; None where the system does not tell."""
        try:
            if Path("/proc/self").readlink() != Path(str(os.getpid())):
                return None  # the files of another pid namespace
            return cls(
                machine=socket.gethostname(),
                boot=Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
                namespace=Path("/proc/self/ns/pid").stat().st_ino,
                pid=os.getpid(),
                started=_stat(os.getpid())[1],
            )
        except OSError:
            return None

    def has_ended(self) -> bool:
        """Return whether the process has ended for certain, as seen from this one."""
        here = ProcessIdentity.of_this_one()
        kernel = {"machine", "boot", "namespace"}
        if here is None or self.model_dump(include=kernel) != here.model_dump(include=kernel):
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # another user's: /proc may hide it
            pass
        try:
            state, started = _stat(self.pid)
        except OSError:
            return False
        return started != self.started or state in ("Z", "X")  # ended, but not waited for


def _stat(pid: int) -> tuple[str, int]:
    """Return a process' state and start; the name before them may have blanks and brackets."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return fields[0].decode(), int(fields[19])


class LockRecord(BaseModel):
    """Who holds a lock."""

    model_config = ConfigDict(frozen=True)

    holder: str
    job: str
    since: datetime
    heartbeat: int = 0
    released: bool = False
    run: UUID | None = None
    run_name: str = ""
    machine: str = ""
    process: ProcessIdentity | None = None

    @classmethod
    def of_this_run(cls, job: str) -> Self:
        """Return the record of this run."""
        context = FlowRunContext.get()
        run = context.flow_run if context else None
        return cls(
            holder=uuid4().hex,
            job=job,
            since=datetime.now(UTC),
            run=run.id if run else None,
            run_name=run.name if run else "",
            machine=socket.gethostname(),
            process=ProcessIdentity.of_this_one(),
        )

    def __str__(self) -> str:
        process = f"process {self.process.pid}" if self.process else "a process"
        run = f"run {self.run_name!r}" if self.run_name else process
        since = f"{self.since:%Y-%m-%d %H:%M:%S} UTC"
        return f"{run} of job {self.job!r} on {self.machine}, which holds the lock since {since}"

    def next(self, *, released: bool = False) -> Self:
        """Return the record with another heartbeat."""
        update = {"heartbeat": self.heartbeat + 1, "released": released}
        return self.model_copy(update=update)


def _parse(data: bytes | None) -> LockRecord | None:
    try:
        return LockRecord.model_validate_json(data) if data else None
    except ValidationError:
        return None


class JobLock(ABC):
    """The lock of a job, as a context: entering waits for it, leaving releases it.

    Args:
        state: The job.
        timeout: Seconds to wait; None means unlimited.
        why_not: Returns the reason to wait no longer; None to go on.

    Attributes:
        previous: The holder that died with the lock; None if it was released.

    Raises:
        RenderStopped: Another run has held the lock for too long, or there is a reason to wait no
            longer.
    """

    poll_seconds = 1.0

    def __init__(
        self,
        state: JobState,
        *,
        timeout: float | None = None,
        why_not: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.previous: LockRecord | None = None
        self._state = state
        self._timeout = timeout
        self._why_not = why_not
        self._record = LockRecord.of_this_run(state.job.title)
        self._one_waits = threading.Lock()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._wait()
            stack.callback(self._release)
            stack.enter_context(self._heartbeats())
            if self.previous is not None:
                run_log().warning("%s has died: its work is taken over", self.previous)
                self._end_what_is_left(self.previous)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _heartbeats(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _end_what_is_left(self, previous: LockRecord) -> None:
        """End the flow runs that a dead holder had started."""
        if previous.run is not None:
            end_after_death(previous.run, certain=self._has_ended(previous))

    def _has_ended(self, previous: LockRecord) -> bool:
        """Return whether a holder's process has ended for certain."""
        return previous.process is not None and previous.process.has_ended()

    def ensure(self, stop: threading.Event) -> None:  # noqa: B027 -- a folder's is never lost
        """Make sure that the lock is still held; wait for it if it was lost.

        Raises:
            WorkStopped: `stop` was set meanwhile.
        """

    def _wait(self, stop: threading.Event | None = None) -> None:
        since = time.monotonic()
        logged = -_SECONDS_BETWEEN_LINES
        while (holder := retry(self._try, "the job lock")) is not None:
            waited = time.monotonic() - since
            who = f"job {self._state.job.title!r} waits for {holder}"
            if reason := self._why_not():
                raise RenderStopped(f"{who}: {reason}")
            if self._timeout is not None and waited > self._timeout:
                raise RenderStopped(f"{who}: it has held the lock for more than {waited:.0f} s")
            if waited - logged >= _SECONDS_BETWEEN_LINES:
                logged = waited
                run_log().info("%s", who)
            # At random, so that two that wait for each other's files do not meet again and again.
            pause = self.poll_seconds * random.uniform(0.5, 1.5)  # noqa: S311
            if stop is None:
                time.sleep(pause)
            elif stop.wait(pause):
                raise WorkStopped("the job was stopped while it waited for its lock")

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

    _file: IO[str] | None = None

    def _try(self) -> LockRecord | None:
        try:
            if not self._state.job_file.exists():  # other jobs read there which files it has
                self._state.local.write("job.json", self._state.job.to_json().encode())
            # Reading, too: NFS gives locks to readers that are none to writers.
            file = (self._state.records / _LOCK).open("a+", encoding="utf-8")
        except OSError as error:
            self._warn(error)
            return None
        with ExitStack() as stack:
            stack.enter_context(file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return self._holder(file)
            except OSError as error:  # not every network file system has locks
                self._warn(error)
                return None
            if (other := self._other_job()) is not None:
                return other
            self._record = self._record.model_copy(update={"since": datetime.now(UTC)})
            previous = self._read(file)
            self.previous = previous if previous and not previous.released else None
            self._write(file, self._record)
            self._file = file
            stack.pop_all()
        return None

    def _release(self) -> None:
        if self._file is not None:
            with self._file as file, suppress(OSError):
                self._write(file, self._record.next(released=True))
            self._file = None

    def _other_job(self) -> LockRecord | None:
        """Return the holder of another job's lock whose chunks have some of the same files."""
        own = {chunk.output_file for chunk in self._state.job.chunks}
        for path in sorted((self._state.path / RECORDS).glob(f"*/{_LOCK}")):
            if path.parent == self._state.records:
                continue
            with suppress(OSError, ValueError, JobError), path.open(encoding="utf-8") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    text = path.with_name(self._state.job_file.name).read_text(encoding="utf-8")
                    job = RenderJob.model_validate_json(text)
                    if not own.isdisjoint(chunk.output_file for chunk in job.chunks):
                        return self._holder(lock)
        return None

    def _holder(self, file: IO[str]) -> LockRecord:
        """Return who has locked a file; it may be about to write so."""
        for _ in range(10):
            record = self._read(file)
            if record is not None and not record.released:
                return record
            time.sleep(0.02)
        return record or self._record

    def _end_what_is_left(self, previous: LockRecord) -> None:
        super()._end_what_is_left(previous)
        since, logged = time.monotonic(), -_SECONDS_BETWEEN_LINES
        while _is_used(self._state):
            waited = time.monotonic() - since
            if waited - logged >= _SECONDS_BETWEEN_LINES:
                logged = waited
                run_log().info("waiting for the end of the runs that %s had started", previous)
            time.sleep(self.poll_seconds)

    def _has_ended(self, previous: LockRecord) -> bool:
        return True  # else the system would not have freed its lock

    @staticmethod
    def _read(file: IO[str]) -> LockRecord | None:
        file.seek(0)
        return _parse(file.read().encode())

    @staticmethod
    def _write(file: IO[str], record: LockRecord) -> None:
        file.seek(0)
        file.truncate()
        file.write(record.model_dump_json())
        file.flush()

    def _warn(self, error: OSError) -> None:
        run_log().warning(
            "%s cannot be locked (%s): other runs of this job at the same time are not noticed",
            self._state.name, error.strerror,
        )  # fmt: skip


class StorageLock(JobLock):
    """Numbered objects in a storage that has lists and conditional requests."""

    poll_seconds = 5.0
    heartbeat_seconds = HEARTBEAT_SECONDS
    silent_seconds = SILENT_SECONDS

    _number = 0
    _lost = False
    _written_at = 0.0
    # Number and heartbeat of the record that was seen last, and since when they have not changed.
    _seen: tuple[int, int, float] = (0, 0, 0.0)

    def _heartbeats(self) -> AbstractContextManager[None]:
        if not self._number:
            return nullcontext()
        return periodic(self._heartbeat, self.heartbeat_seconds, "heartbeat of the job lock")

    def is_held(self) -> bool:
        """Return whether the lock is this run's own for certain."""
        if not self._number:  # the storage has no locks
            return not self._lost
        silence = _clock() - self._written_at
        return not self._lost and silence <= _DOUBT * self.silent_seconds

    def ensure(self, stop: threading.Event) -> None:
        """Make sure that the lock is still held; wait for it if it was lost."""
        while not self.is_held():
            with self._one_waits:
                if self._lost:
                    self._record = LockRecord.of_this_run(self._state.job.title)
                    self._wait(stop)
            if not self.is_held() and stop.wait(0.5):
                raise WorkStopped("the job was stopped while its storage did not answer")

    def _try(self) -> LockRecord | None:
        jobs = self._state.objects
        try:
            number = self._highest()
            record = _parse(jobs.read(_name(number))) if number else None
            if record and not record.released and not self._is_dead(number, record):
                return record
            begun = _clock()
            self._record = self._record.model_copy(update={"since": datetime.now(UTC)})
            created = jobs.create(_name(number + 1), self._record.model_dump_json().encode())
            # A number may have been used and deleted since the list was read.
            if not created or self._highest() > number + 1:
                return self._try()
        except (SetupError, StorageRefused) as error:
            run_log().warning(
                "other runs of this job at the same time are not noticed, and render it, too: %s",
                error,
            )
            return None
        self._number, self._lost, self._written_at = number + 1, False, begun
        self.previous = record if record and not record.released else None
        with suppress(StorageError, SetupError):
            jobs.delete([name for name in jobs.names(_LOCK) if _number_of(name) < number])
        return None

    def _highest(self) -> int:
        return max(map(_number_of, self._state.objects.names(_LOCK)), default=0)

    def _is_dead(self, number: int, record: LockRecord) -> bool:
        """Return whether a holder has ended, or has been silent for too long."""
        if record.process is not None and record.process.has_ended():
            return True
        seen, beat, since = self._seen
        if (seen, beat) != (number, record.heartbeat):
            self._seen = (number, record.heartbeat, _clock())
            return False
        return _clock() - since >= self.silent_seconds

    def _heartbeat(self) -> None:
        if self._lost:
            return
        begun = _clock()
        if self._highest() > self._number:
            self._lost = True
            run_log().warning(
                "another run has taken the lock of job %r, because this one was silent for more "
                "than %.0f s", self._state.job.title, self.silent_seconds,
            )  # fmt: skip
            return
        self._record = self._record.next()
        data = self._record.model_dump_json().encode()
        self._state.objects.write(_name(self._number), data)
        self._written_at = begun

    def _release(self) -> None:
        if not self._number or self._lost:
            return
        try:
            record = self._record.next(released=True)
            self._state.objects.write(_name(self._number), record.model_dump_json().encode())
        except StorageError as error:
            run_log().warning(
                "the job lock is not released, and ends %.0f s after its last heartbeat: %s",
                self.silent_seconds, error,
            )  # fmt: skip


def _name(number: int) -> str:
    return f"{_LOCK}/{number:08d}.json"


def _number_of(name: str) -> int:
    stem = Path(name).stem
    return int(stem) if stem.isdecimal() else 0


def _clock() -> float:
    """Return seconds that go on while this machine sleeps, where the system counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def job_lock(
    state: JobState,
    *,
    timeout: float | None = None,
    why_not: Callable[[], str | None] = lambda: None,
) -> JobLock:
    """Return the lock of a job: of its folder, or of its storage. See `JobLock`."""
    kind = FolderLock if state.block is None else StorageLock
    return kind(state, timeout=timeout, why_not=why_not)


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
    with suppress(FileNotFoundError), (state.records / _USED).open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False
