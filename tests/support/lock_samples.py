"""What the tests of the job lock share: processes that hold it."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from jobs import small_job

from prefect_renderfarm.blocks.errors import RenderStopped
from prefect_renderfarm.flows.state.job_lock import FolderLock, JobLock, LockRecord, StorageLock
from prefect_renderfarm.flows.state.job_state import JobState

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["prefect_renderfarm.flows.state.job_lock", "prefect_aws.s3"])


class QuickStorageLock(StorageLock):
    """The lock of a storage, whose holders are given up after a second, in any store."""

    poll_seconds = 0.05
    heartbeat_seconds = 0.1
    silent_seconds = 1.0


class QuickFolderLock(FolderLock):
    """The lock of a folder, which is looked at more often."""

    poll_seconds = 0.05


KINDS: dict[str, type[JobLock]] = {"folder": QuickFolderLock, "storage": QuickStorageLock}


def lock_of(kind: str, folder: Path, **options: Any) -> Any:
    """Return a lock of the sample job, in a folder; a storage's protocol works in any store."""
    return KINDS[kind](JobState(folder, small_job()), **options)


@contextmanager
def process(program: Callable[..., None], *arguments: Any) -> Iterator[tuple[Any, Connection]]:
    """Run a function in a process of its own, which is killed in the end; give it and its pipe."""
    here, there = PROCESSES.Pipe()
    running = PROCESSES.Process(target=program, args=(there, *arguments), daemon=True)
    running.start()
    try:
        yield running, here
    finally:
        running.kill()
        running.join()


def hold(pipe: Connection, kind: str, folder: Path, known: bool = True) -> None:
    """Hold the lock, and answer whether it is still held, until told to release it.

    Args:
        pipe: Where to answer.
        kind: Which lock.
        folder: Where.
        known: Whether other processes can tell whether this one has ended.
    """
    if not known:  # as on another machine
        tempfile.tempdir = str(folder / "elsewhere")
    with lock_of(kind, folder) as lock:
        pipe.send("held")
        while pipe.recv() != "release":
            pipe.send(lock.is_held())
    pipe.send("released")


def race(pipe: Connection, kind: str, folder: Path, times: int) -> None:
    """Take the lock again and again; send whether somebody else was inside at the same time."""
    inside = folder / "inside"
    met = 0
    for _ in range(times):
        with lock_of(kind, folder):
            try:
                inside.touch(exist_ok=False)
            except FileExistsError:
                met += 1
                continue
            time.sleep(0.005)
            inside.unlink()
    pipe.send(met)


def refused(lock: JobLock) -> str:
    """Try to take a lock without waiting; return who holds it."""
    lock._timeout = 0
    lock.poll_seconds = 0.01
    try:
        with lock:
            return ""
    except RenderStopped as stopped:
        return str(stopped)


def record_of(folder: Path) -> LockRecord:
    """Return the newest record of a storage's lock in a folder."""
    state = JobState(folder, small_job())
    newest = max(state.objects.names("lock"))
    return LockRecord.model_validate_json(state.objects.read(newest) or b"")
