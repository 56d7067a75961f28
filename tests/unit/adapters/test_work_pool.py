"""What the work pool adapter knows without a server."""

from __future__ import annotations

import pytest

from prefect_renderfarm.blocks import SetupError, WorkerJob, WorkPoolAdapter
from prefect_renderfarm.blocks.adapters import work_pool


@pytest.mark.parametrize(
    ("lost_after", "longest", "starting", "seconds"),
    [
        (None, None, False, None),
        (None, 1.0, False, 600.0),
        (None, 100.0, False, 1000.0),
        (30.0, 100.0, False, 30.0),
        (None, 1.0, True, 600.0),
        (30.0, None, True, 600.0),
        (900.0, None, True, 900.0),
    ],
)
def test_when_a_run_is_lost(
    lost_after: float | None, longest: float | None, starting: bool, seconds: float | None
) -> None:
    """A run has time for many of the longest chunk, or what the block says; its start has more."""
    adapter = WorkPoolAdapter(lost_after=lost_after)
    assert adapter.lost_seconds(longest, starting=starting) == seconds


def test_form_tells_when_a_run_is_lost() -> None:
    """The field's description repeats the two constants."""
    described = WorkPoolAdapter.model_json_schema()["properties"]["lost_after"]["description"]
    assert f"Empty: {work_pool._LOST_FACTOR:g} times as long" in described
    assert described.count(f" {work_pool._MIN_LOST_SECONDS:g} s") == 2


def test_single_commands_are_refused() -> None:
    """A command is refused with the fix; so many chunks are rendered at once as all runs do."""
    with pytest.raises(SetupError, match=r"merge: a work pool adapter runs chunks .*merge_adapter"):
        WorkPoolAdapter().execute(WorkerJob(command="x", name="merge"))
    assert WorkPoolAdapter(max_runs=3, chunks_at_once=4).default_concurrency() == 12
