"""The other runs that render chunks of a job, by the records of their leases, if they live."""

from __future__ import annotations

import contextvars
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

from prefect.context import FlowRunContext
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_renderfarm.blocks.errors import RenderFarmError
from prefect_renderfarm.blocks.runtime.prefect_api import declare_lost, read_runs
from prefect_renderfarm.flows.state.job_folder import JobFolder

LEASES = "leases"

# The server is asked no more often than this how the other runs are.
_ASK_SECONDS = 5.0
# A run that the server wrongly declared crashed renders on, and says so every 10 s.
_FINAL_SECONDS = 25.0
_READERS = 8  # boto3 keeps 10 connections


class Place(BaseModel):
    """A process, told so that another on the same machine can see whether it is still there.

    Process ids are of a pid namespace and are used again; the kernel's boot id and the process'
    start, in clock ticks since boot, tell one use from the next (Linux, proc(5)).
    """

    model_config = ConfigDict(frozen=True)

    machine: str
    boot: str
    namespace: int
    pid: int = Field(gt=0)
    started: int

    def is_gone(self, here: Place | None) -> bool:
        """Return whether the process has ended for certain, as seen from another place."""
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


def here() -> Place | None:
    """Return this process' place; None: this system does not tell."""
    try:
        if Path("/proc/self").readlink() != Path(str(os.getpid())):
            return None  # the files of another pid namespace
        return Place(
            machine=socket.gethostname(),
            boot=Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
            namespace=Path("/proc/self/ns/pid").stat().st_ino,
            pid=os.getpid(),
            started=_stat(os.getpid())[1],
        )
    except OSError:
        return None


