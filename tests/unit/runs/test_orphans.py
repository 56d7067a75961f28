"""Which runs end the current one, or tell it that no more chunks come."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelling, Completed, Crashed, Running

from prefect_renderfarm.flows.runs import orphans
from prefect_renderfarm.flows.runs.failure import RunCancelled

OWN, PARENT = uuid4(), uuid4()
TOO_DEAR = Cancelling(message="too dear")


@pytest.fixture
def run_with(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[State, State], None]]:
    """Return a function that makes a deployed run and its parent the current ones."""

    def make(own: State, parent: State) -> None:
        states = {OWN: ("own", own), PARENT: ("parent", parent)}

        def read_runs(ids: Iterable[UUID]) -> dict[UUID, FlowRun]:
            return {
                each: FlowRun(id=each, flow_id=uuid4(), name=states[each][0], state=states[each][1])
                for each in ids
            }

        this_run = SimpleNamespace(id=str(OWN), parent_flow_run_id=str(PARENT))
        monkeypatch.setattr(orphans, "this_run", this_run)
        monkeypatch.setattr(orphans, "deployment", SimpleNamespace(id="some deployment"))
        monkeypatch.setattr(orphans, "read_runs", read_runs)

    def terminate(number: int, frame: Any) -> None:
        raise TerminationSignal(signal=number)

    monkeypatch.setattr(orphans, "_ASK_SECONDS", 0.05)
    monkeypatch.setattr(orphans, "_WORKER_POLL_SECONDS", 0.05)
    before = signal.signal(signal.SIGTERM, terminate)  # as Prefect's engine has it
    yield make
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("own", "parent", "with_job", "crashed", "reason"),
    [
        (Running(), Running(), True, True, None),
        (Running(), Completed(), True, True, "flow run 'parent' ended as Completed"),
        (Running(), Completed(), False, True, None),
        (Running(), Crashed(), False, True, None),
        (Running(), TOO_DEAR, False, True, "flow run 'parent' was cancelled: too dear"),
        (Running(), Crashed(), True, True, "flow run 'parent' ended as Crashed"),
        (Running(), Crashed(), True, False, None),
        (TOO_DEAR, Running(), False, True, "flow run 'own' was cancelled: too dear"),
    ],
)
def test_why_no_more_chunks_come(
    own: State, parent: State, with_job: bool, crashed: bool, reason: str | None,
    run_with: Callable[[State, State], None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A cancel counts, of the run and of its parent; another end, only where that is its job."""
    run_with(own, parent)
    ask = orphans.why_no_more_chunks(with_job, crashed=crashed)
    assert ask() == reason
    assert ask() is None  # the server is asked once in 15 s
    monkeypatch.setattr(orphans, "deployment", SimpleNamespace(id=None))
    cancelled = parent.is_cancelling()
    assert orphans.why_no_more_chunks(with_job=False)() == (reason if cancelled else None)


@pytest.mark.parametrize(
    ("own", "parent", "with_job", "why"),
    [
        (TOO_DEAR, Running(), False, "'own' was cancelled: too dear"),
        (Running(), Completed(), True, "'parent' ended as Completed"),
    ],
)
def test_run_that_nobody_ends(
    own: State, parent: State, with_job: bool, why: str,
    run_with: Callable[[State, State], None],
) -> None:  # fmt: skip
    """In a container a run ends itself when it, or its render-job, is cancelled or has ended."""
    run_with(own, parent)
    with pytest.raises(RunCancelled, match=why), orphans.ending_in_order(with_job=with_job):
        time.sleep(20)


def test_run_whose_worker_is_gone(
    run_with: Callable[[State, State], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of a process worker ends on a signal when that is gone, if need be a second later."""
    run_with(Running(), Completed())
    monkeypatch.setenv(orphans._SUPERVISED, "false")
    with orphans.ending_in_order(with_job=True):
        time.sleep(0.3)
    parents, full = iter([1, 1]), iter([OSError("too many open files")])

    def dup2(*_: int) -> None:
        if error := next(full, None):
            raise error

    monkeypatch.setattr(orphans.os, "getppid", lambda: next(parents, 2))
    monkeypatch.setattr(orphans.os, "dup2", dup2)
    with pytest.raises(TerminationSignal), orphans.ending_in_order():
        time.sleep(20)


@pytest.mark.parametrize(
    ("own", "raised"), [(TOO_DEAR, RunCancelled), (Running(), ZeroDivisionError)]
)
def test_error_of_a_cancelled_run(
    own: State, raised: type[Exception], run_with: Callable[[State, State], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """An error of a run that is cancelled meanwhile is that of the cancel."""
    run_with(own, Running())
    monkeypatch.setattr(orphans, "_ASK_SECONDS", 60.0)
    with pytest.raises(raised), orphans.ending_in_order():
        raise ZeroDivisionError
