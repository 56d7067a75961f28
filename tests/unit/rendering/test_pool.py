"""What is known of a flow run that renders a batch."""

from __future__ import annotations

import math
from uuid import uuid4

from jobs import small_job
from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed, Pending, Running

from prefect_renderfarm.flows.rendering.pool import BatchRun


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
