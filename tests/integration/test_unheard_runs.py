"""Runs of which the server's answer is lost, or whose job is over before they begin."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pytest
from farm_client import FarmClient
from jobs import save_job, small_job
from pool_samples import batches, job_of, rendered, two_runs
from prefect import flow
from prefect.client.schemas.objects import FlowRun
from processes_here import wait_for
from run_checks import assert_failed, is_final

from prefect_renderfarm.blocks import SetupError, WorkPoolAdapter
from prefect_renderfarm.blocks.runtime.prefect_api import start_run
from prefect_renderfarm.flows import render_job
from prefect_renderfarm.flows.rendering import pool_start as batch_starts
from prefect_renderfarm.flows.rendering.pool_start import BatchStarts


@pytest.mark.long
def test_lost_answers_start_no_second_run(
    api: FarmClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that the server has started, and whose answer was lost, is found and not repeated."""
    start, lost = WorkPoolAdapter.start, []

    def losing(*given: Any) -> FlowRun:
        run = start(*given)
        if len(lost) < 2:
            lost.append(run.id)
            raise httpx.ReadError("the answer is lost")
        return run

    monkeypatch.setattr(WorkPoolAdapter, "start", losing)
    job = job_of(4, tmp_path, id="lost-answers")
    report = render_job(job, adapter=two_runs(chunks_per_run=2), job_dir=tmp_path, merge=False)
    assert [chunk.attempts for chunk in report.chunks] == [1, 1, 1, 1]
    assert rendered(tmp_path) == Counter(range(4))
    assert {run.id for run in batches(api, "lost-answers")} == set(lost)


def test_run_that_nobody_heard_of_is_ended(
    api: FarmClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is stopped in the moment in which the server starts a run leaves none behind."""
    start = WorkPoolAdapter.start

    def stopped(*given: Any) -> FlowRun:
        monkeypatch.setattr(WorkPoolAdapter, "start", start)
        start(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(WorkPoolAdapter, "start", stopped)
    job = job_of(2, tmp_path, id="unheard-of")
    with pytest.raises(KeyboardInterrupt):
        render_job(job, adapter=two_runs(chunks_per_run=2), job_dir=tmp_path, merge=False)
    [run] = batches(api, "unheard-of")
    wait_for(lambda: is_final(api, run), 20)
    assert api.flow_run(run.id).state_name == "Cancelled"


def test_server_is_asked_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not answered is asked again by the same key, not for ever; a refusal ends it."""
    monkeypatch.setattr(batch_starts, "_SECONDS_BETWEEN_REPEATS", 0.0)
    keys: list[str] = []
    errors: list[Exception] = [httpx.ReadError("lost")] * 2

    def start(_: object, name: str, tags: list[str], key: str) -> FlowRun:
        keys.append(key)
        if errors:
            raise errors.pop()
        return FlowRun(flow_id=uuid4(), name=name, tags=tags)

    adapter: Any = SimpleNamespace(start=start)
    starts = BatchStarts(adapter, {}, "film", "job:film")
    chunks = small_job().chunks
    assert (starts.start(chunks), len(starts)) == ([], 1)
    assert list(starts.repeat()) == []
    assert [run.ids for run in starts.repeat()] == [[0, 1, 2]]
    assert (len(keys), len(set(keys)), len(starts)) == (3, 1, 0)
    errors += [SetupError("refused")]
    with pytest.raises(SetupError):
        starts.start(chunks)
    errors += [httpx.ReadError("lost")] * 2
    assert starts.start(chunks) == []
    monkeypatch.setattr(batch_starts, "_SILENT_SERVER_SECONDS", 0.0)
    with pytest.raises(httpx.ReadError):
        list(starts.repeat())
    assert (len(starts), starts.find()) == (0, [])


@pytest.mark.long
def test_run_whose_job_has_failed_begins_nothing(api: FarmClient, tmp_path: Path) -> None:
    """A batch that is late, and whose job is over, renders no chunk, and says why."""
    job = job_of(2, tmp_path, id="too-late")
    path = save_job(tmp_path, job)

    @flow(name="failing")
    def failing() -> None:
        parameters = {"job": str(path), "job_dir": str(tmp_path), "family": "f"}
        start_run("render-chunks/cloud", parameters, name="chunks too late", tags=["job:too-late"])
        raise RuntimeError("it has failed")

    with pytest.raises(RuntimeError, match="it has failed"):
        failing()
    [run] = batches(api, "too-late")
    wait_for(lambda: is_final(api, run), 60)
    assert_failed(api.flow_run(run.id), "no chunk is begun", "ended as Failed")
    assert rendered(tmp_path) == Counter()
