"""What the job lock says, whom it ends, and how long it waits: in one process, without pauses."""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from jobs import small_job
from lock_samples import QuickFolderLock, lock_of, record_of

from prefect_renderfarm.blocks import SetupError, StorageError, WorkStopped
from prefect_renderfarm.blocks.errors import RenderStopped, StorageRefused
from prefect_renderfarm.blocks.storage.objects import FolderStore
from prefect_renderfarm.flows.state import job_lock as module
from prefect_renderfarm.flows.state.job_lock import JobLock, LockRecord, StorageLock, job_lock
from prefect_renderfarm.flows.state.job_state import JobState

RUN = uuid4()
DEAD = LockRecord(
    job="small", since=datetime(2026, 11, 30, 12, 0, 1, tzinfo=UTC), run=RUN,
    run_name="render 100%", machine="farm-7", pid=3,
)  # fmt: skip
NAMED = (
    "run 'render 100%' of job 'small' on farm-7, which holds the lock since 2026-11-30 12:00:01 UTC"
)


class HeldLock(QuickFolderLock):
    """A lock that somebody holds, until it was asked for so many times."""

    times = 10**9
    holder = DEAD
    asked = 0

    def _try(self) -> LockRecord | None:
        self.asked += 1
        return self.holder if self.asked <= self.times else None

    def _release(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return a clock that stands still, but for pauses, which it lists."""
    now = SimpleNamespace(seconds=1000.0, pauses=[], ranges=[])

    def uniform(least: float, most: float) -> float:
        now.ranges.append((least, most))
        return 1.25

    def sleep(seconds: float) -> None:
        now.pauses.append(seconds)
        now.seconds += seconds

    monkeypatch.setattr(module.time, "monotonic", lambda: now.seconds)
    monkeypatch.setattr(module.time, "sleep", sleep)
    monkeypatch.setattr(module.random, "uniform", uniform)
    return now


class Stop(threading.Event):
    """An event that is waited for on the clock above."""

    def __init__(self, clock: SimpleNamespace, after: int = 10**9) -> None:
        super().__init__()
        self._clock, self._after = clock, after

    def wait(self, timeout: float | None = None) -> bool:
        """Let the clock go on."""
        module.time.sleep(timeout or 0)
        return len(self._clock.pauses) >= self._after


def held(folder: Path, **options: Any) -> HeldLock:
    """Return a lock of a small job that somebody holds."""
    return HeldLock(JobState(folder, small_job()), **options)


def test_waiting(tmp_path: Path, clock: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    """The log says for whom, once a minute; pauses are of random length."""
    lock = held(tmp_path)
    lock.poll_seconds, lock.times = 8.0, 14
    with caplog.at_level(logging.INFO):
        lock._wait(Stop(clock))
    assert clock.pauses == [10.0] * 14
    assert set(clock.ranges) == {(0.5, 1.5)}
    assert caplog.messages == [f"job 'small' waits for {NAMED}"] * 3  # after 0, 60 and 120 s
    assert lock.asked == 15


def test_waiting_ends_with_the_job(tmp_path: Path, clock: SimpleNamespace) -> None:
    """A job that is stopped waits no longer."""
    with pytest.raises(WorkStopped, match=r"^the job was stopped while it waited for its lock$"):
        held(tmp_path)._wait(Stop(clock, after=3))
    assert len(clock.pauses) == 3


def test_run_that_keeps_a_worker_busy(tmp_path: Path, clock: SimpleNamespace) -> None:
    """It waits for a minute, not longer, and not once there is a reason."""
    lock = held(tmp_path, why_not=lambda: None)
    lock.poll_seconds = 8.0
    with pytest.raises(RenderStopped) as stopped:
        lock._wait(Stop(clock))
    assert str(stopped.value) == (
        f"job 'small' waits for {NAMED}: it has held the lock for more than 70 s"
    )
    assert len(clock.pauses) == 7
    patient = held(tmp_path)
    patient.times, patient.poll_seconds = 100, 8.0
    patient._wait(Stop(clock))  # none that keeps no worker busy gives up
    with pytest.raises(RenderStopped, match=r"2026-11-30 12:00:01 UTC: it is over$"):
        held(tmp_path, why_not=lambda: "it is over")._wait(Stop(clock))


@pytest.mark.parametrize("freed_by_system", [False, True])
@pytest.mark.parametrize("ended", [False, True])
def test_work_of_a_dead_holder_is_ended(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    freed_by_system: bool,
    ended: bool,
) -> None:
    """Its run is ended, for certain if its process has; its mark goes, and that is logged."""
    calls: list[tuple[UUID, bool]] = []
    monkeypatch.setattr(
        module, "end_after_death", lambda run, certain: calls.append((run, certain))
    )
    monkeypatch.setattr(LockRecord, "has_ended", lambda _: ended)
    lock = held(tmp_path)
    lock._freed_by_system = freed_by_system
    DEAD.mark.touch()
    lock._take_over_from(DEAD)
    assert not DEAD.mark.exists()
    assert calls == [(RUN, freed_by_system or ended)]
    assert caplog.messages == [f"{NAMED} has died: its work is taken over"]
    lock._take_over_from(DEAD)  # without its mark
    lock._take_over_from(DEAD.model_copy(update={"run": None}))
    assert len(calls) == 2


def test_record_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the run's id and name, and the time in UTC."""
    monkeypatch.setattr(module, "flow_run", SimpleNamespace(id=RUN, name="render small"))
    record = lock_of("folder", tmp_path)._record
    assert (record.run, record.run_name) == (RUN, "render small")
    assert str(record).startswith("run 'render small' of job 'small' on ")
    assert record.since.utcoffset() == timedelta(0)
    lock_of("folder", tmp_path).__exit__()  # one that was never entered


def test_storage_has_a_lock_of_its_own(tmp_path: Path) -> None:
    """Its kind follows the storage."""
    state = JobState(tmp_path, small_job())
    state.block = object()  # type: ignore[assignment]
    assert isinstance(job_lock(state), StorageLock)


def test_any_lock_is_held_unless_it_can_be_lost(tmp_path: Path) -> None:
    """That of a folder cannot."""
    assert JobLock.is_held(held(tmp_path))


def test_clock_goes_on_while_the_machine_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has such a clock; else the usual one."""
    monkeypatch.setattr(module.time, "clock_gettime", lambda number: number)
    monkeypatch.setattr(module.time, "CLOCK_BOOTTIME", 7, raising=False)
    assert module._clock() == 7
    monkeypatch.delattr(module.time, "CLOCK_BOOTTIME")
    assert module._clock() == time.CLOCK_MONOTONIC


@pytest.mark.parametrize("error", [SetupError, StorageRefused])
def test_storage_that_refuses_conditions(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: type[Exception],
) -> None:
    """The log says why; no heartbeat is written, and nothing is released."""

    def refuse(*_: object) -> bool:
        raise error("no such")

    monkeypatch.setattr(FolderStore, "create", refuse)
    with lock_of("storage", tmp_path) as lock:
        assert lock._number == 0
        lock._heartbeat()
    assert lock._state.objects.names("lock") == []
    assert caplog.messages == [
        "other runs of this job at the same time are not noticed, and render it, too: no such"
    ]


@pytest.mark.parametrize("error", [StorageError, SetupError])
def test_old_records_that_cannot_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """They stay; the lock is held all the same, with its time in UTC."""

    def refuse(*_: object) -> None:
        raise error("away")

    monkeypatch.setattr(FolderStore, "delete", refuse)
    for number in (1, 2, 3):
        with lock_of("storage", tmp_path) as lock:
            assert lock._number == number
            assert record_of(tmp_path).since.utcoffset() == timedelta(0)


def test_heartbeats_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one; a lost lock has none, and none is released."""
    lock = lock_of("storage", tmp_path)
    monkeypatch.setattr(lock, "heartbeat_seconds", 100.0)
    with lock:
        before = record_of(tmp_path).heartbeat
        lock._heartbeat()
        assert record_of(tmp_path).heartbeat == before + 1
        lock._lost = True
        lock._heartbeat()
        assert record_of(tmp_path).heartbeat == before + 1
    assert not record_of(tmp_path).released


def test_release_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says when the lock ends instead."""

    def refuse(*_: object) -> None:
        raise StorageError("the storage is away")

    lock = lock_of("storage", tmp_path)
    monkeypatch.setattr(lock, "heartbeat_seconds", 100.0)
    with lock:
        monkeypatch.setattr(FolderStore, "write", refuse)
    assert caplog.messages == [
        "the job lock is not released, and ends 1 s after its last heartbeat: the storage is away"
    ]


def test_silence_is_counted_for_each_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new holder, and one that was heard again, has all the time that its predecessor had."""
    lock: StorageLock = lock_of("storage", tmp_path)
    monkeypatch.setattr(lock, "silent_seconds", 45.0)
    later = DEAD.model_copy(update={"heartbeat": 1})
    for seconds, number, record, dead in (
        (0.0, 1, DEAD, False), (44.0, 1, DEAD, False), (44.5, 2, DEAD, False),
        (89.0, 2, DEAD, False), (89.25, 2, later, False), (134.0, 2, later, False),
        (134.25, 2, later, True),
    ):  # fmt: skip
        monkeypatch.setattr(module, "_clock", lambda now=seconds: now)
        assert lock._is_dead(number, record) is dead


def test_number_that_another_run_was_faster_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was created meanwhile is that run's."""
    lock = lock_of("storage", tmp_path)
    lock._state.prepare()
    create = FolderStore.create

    def late(store: FolderStore, key: str, data: bytes) -> bool:
        monkeypatch.setattr(FolderStore, "create", create)
        other = DEAD.model_dump_json().encode()
        return create(store, key, other) and create(store, key, data)

    monkeypatch.setattr(FolderStore, "create", late)
    assert lock._try() == DEAD
