"""Which other runs of a job live: the dead hold nothing, and the living are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from farm_client import FarmClient
from lease_samples import (
    IDS,
    JOB,
    QUICK,
    hold,
    hold_in_a_flow,
    process,
    until,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled

from prefect_renderfarm.flows.state import holders as lease_holders
from prefect_renderfarm.flows.state.job_folder import JobFolder
from prefect_renderfarm.flows.state.lease import Lease


@pytest.mark.long
def test_killed_holder_elsewhere_is_void_when_it_is_silent(tmp_path: Path) -> None:
    """Without a place it is the beat that tells: for as long as it beats, it holds its chunks."""
    folder = JobFolder(tmp_path, JOB)
    with process(hold, folder, QUICK, True) as (holder, pipe), Lease(folder, **QUICK) as mine:
        pipe.recv()
        watched = time.monotonic()
        while time.monotonic() - watched < 1.5 * QUICK["silent_seconds"]:
            assert mine.others(IDS) == set(range(10))
            time.sleep(0.1)
        holder.kill()
        holder.join()
        assert mine.take({0, 10}) == {10}
        assert until(lambda: not mine.others(IDS), 60) > 0.5 * QUICK["silent_seconds"]
        assert mine.take(IDS) == IDS


@pytest.mark.long
def test_who_uses_chunks_hears_who_dies(tmp_path: Path) -> None:
    """After an assembly a run knows at the first look who died meanwhile."""
    folder = JobFolder(tmp_path, JOB)
    with process(hold, folder, QUICK, True) as (holder, pipe), Lease(folder, **QUICK) as mine:
        pipe.recv()
        assert mine.use({20}) == {20}
        assert len(mine.company()) == 1
        holder.kill()
        holder.join()
        time.sleep(4 * QUICK["silent_seconds"])
        assert mine.company() == []


def test_who_did_not_look_has_heard_no_silence(tmp_path: Path) -> None:
    """A run that itself stood still between two looks takes nobody for dead because of that."""
    folder = JobFolder(tmp_path, JOB)
    record = lease_holders.LeaseRecord(holder="a", since=0, held={0})
    folder.write_record("leases/other.a.json", record.model_dump_json())
    with Lease(folder, silent_seconds=0.6) as mine:
        assert mine.others(IDS) == {0}
        time.sleep(1)
        assert mine.others(IDS) == {0}
        until(lambda: not mine.others(IDS), 60)
    assert folder.list_records("leases") == []


@pytest.mark.long
def test_final_flow_run_that_is_silent_holds_nothing(
    api: FarmClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that the server calls final holds its chunks as long as it gives signs of life."""
    folder = JobFolder(tmp_path, JOB)
    with process(hold_in_a_flow, folder) as (holder, pipe), Lease(folder) as mine:
        run, name, ids = pipe.recv()
        assert mine.others(IDS) == ids == set(range(10))
        assert f"run {name!r} ({run}) on machine" in mine.waiting_for(IDS)
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run, Cancelled(), force=True)
        time.sleep(lease_holders._ASK_SECONDS + 3)
        assert mine.others(IDS) == ids
        os.kill(holder.pid, signal.SIGSTOP)
        try:
            monkeypatch.setattr(lease_holders, "_FINAL_SECONDS", 2.0)
            until(lambda: not mine.others(IDS), 60)
        finally:
            os.kill(holder.pid, signal.SIGCONT)


def test_unknown_run_and_silent_server_void_nothing(tmp_path: Path) -> None:
    """A run that the server does not know, or is not asked of, lives while it beats."""
    folder = JobFolder(tmp_path, JOB)
    record = lease_holders.LeaseRecord(holder="a", since=0, held={0}, run=uuid4())
    folder.write_record("leases/other.a.json", record.model_dump_json())
    folder.write_record("leases/other.b.json", "no record")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), Lease(folder) as mine:
        assert mine.take({0, 1}) == {1}


def test_silent_server_delays_no_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the server lets a run wait for an answer, the run goes on to say that it lives."""
    asked, answer, answered = threading.Event(), threading.Event(), threading.Event()

    def read_runs(_: object) -> dict[UUID, FlowRun]:
        asked.set()
        answer.wait(60)
        answered.set()
        return {}

    monkeypatch.setattr(lease_holders, "read_runs", read_runs)
    folder = JobFolder(tmp_path, JOB)
    other = lease_holders.LeaseRecord(holder="a", since=0, held={0}, run=uuid4())
    folder.write_record("leases/other.a.json", other.model_dump_json())
    with Lease(folder, **QUICK) as mine:
        assert mine.use({1}) == {1}
        assert asked.wait(10)
        [name] = set(folder.list_records("leases")) - {"leases/other.a.json"}

        def beat() -> int:
            return lease_holders.LeaseRecord.model_validate_json(
                folder.read_record(name) or ""
            ).beat

        first = beat()
        until(lambda: beat() > first + 3, 30)
        assert not answered.is_set()
        answer.set()


def test_place_tells_of_a_process_that_has_ended() -> None:
    """Gone are a process that is no more, one that nobody waits for, and one whose id is another's.

    Of a process of another boot, machine or pid namespace nothing is known.
    """
    own = lease_holders.here()
    assert own is not None
    assert not own.is_gone(own)
    with subprocess.Popen(["sleep", "60"]) as child:
        started = lease_holders._stat(child.pid)[1]
        place = own.model_copy(update={"pid": child.pid, "started": started})
        assert not place.is_gone(own)
        assert place.model_copy(update={"started": started - 1}).is_gone(own)
        child.kill()
        until(lambda: lease_holders._stat(child.pid)[0] == "Z", 60)
        assert place.is_gone(own)
    assert place.is_gone(own)
    assert not place.is_gone(None)
    for other in ({"boot": "b"}, {"machine": "m"}, {"namespace": 1}):
        assert not place.is_gone(own.model_copy(update=other))
