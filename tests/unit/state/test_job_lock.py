"""The job lock: one run at a time, and a dead holder blocks nobody."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest
from jobs import small_job
from lock_samples import (
    KINDS,
    QuickStorageLock,
    hold,
    lock_of,
    process,
    race,
    record_of,
    refused,
)
from processes_here import wait_for

from prefect_renderfarm.blocks import SetupError, StorageError, WorkStopped
from prefect_renderfarm.blocks.storage.objects import FolderStore
from prefect_renderfarm.flows.state import job_lock as job_lock_module
from prefect_renderfarm.flows.state.job_lock import (
    FolderLock,
    JobLock,
    LockRecord,
    job_lock,
    using_chunks,
)
from prefect_renderfarm.flows.state.job_state import JobState

BOTH = pytest.mark.parametrize("kind", KINDS)


@BOTH
def test_one_at_a_time(kind: str, tmp_path: Path) -> None:
    """Of three processes that take the lock again and again, no two hold it at once."""
    with (
        process(race, kind, tmp_path, 20) as (_, one),
        process(race, kind, tmp_path, 20) as (_, two),
        process(race, kind, tmp_path, 20) as (_, three),
    ):
        for pipe in (one, two, three):
            assert pipe.poll(60)
            assert pipe.recv() == 0


@BOTH
def test_second_waits_and_says_for_whom(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who waits names the holder, its machine and since when; then it has the lock."""
    with process(hold, kind, tmp_path) as (holder, pipe):
        assert pipe.recv() == "held"
        threading.Timer(0.5, pipe.send, ["release"]).start()
        with caplog.at_level(logging.INFO), lock_of(kind, tmp_path) as lock:
            assert lock.previous is None
    [line] = [message for message in caplog.messages if "waits for" in message]
    host = os.uname().nodename
    assert f"waits for process {holder.pid} of job 'small' on {host}, which holds" in line
    assert " since 20" in line


@BOTH
def test_killed_holder_is_followed_at_once(kind: str, tmp_path: Path) -> None:
    """On the same machine the lock of a killed process is free, and its successor knows of it."""
    with process(hold, kind, tmp_path) as (holder, pipe):
        assert pipe.recv() == "held"
        assert str(holder.pid) in refused(lock_of(kind, tmp_path))
        holder.kill()
        holder.join()
        began = time.monotonic()
        with lock_of(kind, tmp_path) as lock:
            assert time.monotonic() - began < 0.9
            assert lock.previous is not None
            assert lock.previous.pid == holder.pid


def test_silent_holder_is_followed_later(tmp_path: Path) -> None:
    """A holder elsewhere is given up once its heartbeat has stopped for long enough."""
    with process(hold, "storage", tmp_path, False) as (holder, pipe):
        assert pipe.recv() == "held"
        time.sleep(1.2)  # its heartbeat goes on
        assert f"process {holder.pid} of job" in refused(lock_of("storage", tmp_path))
        holder.kill()
        holder.join()
        began = time.monotonic()
        with lock_of("storage", tmp_path):
            assert time.monotonic() - began > 0.7


def test_halted_holder_notices_its_loss(tmp_path: Path) -> None:
    """A holder that was halted holds nothing any more when it goes on, and keeps nobody out."""
    with process(hold, "storage", tmp_path) as (holder, pipe):
        assert pipe.recv() == "held"
        os.kill(holder.pid, signal.SIGSTOP)
        try:
            with lock_of("storage", tmp_path) as mine:
                os.kill(holder.pid, signal.SIGCONT)
                pipe.send("ask")
                assert pipe.recv() is False
                time.sleep(0.5)
                assert mine.is_held()
        finally:
            os.kill(holder.pid, signal.SIGCONT)
        pipe.send("release")
        assert pipe.recv() == "released"
        assert record_of(tmp_path).released


def test_lost_lock_is_waited_for(tmp_path: Path) -> None:
    """Who has lost the lock begins nothing before it has it again; a stopped job does not wait."""
    stop = threading.Event()
    with lock_of("storage", tmp_path) as first:
        with lock_of_other(tmp_path):
            wait_for(lambda: not first.is_held())
            waiting = waiting_for(first, stop)
        waiting.join(10)
        assert not waiting.is_alive()
        assert first.is_held()
        with lock_of_other(tmp_path):
            wait_for(lambda: not first.is_held())
            stop.set()
            with pytest.raises(WorkStopped):
                first.ensure(stop)


