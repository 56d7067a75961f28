"""Limits of requests, and the wait for a worker that is busy."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
from processes_here import wait_for

from prefect_renderfarm.blocks import WorkerJob, WorkerLost, WorkerResult, WorkStopped
from prefect_renderfarm.blocks.adapters import remote
from prefect_renderfarm.blocks.adapters.remote import RateLimit, RemoteAdapter
from prefect_renderfarm.blocks.errors import WorkerBusy


def test_so_many_at_once() -> None:
    """Never are more requests under way than allowed, and all get their turn."""
    limit, lock = RateLimit(3), threading.Lock()
    under_way: set[int] = set()
    most = 0

    def request(number: int) -> None:
        nonlocal most
        with limit.slot(threading.Event()):
            with lock:
                under_way.add(number)
                most = max(most, len(under_way))
            time.sleep(0.01)
            with lock:
                under_way.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(request, range(24)))
    assert most == 3


def test_so_many_a_second() -> None:
    """Each request begins a gap after the one before, from however many threads.

    A thread may wake late, but none begins before its time: the n-th one n gaps after the first.
    """
    limit, gap = RateLimit(8, per_second=20), 1 / 20
    started = time.monotonic()

    def request(_: int) -> float:
        with limit.slot(threading.Event()):
            return time.monotonic() - started

    with ThreadPoolExecutor(4) as pool:
        begun = sorted(pool.map(request, range(11)))
    for number, moment in enumerate(begun):
        assert moment >= number * gap - 0.001
    assert begun[-1] < 10 * gap + 1  # and no later than it has to


def test_pause_gives_no_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a pause requests are spaced as before: what was not used is not made up for."""
    now = 100.0
    waits: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: now)

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(round(timeout or 0.0, 6))
            return False

    limit = RateLimit(8, per_second=4)
    for pause in (0, 0, 0, 10, 0):
        now += pause
        with limit.slot(Stop()):
            pass
    assert waits == [0.0, 0.25, 0.5, 0.0, 0.25]


@pytest.mark.parametrize("limit", [RateLimit(1), RateLimit(2, per_second=0.001)])
def test_stop_ends_the_wait(limit: RateLimit) -> None:
    """Who waits for a turn is told when the job is stopped, and the slot is free again."""
    stop = threading.Event()
    with limit.slot(threading.Event()):
        threading.Timer(0.2, stop.set).start()
        started = time.monotonic()
        with pytest.raises(WorkStopped), limit.slot(stop):
            raise AssertionError("it got a slot")
        assert time.monotonic() - started < 2
    assert limit._slots._value == limit._slots._initial_value  # type: ignore[attr-defined]


def test_error_frees_the_slot() -> None:
    """A request that fails holds no slot."""
    limit = RateLimit(1)
    for _ in range(2):
        with pytest.raises(ValueError, match="x"), limit.slot(threading.Event()):
            raise ValueError("x")


class Busy(RemoteAdapter):
    """Workers that are busy so many times, and then answer."""

    answers: ClassVar[Iterator[WorkerResult | Exception]]
    asked: ClassVar[list[Any]] = []

    def ask(
        self, payload: dict[str, Any], name: str, timeout: float, stop: threading.Event
    ) -> WorkerResult:
        """Give the next answer."""
        self.asked.append((payload, name, timeout))
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let all waiting be over at once, and return how long it would have been."""
    waited: list[float] = []
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(remote.random, "uniform", lambda low, high: low)  # type: ignore[attr-defined]

    def wait(self: threading.Event, timeout: float | None = None) -> bool:
        if timeout:
            waited.append(timeout)
            now[0] += timeout
        return self.is_set()

    monkeypatch.setattr(threading.Event, "wait", wait)
    Busy.asked = []
    return waited


def test_busy_workers_are_asked_again(waits: list[float]) -> None:
    """After what the worker says, else after pauses that double up to a limit."""
    told = [WorkerBusy("busy", after) for after in (None, 7.0, 0.0, *[None] * 6)]
    Busy.answers = iter([*told, WorkerResult(exit_code=0)])
    assert Busy().execute(WorkerJob(command="x", name="n", timeout=5.0)).exit_code == 0
    assert waits == [1.0, 7.0, 0.1, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0]
    assert {(name, timeout) for _, name, timeout in Busy.asked} == {("n", 5.0)}


def test_busy_workers_are_given_up(waits: list[float]) -> None:
    """When the next request would be after `busy_wait`; the error says so."""
    Busy.answers = itertools.repeat(WorkerBusy("chunk 3: busy"))
    with pytest.raises(WorkerLost, match="chunk 3: busy, for longer than the 7 s") as caught:
        Busy(busy_wait=7.0).execute(WorkerJob(command="x"))
    assert type(caught.value) is WorkerLost
    assert waits == [1.0, 2.0, 4.0]
    assert Busy.asked[0][2] == 900.0  # the adapter's own limit


def test_other_errors_are_not_repeated(waits: list[float]) -> None:
    """Only who has not begun is asked again."""
    Busy.answers = iter([WorkerLost("lost")])
    with pytest.raises(WorkerLost, match="lost"):
        Busy().execute(WorkerJob(command="x"))
    assert waits == []


def test_stop_ends_the_wait_for_a_busy_worker() -> None:
    """A job that is stopped does not wait for a busy worker."""
    Busy.asked, Busy.answers = [], itertools.repeat(WorkerBusy("busy", 60.0))
    job = WorkerJob(command="x", name="chunk 3")
    threading.Thread(target=lambda: (wait_for(lambda: bool(Busy.asked)), job.stop.set())).start()
    started = time.monotonic()
    with pytest.raises(WorkStopped, match="chunk 3: not requested again"):
        Busy().execute(job)
    assert time.monotonic() - started < 10
    assert len(Busy.asked) == 1
