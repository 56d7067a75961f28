"""What the tests of leases share: processes that hold chunks, and folders that are slow or fail."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from jobs import small_job
from prefect import flow
from prefect.blocks.abstract import ObjectStorageBlock
from prefect.runtime import flow_run

from prefect_renderfarm.blocks import StorageError
from prefect_renderfarm.flows.state import holders as lease_holders
from prefect_renderfarm.flows.state.job_folder import JobFolder
from prefect_renderfarm.flows.state.lease import Lease

JOB = small_job(total_frames=40, chunks=40)
IDS = {chunk.id for chunk in JOB.chunks}
QUICK = {"beat_seconds": 0.2, "silent_seconds": 2.0}
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["prefect_renderfarm.flows.state.lease", "prefect_aws.s3"])


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


def until(condition: Callable[[], Any], seconds: float) -> float:
    """Wait for a condition, and return how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.05)
    return time.monotonic() - began


def race(pipe: Connection, folder: JobFolder, seed: int, rounds: int) -> None:
    """Take all chunks, a few at a time and in an order of chance; tell which ones it got."""
    chance = random.Random(seed)  # noqa: S311
    for _ in range(rounds):
        order = chance.sample(sorted(IDS), len(IDS))
        pipe.recv()
        with Lease(folder) as mine:
            for first in range(0, len(order), 4):
                mine.take(order[first : first + 4])
            pipe.send(mine.mine)
            pipe.recv()
        pipe.send("released")


def hold(
    pipe: Connection, folder: JobFolder, options: dict[str, Any], placeless: bool = False
) -> None:
    """Hold chunks 0 to 9 or others, and answer what is still held."""
    if placeless:  # as on a system without /proc
        lease_holders.here = lambda: None  # type: ignore[assignment]
    with Lease(folder, **{"chunk_ids": range(10)} | options) as mine:
        pipe.send(mine.mine)
        while True:
            pipe.recv()
            pipe.send(mine.mine)


def hold_in_a_flow(pipe: Connection, folder: JobFolder) -> None:
    """Hold chunks 0 to 9 as the run of a flow, until the process ends."""

    @flow
    def holding() -> None:
        with Lease(folder, range(10)) as mine:
            pipe.send((flow_run.id, flow_run.name, mine.mine))
            pipe.recv()

    holding()


class Turns:
    """Lets threads do one thing at a time, in an order of chance."""

    def __init__(self, seed: int, threads: int) -> None:
        self._chance = random.Random(seed)  # noqa: S311
        self._left = threads
        self._waiting: list[str] = []
        self._next = ""
        self._changed = threading.Condition()

    def wait(self, name: str) -> None:
        """Wait until it is this thread's turn."""
        with self._changed:
            self._waiting.append(name)
            self._choose()
            assert self._changed.wait_for(lambda: self._next == name, 20)
            self._waiting.remove(name)
            self._next = ""

    def leave(self) -> None:
        """Take no more turns."""
        with self._changed:
            self._left -= 1
            self._choose()

    def _choose(self) -> None:
        if self._left and len(self._waiting) == self._left:
            self._next = self._chance.choice(sorted(self._waiting))
            self._changed.notify_all()


class StepFolder(JobFolder):
    """A job folder of which every record is written, listed and read in a turn of its own."""

    poll_seconds = 0.0

    def __init__(self, path: Path, name: str, turns: Turns) -> None:
        super().__init__(path, JOB)
        self._name, self._turns, self._one = name, turns, threading.Lock()

    def _step(self, call: Callable[..., Any], *arguments: str) -> Any:
        with self._one:
            self._turns.wait(self._name)
            return call(*arguments)

    def write_record(self, name: str, text: str) -> None:
        self._step(super().write_record, name, text)

    def read_record(self, name: str) -> str | None:
        found: str | None = self._step(super().read_record, name)
        return found

    def list_records(self, folder: str) -> list[str]:
        names: list[str] = self._step(super().list_records, folder)
        return names


class SlowFolder(JobFolder):
    """A job folder where one of the writes of a record waits until it is let through."""

    def __init__(self, path: Path, slow: int) -> None:
        super().__init__(path, JOB)
        self._to_go = slow
        self.reached, self.go = threading.Event(), threading.Event()

    def write_record(self, name: str, text: str) -> None:
        self._to_go -= 1
        if self._to_go == 0:
            self.reached.set()
            assert self.go.wait(20)
        super().write_record(name, text)


class FailingFolder(JobFolder):
    """A job folder whose records cannot be written for a while."""

    failing = False

    def write_record(self, name: str, text: str) -> None:
        if self.failing:
            raise StorageError("storage 'x' cannot write: it is away")
        super().write_record(name, text)


class WriteOnly(ObjectStorageBlock):
    """A storage block of a kind that keeps objects, and neither lists nor deletes them."""

    folder: Path

    def upload_from_file_object(self, from_file_object: Any, to_path: str, **_: Any) -> str:
        raise AssertionError("a lease that nobody can find is not written")

    download_object_to_path = download_folder_to_path = upload_from_file_object
    download_object_to_file_object = upload_from_path = upload_from_file_object
    upload_from_folder = upload_from_file_object
