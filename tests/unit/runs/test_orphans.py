"""Which runs tell the current one that no more chunks come, or that nobody wants them."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelling, Completed, Crashed, Running

from prefect_renderfarm.flows.runs import orphans

OWN, PARENT = uuid4(), uuid4()


@pytest.mark.parametrize(
    ("own", "parent", "with_job", "crashed", "reason"),
    [
        (Running(), Running(), True, True, None),
        (Running(), Completed(), True, True, "flow run 'parent' ended as Completed"),
        (Running(), Completed(), False, True, None),
        (Running(), Crashed(), True, True, "flow run 'parent' ended as Crashed"),
        (Running(), Crashed(), True, False, None),
        (Cancelling(message="too dear"), Running(), False, True, "'own' was cancelled: too dear"),
    ],
)
def test_why_no_more_chunks_come(
    own: State, parent: State, with_job: bool, crashed: bool, reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A run's own end counts, and its parent's only where that is its render-job."""
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
    ask = orphans.why_no_more_chunks(with_job, crashed=crashed)
    answer = ask()
    assert answer == reason or (reason and answer and answer.endswith(reason))
    assert ask() is None  # the server is asked once in 15 s
    monkeypatch.setattr(orphans, "deployment", SimpleNamespace(id=None))
    assert orphans.why_no_more_chunks(with_job=False)() is None
