"""What is known of a flow run that renders a batch, and when its successor is started."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from jobs import small_job
from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed, Pending, Running
from shared_jobs import SAME, prepared, render

from prefect_renderfarm.blocks import WorkPoolAdapter
from prefect_renderfarm.flows.jobs.spec import Chunk
from prefect_renderfarm.flows.rendering.pool import BatchRun, ChunkRuns


def test_time_that_a_run_still_needs() -> None:
    """It is that of its frames, known while the run renders and is not given up."""
    number, flow = uuid4(), uuid4()
    chunks = list(small_job(total_frames=40, chunks=4).chunks)
    run = BatchRun(FlowRun(id=number, flow_id=flow, state=Pending()), chunks)
    assert run.seconds_left(0.5, 1) == math.inf
    assert run.start_seconds is None
    run.update(FlowRun(id=number, flow_id=flow, state=Running()), set())
    assert run.start_seconds is not None
    assert 19 < run.seconds_left(0.5, 1) <= 20
    assert 9 < run.seconds_left(0.5, 2) <= 10
    run.update(None, {chunk.id for chunk in chunks[:3]})
    assert 4 < run.seconds_left(0.5, 1) <= 5
    assert math.isinf(run.seconds_left(math.inf, 1))
    run.update(None, {chunk.id for chunk in chunks})
    assert run.seconds_left(0.5, 1) <= 0
    run.duplicated = True
    assert run.seconds_left(0.5, 1) == math.inf
    run.update(FlowRun(id=number, flow_id=flow, state=Completed()), set())
    assert run.seconds_left(0.5, 1) == math.inf


def running(chunks: Sequence[Chunk]) -> BatchRun:
    """Return a run that has begun to render."""
    return BatchRun(FlowRun(id=uuid4(), flow_id=uuid4(), state=Running()), list(chunks))


@pytest.fixture
def runs(tmp_path: Path) -> ChunkRuns:
    """Return two runs at once of a job of twelve chunks, of which the first and last are done."""
    state = prepared(tmp_path, small_job(total_frames=12, chunks=12))
    render(state, 0)
    first = state.manifest(state.job.chunks[0])
    known = {n: first.model_copy(update={"id": n, "seconds": 10.0}) for n in (0, 11)}
    adapter = WorkPoolAdapter(chunks_per_run=2)
    return ChunkRuns(state, adapter, SAME, done=known, chunks=state.job.chunks, width=2)


def started(runs: ChunkRuns, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Let runs be given out; return the chunks of those that are started."""
    found: list[list[int]] = []

    def start(chunks: Sequence[Chunk], **_: Any) -> None:
        found.append([chunk.id for chunk in chunks])
        waiting = FlowRun(id=uuid4(), flow_id=uuid4(), state=Pending())
        runs._runs.append(BatchRun(waiting, list(chunks)))

    monkeypatch.setattr(runs, "_start", start)
    runs._give_out()
    return found


def test_successor_is_started_before_a_run_ends(
    runs: ChunkRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is started once, when the run needs less time than runs need to start."""
    chunks = runs.chunks
    ending, other = running(chunks[1:2]), running(chunks[2:6])
    runs._runs = [ending, other]
    for start, expected in ((math.inf, []), (9.0, []), (11.0, [[1, 2]]), (11.0, [])):
        runs._start_seconds = start
        assert started(runs, monkeypatch) == expected
    assert (ending.replaced, other.replaced) == (True, False)


def test_successors_are_no_more_than_runs(runs: ChunkRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are never more than twice as many runs, whatever their ends take."""
    runs._start_seconds = 11.0
    late = running(runs.chunks[1:2])
    late.replaced = True
    runs._runs = [late, running(runs.chunks[2:3]), running(runs.chunks[3:4])]
    assert len(started(runs, monkeypatch)) == 1
