"""How often a chunk is tried, and what is slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefect_renderfarm.blocks.errors import (
    ChunkFileError,
    CommandFailed,
    CommandNotRunnable,
    JobError,
    RepeatedFault,
    StorageError,
    StorageRefused,
    TooManyFailures,
    WorkerLost,
    WorkStopped,
)
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.rendering.attempts import (
    Attempts,
    Failures,
    SlowChunks,
    Timings,
    worth_another_attempt,
)
from prefect_renderfarm.flows.results import FailedAttempt


@pytest.mark.parametrize(("failed", "longest"), [(1, 2.0), (2, 4.0), (5, 32.0), (20, 300.0)])
def test_pauses_double_up_to_a_limit(failed: int, longest: float) -> None:
    """Half of a pause is left to chance."""
    pauses = [Attempts(retry_delay=2.0).pause(failed) for _ in range(300)]
    assert longest / 2 <= min(pauses) < 0.6 * longest
    assert 0.9 * longest < max(pauses) <= longest


def test_long_delay_is_kept() -> None:
    """A delay beyond the limit is what the user asked for."""
    assert 500 <= Attempts(retry_delay=1000.0).pause(3) <= 1000


@pytest.mark.parametrize(
    ("error", "worth"),
    [
        (CommandFailed("1"), True),
        (ChunkFileError("short"), True),
        (WorkerLost("gone"), True),
        (StorageError("away"), True),
        (RuntimeError("a bug"), True),
        (CommandNotRunnable("no program"), False),
        (StorageRefused("no key"), False),
        (RepeatedFault("again"), False),
        (TooManyFailures("5"), False),
        (JobError("bad"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_worth_another_attempt(error: Exception, worth: bool) -> None:
    """The type of an error tells whether the chunk may succeed another time."""
    assert worth_another_attempt(error) is worth


def test_stopped_work_is_no_failure() -> None:
    """What ended with its job has not failed."""
    failures = Failures(0)
    failures.add(1, 1, 1.0, WorkStopped("stopped"))
    assert failures.all == ()


def test_too_many_failures_end_the_job() -> None:
    """One failed attempt more than allowed is too many, whoever had it."""
    failures = Failures(2)
    failures.add(1, 1, 1.0, CommandFailed("one"))
    failures.take([FailedAttempt(chunk=2, attempt=1, seconds=1, kind="X", message="two")])
    failures.check()
    with pytest.raises(TooManyFailures, match=r"3 attempts .* is 2; the last one: three"):
        failures.add(3, 1, 1.0, CommandFailed("three"))
    Failures(None).check()


def test_same_fault_of_a_file_twice() -> None:
    """A file that is wrong in the same words is not rendered a third time; a command may fail."""
    failures = Failures()
    failures.add(1, 1, 1.0, CommandFailed("exit code 1"))
    failures.add(1, 2, 1.0, CommandFailed("exit code 1"))
    failures.add(1, 3, 1.0, ChunkFileError("5 frames"))
    failures.add(2, 1, 1.0, ChunkFileError("5 frames"))
    failures.add(1, 4, 1.0, ChunkFileError("4 frames"))
    with pytest.raises(RepeatedFault, match="5 frames, for the second time"):
        failures.add(1, 5, 1.0, ChunkFileError("5 frames"))
    assert len(failures.all) == 6


def test_failures_are_passed_on() -> None:
    """Who started this run is told of each failed attempt, with all that came before."""
    told: list[int] = []
    failures = Failures(None, lambda known: told.append(len(known)))
    failures.add(1, 1, 1.0, CommandFailed("1"))
    failures.add(1, 2, 1.0, CommandFailed("2"))
    assert told == [1, 2]


def test_duplicates_need_a_storage() -> None:
    """Two attempts at a chunk would write the same file in a shared folder."""
    with pytest.raises(JobError, match="slow_chunks is 'duplicate'"):
        Attempts(slow_chunks=SlowChunks.DUPLICATE).check(None)
    Attempts(slow_chunks=SlowChunks.DUPLICATE).check(object())
    Attempts(slow_chunks=SlowChunks.END).check(None)


@pytest.mark.parametrize(
    ("factor", "times", "seconds", "slow"),
    [
        (5.0, [1.0] * 3, 100.0, True),
        (5.0, [1.0] * 3, 99.9, False),
        (5.0, [1.0] * 2, 1000.0, False),  # too few are done
        (5.0, [0.001] * 3, 4.9, False),  # the start of a program is most of it
        (5.0, [0.001] * 3, 5.0, True),
        (5.0, [1.0, 1.0, 50.0], 100.0, True),  # the median counts
        (None, [1.0] * 3, 1e6, False),
    ],
)
def test_slow_chunks(factor: float | None, times: list[float], seconds: float, slow: bool) -> None:
    """A chunk of 20 frames is slow that takes a factor longer than the others."""
    known = Timings(
        ChunkResult(
            id=number, start_frame=0, frame_count=10, output_file="a", path=Path("a"), size=1,
            sha256="", seconds=10 * each,
        )
        for number, each in enumerate(times)
    )  # fmt: skip
    found = Attempts(slow_factor=factor).slowness(20, seconds, known)
    assert (found is not None) is slow
    if found:
        assert "it takes 5 times as long as the others, which took" in found


def test_outputs_of_the_last_attempts_are_kept() -> None:
    """Of a job with thousands of failures the report stays small."""
    failures = Failures()
    for number in range(50):
        error = CommandFailed(f"chunk {number}: bad")
        error.output = "x" * 9_000
        failures.add(number, 1, 1.0, error)
    assert [len(one.output) for one in failures.all] == [0] * 30 + [2_000] * 20