def test_release_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat that is under way when the lock is released does not undo the release."""
    write = FolderStore.write

    def write_slowly(store: FolderStore, key: str, data: bytes) -> None:
        if b'"released":false' in data:
            time.sleep(0.3)
        write(store, key, data)

    with lock_of("storage", tmp_path):
        monkeypatch.setattr(FolderStore, "write", write_slowly)
        time.sleep(0.2)
    time.sleep(0.4)
    assert record_of(tmp_path).released


def waiting_for(lock: JobLock, stop: threading.Event) -> threading.Thread:
    """Return a thread that waits until the run holds its lock again."""
    waiting = threading.Thread(target=lock.ensure, args=(stop,), daemon=True)
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    return waiting


def lock_of_other(folder: Path) -> QuickStorageLock:
    """Return the lock of another run, which takes it from a holder that has given it up."""
    other: QuickStorageLock = lock_of("storage", folder)
    other._is_dead = lambda *_: True  # type: ignore[method-assign]
    return other


def test_numbers_are_not_used_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that read the list long ago gets no number that was used and deleted since."""
    late = lock_of("storage", tmp_path)
    seen = late._highest()
    for _ in range(4):
        with lock_of("storage", tmp_path):
            pass
    with lock_of("storage", tmp_path) as holder:
        assert late._state.objects.names("lock") == [
            f"lock/{holder._number - 1:08d}.json", f"lock/{holder._number:08d}.json"
        ]  # fmt: skip
        numbers = iter([seen])
        highest = QuickStorageLock._highest
        monkeypatch.setattr(late, "_highest", lambda: next(numbers, None) or highest(late))
        assert "waits for process" in refused(late)
        assert holder.is_held()


def test_heartbeat_that_fails_leaves_the_lock_in_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A holder whose storage is away begins nothing, until it has been heard again."""
    stop = threading.Event()
    with lock_of("storage", tmp_path) as lock:
        with monkeypatch.context() as patch:
            patch.setattr(FolderStore, "write", refuse_write)
            wait_for(lambda: not lock.is_held())
            waiting = waiting_for(lock, stop)
        waiting.join(10)
        assert not waiting.is_alive()
        assert lock.is_held()
        assert record_of(tmp_path).heartbeat > 1


def refuse_write(*_: object) -> None:
    """Fail as a storage that is away."""
    raise StorageError("away")


def test_storage_without_conditions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A storage without conditional requests has no lock: that is said, and nobody waits."""

    def refuse(*_: object) -> bool:
        raise SetupError("cannot create an object on condition")

    monkeypatch.setattr(FolderStore, "create", refuse)
    with lock_of("storage", tmp_path) as one, lock_of("storage", tmp_path) as two:
        one.ensure(threading.Event())
        assert two.is_held()
    assert sum("are not noticed, and render it, too" in line for line in caplog.messages) == 2


def test_folder_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same for a file system without locks."""

    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_of("folder", tmp_path), lock_of("folder", tmp_path):
        pass
    assert sum("cannot be locked (No locks available)" in line for line in caplog.messages) == 2


def test_jobs_with_the_same_files_exclude_each_other(tmp_path: Path) -> None:
    """A job that was edited waits for its older self; one with other files does not."""
    first = small_job()
    edited = first.model_copy(
        update={
            "chunks": (
                first.chunks[0].model_copy(update={"command": "true"}), *first.chunks[1:]
            )
        }
    )  # fmt: skip
    assert edited.key != first.key
    other = small_job(output_template="others/{id}.mp4")
    with FolderLock(JobState(tmp_path, first)):
        assert "job 'small' waits for process" in refused(FolderLock(JobState(tmp_path, edited)))
        assert refused(FolderLock(JobState(tmp_path, other))) == ""
    assert refused(FolderLock(JobState(tmp_path, edited))) == ""


def test_reason_to_wait_no_longer(tmp_path: Path) -> None:
    """A run whose parent has ended stops waiting, and says why."""
    with lock_of("folder", tmp_path):
        lock = lock_of("folder", tmp_path, why_not=lambda: "its render-job is over")
        assert refused(lock).endswith("its render-job is over")


def test_successor_waits_for_what_a_dead_holder_started(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In a shared folder, runs that a dead holder started have ended before others write."""
    state = JobState(tmp_path, small_job())
    with process(hold, "folder", tmp_path) as (holder, pipe):
        assert pipe.recv() == "held"
        holder.kill()
        holder.join()
    started, over = threading.Event(), threading.Event()

    def child() -> None:
        with using_chunks(state):
            started.set()
            over.wait(10)

    running = threading.Thread(target=child)
    running.start()
    assert started.wait(10)
    threading.Timer(0.6, over.set).start()
    began = time.monotonic()
    with caplog.at_level(logging.INFO), lock_of("folder", tmp_path):
        assert time.monotonic() - began > 0.5
    running.join()
    assert any("waiting for the end of the runs that process" in line for line in caplog.messages)


def test_kind_of_lock(tmp_path: Path) -> None:
    """A job without a storage is locked in its folder."""
    assert isinstance(job_lock(JobState(tmp_path, small_job())), FolderLock)
    lock = job_lock(JobState(tmp_path, small_job()), lambda: "it is over")
    with job_lock(JobState(tmp_path, small_job())):
        assert refused(lock).endswith("it is over")


def holder_of(folder: Path) -> LockRecord:
    """Return what a folder tells of its lock's holder."""
    return LockRecord.model_validate_json(
        (JobState(folder, small_job()).records / "holder.json").read_bytes()
    )


