"""The run that assembles, as its render-job sees it: on a real server, without a worker for it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from farm_client import FarmClient
from jobs import small_job
from pool_samples import make_pool
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled, Completed, Failed, Pending
from processes_here import wait_for

from prefect_renderfarm.blocks import AssemblyError
from prefect_renderfarm.flows.merging import merge_run
from prefect_renderfarm.flows.state.job_state import JobState


@pytest.fixture(scope="module")
def nobody(api: FarmClient) -> str:
    """Return a deployment on a pool that has no worker."""
    make_pool(api.farm, "process", "nobody")
    return "render-chunks/nobody"


@pytest.fixture
def run(nobody: str, tmp_path: Path) -> merge_run.MergeRun:
    """Return a merge run that no worker takes."""
    return merge_run.MergeRun(nobody, {"job": "x"}, JobState(tmp_path, small_job()))


def fail(api: FarmClient, run_id: UUID, message: str) -> None:
    """Let a run fail."""
    with SyncPrefectClient(api.farm.api_url) as client:
        client.set_flow_run_state(run_id, Failed(message=message), force=True)


def losing(monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> list[UUID]:
    """Lose answers of the server to who starts merge runs; return the ids of these runs."""
    start, lost = merge_run.start_run, []
    left = list(errors)

    def start_run(*given: Any, **options: Any) -> FlowRun:
        started = start(*given, **options)
        if left:
            lost.append(started.id)
            raise left.pop(0)
        return started

    monkeypatch.setattr(merge_run, "start_run", start_run)
    return lost


def unheard(run: merge_run.MergeRun, monkeypatch: pytest.MonkeyPatch, *more: Exception) -> UUID:
    """Have a run started of which nothing is heard; return its id."""
    lost = losing(monkeypatch, httpx.ReadError("the answer is lost"), *more)
    with pytest.raises(httpx.ReadError):
        run.start()
    return lost[0]


def bad_gateway() -> PrefectHTTPStatusError:
    """Return the error of a server whose gateway gave up."""
    request = httpx.Request("POST", "http://127.0.0.1/api")
    return PrefectHTTPStatusError(
        "504", request=request, response=httpx.Response(504, request=request)
    )


@pytest.mark.long
def test_merge_run_that_never_begins(
    api: FarmClient, run: merge_run.MergeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge run whose worker was killed just after it took it is lost, and another is started."""
    monkeypatch.setattr(merge_run, "_STARTING_SECONDS", 1.0)

    def take() -> UUID:
        """Take the run as a worker does that is killed then; return its id."""
        run.start()
        assert run._run is not None
        with SyncPrefectClient(api.farm.api_url) as client:
            client.set_flow_run_state(run._run.id, Pending())
        return run._run.id

    for _ in range(merge_run._MOST_LOST - 1):
        taken = take()
        assert run.alive()
        wait_for(lambda: not run.alive(), 20)
        assert api.flow_run(taken).state_name == "Crashed"
    take()
    with pytest.raises(AssemblyError, match="ended as Crashed: its worker took it"):
        run.finish()


def test_merge_run_that_finds_no_chunks(api: FarmClient, run: merge_run.MergeRun) -> None:
    """A merge run that gives its place back when all chunks are done is not started for ever."""

    def give_back() -> UUID:
        assert run._run is not None
        with SyncPrefectClient(api.farm.api_url) as client:
            why = Cancelled(name=merge_run.RELEASED, message="chunk 2 did not come")
            client.set_flow_run_state(run._run.id, why, force=True)
        return run._run.id

    run.start()
    given_back = give_back()
    with ThreadPoolExecutor(1) as pool:
        finishing = pool.submit(run.finish)
        wait_for(lambda: run._run is not None and run._run.id != given_back, 30)
        give_back()
        with pytest.raises(AssemblyError, match="ended as Released: chunk 2 did not come"):
            finishing.result(30)


def test_merge_run_whose_answer_is_lost(
    api: FarmClient, run: merge_run.MergeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge run of whose start nothing was heard is found, and waited for."""
    started = unheard(run, monkeypatch, bad_gateway())
    with ThreadPoolExecutor(1) as pool:
        finishing = pool.submit(run.finish)
        wait_for(lambda: run._run is not None, 30)
        fail(api, started, "so it is this one")
        with pytest.raises(AssemblyError, match="so it is this one"):
            finishing.result(30)


def test_merge_run_that_nobody_heard_of_is_cancelled(
    api: FarmClient, run: merge_run.MergeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is stopped while the server starts its merge run leaves no run behind."""
    started = unheard(run, monkeypatch)
    run.cancel("its job was stopped")
    assert api.flow_run(started).state_name == "Cancelled"


def test_merge_run_that_is_done_before_it_was_heard_of(
    api: FarmClient, run: merge_run.MergeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge run of whose start nothing was heard, and that is done, is not started once more."""
    started = unheard(run, monkeypatch)
    with SyncPrefectClient(api.farm.api_url) as client:
        client.set_flow_run_state(started, Completed(), force=True)
    run.start()
    assert run._run is not None
    assert run._run.id == started


def test_refused_merge_run_hides_no_error(
    run: merge_run.MergeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that fails after its merge run could not be started fails for its own reason."""
    with monkeypatch.context() as patch:
        patch.setattr(run, "_deployment", "render-chunks/none")
        with pytest.raises(ObjectNotFound):
            run.start()
    run.cancel("its job has failed")
    assert run._run is None
    unheard(run, monkeypatch, httpx.ReadError("lost again"))
    run.cancel("its job has failed")


def test_merge_run_that_failed_ahead_is_started_again(
    api: FarmClient, run: merge_run.MergeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a merge run met while it waited for chunks may be over: once, another is started."""
    run.start()
    assert run._run is not None
    first = run._run.id
    fail(api, first, "the storage was away")
    assert run.alive()
    losing(monkeypatch, bad_gateway())
    with ThreadPoolExecutor(1) as pool:
        finishing = pool.submit(run.finish)
        wait_for(lambda: run._run is not None and run._run.id != first, 30)
        fail(api, run._run.id, "it still is")
        with pytest.raises(AssemblyError, match="ended as Failed: it still is"):
            finishing.result(30)