def _stat(pid: int) -> tuple[str, int]:
    """Return a process' state and start; the name before them may have blanks and brackets."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return fields[0].decode(), int(fields[19])


class LeaseRecord(BaseModel):
    """What a run says of the chunks that it renders.

    Attributes:
        holder: Which run it is; the name of its record.
        since: When it began, in seconds since 1970 by its own clock.
        beat: A number that grows as long as the run lives.
        wanted: Chunks that it asks for.
        held: Chunks that are its own.
        used: Chunks that are done, and that nobody shall render anew while it uses them.
        run: Its flow run, if it has one.
        run_name: The flow run's name.
        machine: The name of its machine.
        place: Its process, if its system tells.
    """

    model_config = ConfigDict(frozen=True)

    holder: str
    since: float
    beat: int = 0
    wanted: frozenset[int] = frozenset()
    held: frozenset[int] = frozenset()
    used: frozenset[int] = frozenset()
    run: UUID | None = None
    run_name: str = ""
    machine: str = ""
    place: Place | None = None

    @classmethod
    def of_this_run(cls) -> LeaseRecord:
        """Return a first record of the current flow run, under a name that no other has."""
        context = FlowRunContext.get()
        run = context.flow_run if context else None
        return cls(
            holder=uuid4().hex,
            since=time.time(),
            run=run.id if run else None,
            run_name=run.name if run else "",
            machine=socket.gethostname(),
            place=here(),
        )

    def next(
        self, wanted: frozenset[int], held: frozenset[int], used: frozenset[int]
    ) -> LeaseRecord:
        """Return the record that is written after this one."""
        update = {"beat": self.beat + 1, "wanted": wanted, "held": held, "used": used}
        return self.model_copy(update=update)

    def decide(
        self, asked: frozenset[int], others: Iterable[LeaseRecord]
    ) -> tuple[frozenset[int], frozenset[int]]:
        """Tell which of the chunks that this run wants it has won, and which it has lost.

        The rest is undecided until a later run has made up its mind.
        """
        taken, undecided = set[int](), set[int]()
        for other in others:
            taken |= other.held | other.used
            if (other.since, other.holder) < (self.since, self.holder):
                taken |= other.wanted
            else:
                undecided |= other.wanted
        return asked - taken - undecided, asked & taken

    @property
    def chunks(self) -> frozenset[int]:
        """The chunks that it has, uses or asks for."""
        return self.wanted | self.held | self.used

    @property
    def who(self) -> str:
        """What a person finds the run by."""
        run = f"run {self.run_name!r} ({self.run})" if self.run else "a run without a flow run"
        return f"{run} on machine {self.machine!r}"


def chunks_of(records: Iterable[LeaseRecord]) -> frozenset[int]:
    """Return the chunks that some runs have, use or ask for."""
    return frozenset[int]().union(*(record.chunks for record in records))


class Holders:
    """The other runs of a job; safe to use from several threads.

    A run is taken for dead when its flow run is final and its record has not changed for 25 s of
    looking, when its process was on this machine and is not there any more, or when its record has
    not changed for `silent_seconds`. The
    clocks of two machines are not compared. Once dead is dead: a run that was but halted never
    goes on under the same name (see `Lease`), so whoever finds its record may delete it.

    Args:
        folder: The job's folder.
        family: Whose members are no others.
        silent_seconds: How long a living run may be silent.
    """

    def __init__(self, folder: JobFolder, family: str, silent_seconds: float) -> None:
        self._folder = folder
        self._own = f"{LEASES}/{family}."
        self._silent_seconds = silent_seconds
        self._here = here()
        self._lock = threading.Lock()
        self._beats: dict[str, int] = {}
        self._silence: dict[str, float] = {}
        self._looked_at = time.monotonic()
        self._dead: set[str] = set()
        self._final: set[UUID] = set()
        self._ask_at = 0.0

    def look(self) -> list[LeaseRecord]:
        """Return the records of the other runs that live, and delete those of the dead.

        Raises:
            SetupError: This kind of storage cannot list.
            StorageError: The storage did not answer.
            OSError: The job folder cannot be read.
        """
        with self._lock:
            before = time.monotonic()
            found = self._read()
            # A machine that slept between two looks has not looked.
            passed = min(before - self._looked_at, self._silent_seconds / 3)
            self._listen(found, max(passed, 0))
            self._looked_at = time.monotonic()
            self._ask(found.values())
            dead = {name for name, record in found.items() if self._is_dead(name, record)}
            self._dead |= dead
            for name in dead:
                with suppress(RenderFarmError, OSError):
                    self._folder.delete_record(name)
                self._tell_the_server(found[name])
            return [record for name, record in found.items() if name not in dead]

    def _read(self) -> dict[str, LeaseRecord]:
        found = {}
        # In threads, where S3Bucket has no run's log to tell of every object.
        with ThreadPoolExecutor(_READERS, thread_name_prefix="leases") as readers:
            listed = readers.submit(self._folder.list_records, LEASES).result()
            names = [
                name for name in listed
                if not name.startswith(self._own) and name not in self._dead
            ]  # fmt: skip
            texts = list(readers.map(self._folder.read_record, names))
        for name, text in zip(names, texts, strict=True):
            if text is not None:  # else it was given back since it was listed
                with suppress(ValidationError):
                    found[name] = LeaseRecord.model_validate_json(text)
        return found

    def _listen(self, found: dict[str, LeaseRecord], passed: float) -> None:
        """Add up how long each record has not changed."""
        heard, silence = self._beats, self._silence
        self._beats = {name: record.beat for name, record in found.items()}
        self._silence = {
            name: silence[name] + passed if heard.get(name) == beat else 0.0
            for name, beat in self._beats.items()
        }

    def _ask(self, records: Iterable[LeaseRecord]) -> None:
        """Have the server asked which flow runs are final; the next looks know."""
        runs = {record.run for record in records if record.run} - self._final
        if runs and time.monotonic() >= self._ask_at:
            self._ask_at = math.inf
            _aside(self._find_final, runs)

    def _find_final(self, runs: set[UUID]) -> None:
        try:
            found = read_runs(runs)
            self._final |= {key for key, run in found.items() if run.state and run.state.is_final()}
        finally:
            self._ask_at = time.monotonic() + _ASK_SECONDS

    def _tell_the_server(self, record: LeaseRecord) -> None:
        """End the flow run of a process that is gone for sure, if no worker is there to do so."""
        if record.run and record.place is not None and record.place.is_gone(self._here):
            _aside(declare_lost, record.run, f"its process on {record.machine} is gone")

    def _is_dead(self, name: str, record: LeaseRecord) -> bool:
        return (
            (record.run in self._final and self._silence[name] >= _FINAL_SECONDS)
            or (record.place is not None and record.place.is_gone(self._here))
            or self._silence[name] >= self._silent_seconds
        )


def _aside(call: Callable[..., None], *arguments: object) -> None:
    """Speak to the server in a thread of its own: who waits for it gives no sign of life.

    A server that does not answer says nothing of a run, and what it is not told is for people to
    look at.
    """

    def quietly() -> None:
        with suppress(Exception):
            call(*arguments)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(quietly,), daemon=True).start()