def test_folder_tells_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record says since when, and that the lock was released; if it cannot, no run fails."""
    began = datetime.now(UTC)
    with lock_of("folder", tmp_path):
        record = holder_of(tmp_path)
        assert began <= record.since <= datetime.now(UTC)
        assert not record.released
    assert holder_of(tmp_path).released

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with lock_of("folder", tmp_path):
        monkeypatch.setattr(FolderStore, "write", fail)


def test_folder_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says which job others may render, too, and why."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(37, "No locks")))
    with lock_of("folder", tmp_path) as lock:
        name = lock._state.name
    assert caplog.messages == [
        f"{name} cannot be locked (No locks): other runs of this job at the same time are not "
        "noticed"
    ]


def test_other_job_that_cannot_be_read(tmp_path: Path) -> None:
    """A job in the same folder whose spec is damaged, or gone, keeps nobody out."""
    other = small_job(output_template="others/{id}.mp4")
    with FolderLock(JobState(tmp_path, other)) as lock:
        spec = lock._state.job_file
        spec.write_text("{}")
        assert refused(lock_of("folder", tmp_path)) == ""
        spec.unlink()
        assert refused(lock_of("folder", tmp_path)) == ""


def test_holder_of_the_other_job_is_named(tmp_path: Path) -> None:
    """Who waits for a job with the same files is told that job's holder, whatever others hold."""
    first = small_job()
    chunk = first.chunks[0].model_copy(update={"command": "true"})
    edited = first.model_copy(update={"chunks": (chunk, *first.chunks[1:])})
    others = (small_job(output_template=f"others/{{id}}.{number}") for number in count())
    unlike = next(job for job in others if job.key < first.key)  # it is looked at before
    with ExitStack() as stack:
        stack.enter_context(FolderLock(JobState(tmp_path, unlike)))
        state = stack.enter_context(FolderLock(JobState(tmp_path, first)))._state
        note_holder(state, machine="farm-7")
        waiting = FolderLock(JobState(tmp_path, edited))
        assert waiting._record.machine != "farm-7"
        assert "waits for process 1 of job 'small' on farm-7, which" in refused(waiting)


def note_holder(state: JobState, **changes: object) -> LockRecord:
    """Let a job's folder tell of another holder; return the record."""
    record = LockRecord(job="small", since=datetime.now(UTC), machine="", pid=1)
    record = record.model_copy(update=changes)
    state.local.write("holder.json", record.model_dump_json().encode())
    return record


def test_holder_that_has_not_written_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new holder's record is waited for, for a moment."""
    lock = lock_of("folder", tmp_path)
    state: JobState = lock._state
    key = state.job.key
    state.local.write("job.json", state.job.to_json().encode())
    paused: list[float] = []
    monkeypatch.setattr(job_lock_module.time, "sleep", paused.append)
    assert lock._holder(key) == lock._record
    assert paused == [0.02] * 10
    released = note_holder(state, released=True)
    assert lock._holder(key) == released
    assert len(paused) == 20
    monkeypatch.setattr(
        job_lock_module.time, "sleep", lambda _: note_holder(state, machine="farm-7")
    )
    assert lock._holder(key).machine == "farm-7"
    holder = note_holder(state, machine="farm-8")
    monkeypatch.setattr(job_lock_module.time, "sleep", paused.append)
    assert lock._holder(key) == holder
    assert len(paused) == 20


def test_loss_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A holder that was silent for too long says that another run has the lock."""
    with lock_of("storage", tmp_path) as lock:
        with lock_of_other(tmp_path):
            wait_for(lambda: not lock.is_held())
        [line] = [message for message in caplog.messages if message.startswith("another run has")]
        assert line == (
            "another run has taken the lock of job 'small', because this one was silent for more "
            "than 1 s"
        )
        assert record_of(tmp_path).heartbeat >= 0


def test_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock whose heartbeats fail is in doubt after four fifths of its time, not before."""
    with lock_of("storage", tmp_path) as lock:
        monkeypatch.setattr(lock, "_written_at", 100.0)
        monkeypatch.setattr(lock, "silent_seconds", 2.0)
        for seconds, held in ((0.0, True), (1.5, True), (1.7, False), (9.0, False)):
            monkeypatch.setattr(job_lock_module, "_clock", lambda now=100.0 + seconds: now)
            assert lock.is_held() is held
        stop = threading.Event()
        stop.set()
        began = time.monotonic()
        with pytest.raises(WorkStopped, match=r"^the job was stopped while its storage did not"):
            lock.ensure(stop)
        assert time.monotonic() - began < 0.4
        answers = iter([False, False, False, False, True])
        monkeypatch.setattr(lock, "is_held", lambda: next(answers))
        pauses: list[float] = []
        monkeypatch.setattr(stop, "wait", pauses.append)
        lock.ensure(stop)  # asked before and after each pause, until it is held
        assert pauses == [0.5, 0.5]
        monkeypatch.undo()
        lock.ensure(stop)  # it is held: nobody waits
