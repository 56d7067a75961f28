"""Runs of one job at the same time: each chunk has one holder, and the dead hold nothing."""

from __future__ import annotations

import logging
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from lease_samples import (
    IDS,
    JOB,
    QUICK,
    FailingFolder,
    SlowFolder,
    StepFolder,
    Turns,
    WriteOnly,
    hold,
    process,
    race,
    until,
)

from prefect_renderfarm.blocks import JobError, StorageError
from prefect_renderfarm.flows.state.job_folder import JobFolder
from prefect_renderfarm.flows.state.lease import Lease
from prefect_renderfarm.flows.state.stored_folder import open_folder

IN_A_BUCKET_LATER = pytest.mark.parametrize(
    "folder", ["folder", pytest.param("bucket", marks=pytest.mark.long)], indirect=True
)


@pytest.fixture(params=["folder", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> JobFolder:
    """Return a job's folder on a shared disk, then one in a storage."""
    block = request.getfixturevalue("bucket") if request.param == "bucket" else None
    return open_folder(tmp_path, JOB, block)


@IN_A_BUCKET_LATER
def test_two_processes_race_for_chunks(folder: JobFolder) -> None:
    """Of two processes that take all chunks at once, one gets each chunk, and both get some."""
    rounds, sizes = 3, []
    with process(race, folder, 1, rounds) as (_, one), process(race, folder, 2, rounds) as (_, two):
        for _ in range(rounds):
            for pipe in (one, two):
                pipe.send("take")
            first, second = one.recv(), two.recv()
            assert first | second == IDS
            assert not first & second
            sizes += [len(first), len(second)]
            for pipe in (one, two):
                pipe.send("release")
                assert pipe.recv() == "released"
            assert folder.list_records("leases") == []
    print(sizes)
    assert min(sizes) > 0


def test_any_order_of_steps(tmp_path: Path) -> None:
    """Three runs take three chunks, their steps in 150 orders of chance: one holder for each."""
    contested = 0
    for seed in range(150):
        turns = Turns(seed, 3)
        leases = [Lease(StepFolder(tmp_path, f"{number}", turns)) for number in range(3)]

        def take(one: Lease, turns: Turns = turns) -> set[int]:
            try:
                return one.take({0, 1, 2})
            finally:
                turns.leave()

        with ThreadPoolExecutor(3) as threads:
            got = list(threads.map(take, leases))
        for one in leases:
            one.release()
        assert sorted(chunk for some in got for chunk in some) == [0, 1, 2], f"seed {seed}: {got}"
        contested += got[0] != {0, 1, 2}
    print(f"{contested} times the first one did not get all")
    assert contested > 20


def test_any_order_of_steps_with_users(tmp_path: Path) -> None:
    """Two runs use chunks that a third takes, in 150 orders of chance: each is used or taken."""
    taken = 0
    for seed in range(150):
        turns = Turns(seed, 3)
        leases = [Lease(StepFolder(tmp_path, f"{number}", turns)) for number in range(3)]

        def ask(one: Lease, turns: Turns = turns, leases: list[Lease] = leases) -> set[int]:
            try:
                return one.take({0, 1}) if one is leases[0] else one.use({0, 1, 2})
            finally:
                turns.leave()

        with ThreadPoolExecutor(3) as threads:
            got, *used = list(threads.map(ask, leases))
        for one in leases:
            one.release()
        for kept in used:
            assert kept | got == {0, 1, 2}, f"seed {seed}: {got}, {used}"
            assert not kept & got, f"seed {seed}: {got}, {used}"
        taken += bool(got)
    print(f"{taken} times chunks were taken")
    assert 5 < taken < 145


def test_used_chunks_are_left_alone(folder: JobFolder) -> None:
    """Several runs may use what is done; nobody takes it before the last of them is over."""
    with Lease(folder, {0, 1, 2}) as one, Lease(folder) as three:
        with Lease(folder, {3}) as two:
            assert one.use({0, 1, 3}) == {0, 1}
            assert one.mine == {2}
            assert two.use({0, 1, 2, 3}) == {0, 1, 3}
            assert three.take({0, 1, 2, 3, 4}) == {4}
            assert len(three.company()) == 2
            one.let_go({0})
            one.use({1})
            assert three.take({0, 1}) == set()
        assert three.take({0, 1, 3}) == {0, 3}
        assert three.use({0}) == {0}
        one.release()
        assert three.take({1, 2}) == {1, 2}
        assert three.company() == []


def test_slow_writer_does_not_win_by_being_earlier(tmp_path: Path) -> None:
    """Who is earlier, but is heard of only after another has begun, leaves it the chunk."""
    slow = SlowFolder(tmp_path, 1)
    earlier, later = Lease(slow), Lease(JobFolder(tmp_path, JOB))
    with earlier, later, ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(earlier.take, {7, 8})
        assert slow.reached.wait(20)
        assert later.take({7}) == {7}
        slow.go.set()
        assert waiting.result() == {8}
        assert earlier.others({7, 8}) == {7}
        assert later.mine == {7}


def test_earlier_waits_for_one_that_is_deciding(tmp_path: Path) -> None:
    """Who finds a later one that has looked, but not told yet what it holds, waits for that."""
    slow, slower = SlowFolder(tmp_path, 1), SlowFolder(tmp_path, 2)
    earlier, later = Lease(slow), Lease(slower)
    with earlier, later, ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(earlier.take, {7})
        assert slow.reached.wait(20)
        deciding = threads.submit(later.take, {7})
        assert slower.reached.wait(20)
        slow.go.set()
        time.sleep(0.5)
        assert not waiting.done()
        slower.go.set()
        assert deciding.result() == {7}
        assert waiting.result() == set()


@IN_A_BUCKET_LATER
def test_halted_holder_gives_up_what_others_took(folder: JobFolder) -> None:
    """A process that stood still keeps of its chunks only those that nobody took meanwhile."""
    patient = {"beat_seconds": 0.5, "silent_seconds": 6.0}  # on a busy machine, all halt at times
    with process(hold, folder, patient) as (holder, pipe), Lease(folder, **patient) as mine:
        pipe.recv()
        os.kill(holder.pid, signal.SIGSTOP)
        until(lambda: not mine.others(IDS), 60)
        assert mine.take({0, 1, 20}) == {0, 1, 20}
        os.kill(holder.pid, signal.SIGCONT)

        def told() -> Any:
            pipe.send("what is yours?")
            answer = pipe.recv()
            assert not answer & mine.mine
            return answer

        until(lambda: told() == set(range(2, 10)), 60)
        assert mine.others(IDS) == set(range(2, 10))
        assert mine.mine == {0, 1, 20}
        assert len(folder.list_records("leases")) == 2


def test_families(folder: JobFolder) -> None:
    """Members of a family may hold the same chunks; others may not. All is given back."""
    with Lease(folder, {0, 1}) as first, Lease(folder, {1, 2}, family=first.family) as second:
        assert (first.mine, second.mine) == ({0, 1}, {1, 2})
        assert first.others(IDS) == set()
        with Lease(folder, {0, 1, 2, 3}) as other:
            assert other.mine == {3}
            assert other.others({0, 1, 2, 3, 4}) == {0, 1, 2}
            assert second.others(IDS) == {3}
        assert second.take({3}) == {3}
    assert folder.list_records("leases") == []
    with pytest.raises(JobError, match="is no id of a run"):
        Lease(folder, family="../../job")


def test_orphan_holds_what_its_family_lost(tmp_path: Path) -> None:
    """When the run that began a family is killed, those that it started still hold their chunks."""
    folder = JobFolder(tmp_path, JOB)
    batch = {"family": "film", "chunk_ids": range(5, 15)}
    with (
        process(hold, folder, {"family": "film"}) as (coordinator, first),
        process(hold, folder, batch) as (_, second),
        Lease(folder) as mine,
    ):
        first.recv()
        assert second.recv() == set(range(5, 15))
        assert mine.others(IDS) == set(range(15))
        coordinator.kill()
        until(lambda: mine.others(IDS) == set(range(5, 15)), 60)
        assert mine.take(IDS) == IDS - set(range(5, 15))


def test_chunks_are_let_go_with_the_next_beat(tmp_path: Path) -> None:
    """What a run lets go of others may take, and what it still holds they may not."""
    folder = JobFolder(tmp_path, JOB)
    with Lease(folder, {0, 1}, beat_seconds=0.2) as one, Lease(folder) as two:
        one.let_go({0})
        assert one.mine == {1}
        until(lambda: two.take({0, 1}), 60)
        assert two.mine == {0}


def test_beat_that_fails_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While its record cannot be written a run trusts its lease no more; then it has it again."""
    folder = FailingFolder(tmp_path, JOB)
    with Lease(folder, {0, 1}, **QUICK) as mine, caplog.at_level(logging.WARNING):
        folder.failing = True
        with pytest.raises(StorageError, match="it is away"):
            mine.take({2})
        until(lambda: not mine.mine, 60)
        folder.failing = False
        until(lambda: mine.mine == {0, 1}, 60)
    assert len([line for line in caplog.messages if "cannot be renewed" in line]) == 1


def test_storage_that_cannot_list(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a storage that cannot be listed each chunk is the run's own, and it is told once."""
    folder = open_folder(tmp_path, JOB, WriteOnly(folder=tmp_path))
    with caplog.at_level(logging.WARNING), Lease(folder, {0, 1}) as mine:
        assert mine.take({1, 2}) == {1, 2}
        assert mine.mine == {0, 1, 2}
        assert mine.others(IDS) == set()
    assert len([line for line in caplog.messages if "are not seen" in line]) == 1


def test_killed_holder_on_this_machine_is_void_at_once(folder: JobFolder) -> None:
    """The chunks of a process that was killed are free with the next look, its record gone."""
    with process(hold, folder, {}) as (holder, pipe), Lease(folder) as mine:
        assert pipe.recv() == set(range(10))
        assert mine.take(range(20)) == set(range(10, 20))
        assert mine.others(IDS) == set(range(10))
        text = mine.waiting_for(range(8, 12))
        assert text.startswith("chunks 8-9 of small: a run without a flow run on machine ")
        holder.kill()
        until(lambda: not mine.others(IDS), 60)
        assert mine.waiting_for(IDS) == ""
        assert len(folder.list_records("leases")) == 1
        assert mine.take(IDS) == IDS
