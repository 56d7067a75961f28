"""A storage that does not answer for a moment ends nothing that only waits for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from jobs import small_job
from prefect.states import Crashed, Failed
from prefect_aws.s3 import S3Bucket
from shared_jobs import SAME, one_with_sound, prepared, render
from tenacity import stop_after_attempt, wait_fixed

from prefect_renderfarm.blocks import (
    AssemblyError,
    ChunkFileError,
    JobError,
    RenderFarmError,
    SetupError,
    StorageError,
    StorageRefused,
    WorkerLost,
    WorkPoolAdapter,
)
from prefect_renderfarm.blocks.errors import RepeatedFault
from prefect_renderfarm.blocks.runtime import repeat as retrying
from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.blocks.storage.objects import FolderStore
from prefect_renderfarm.flows.jobs.spec import Chunk
from prefect_renderfarm.flows.merge_job import ChunkFetcher
from prefect_renderfarm.flows.rendering.attempts import Attempts
from prefect_renderfarm.flows.rendering.pool import _LEAST_LOST, BatchRun, ChunkRuns
from prefect_renderfarm.flows.state.job_state import JobState

AWAY = StorageError("storage 'x' does not answer")


class AwayFolder(JobState):
    """A job folder that answers some of its questions with errors first."""

    errors: Iterator[Exception]
    troubled: int | None = None
    lists: bool = True

    def done(self, chunks: Iterable[Chunk]) -> set[int]:
        if not self.lists:
            self._fail()
        return super().done(chunks)

    def manifest(self, chunk: Chunk) -> ChunkResult | None:
        if chunk.id == self.troubled:
            self._fail()
        return super().manifest(chunk)

    def _fail(self) -> None:
        if error := next(self.errors, None):
            raise error


def away(path: Path, *errors: Exception, job: Any = None) -> AwayFolder:
    """Return a job's folder that first answers with errors."""
    folder: AwayFolder = prepared(path, job or small_job(), AwayFolder)
    folder.errors = iter(errors)
    return folder


def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let calls be repeated twice, after a moment."""
    monkeypatch.setattr(retrying, "wait_exponential", lambda **_: wait_fixed(0.01))
    monkeypatch.setattr(retrying, "stop_after_delay", lambda _: stop_after_attempt(3))


def test_assembly_waits_for_the_storage(tmp_path: Path) -> None:
    """Who waits for a chunk asks again, unless the storage does not let it in."""
    folder = away(tmp_path, AWAY, AWAY)
    render(folder, 0, 1, 2)
    folder.troubled = 1
    waiting = ChunkFetcher(folder, 60, lambda: None)
    assert [result.id for result in waiting] == [0, 1, 2]
    folder.errors = iter([StorageRefused("no key for you")])
    with pytest.raises(StorageRefused):
        list(ChunkFetcher(folder, 60, lambda: None))


def test_assembly_fetches_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that is done, and that the storage does not give, is asked for again, for a while."""
    quick_retries(monkeypatch)
    folder = away(tmp_path, AWAY, AWAY)
    render(folder, 0, 1, 2)
    folder.troubled = 1
    all_there = ChunkFetcher(folder, 0, lambda: None)
    assert [result.id for result in all_there] == [0, 1, 2]
    folder.errors = iter([AWAY] * 3)
    with pytest.raises(AssemblyError, match=r"^chunk 1: storage .x. does not answer"):
        list(ChunkFetcher(folder, 0, lambda: None))
    folder.errors = iter([StorageRefused("no key for you")])
    with pytest.raises(AssemblyError, match=r"^chunk 1: no key for you"):
        list(ChunkFetcher(folder, 0, lambda: None))


def test_assembly_asks_again_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether all chunks are there is asked again; who waits for chunks can do without."""
    quick_retries(monkeypatch)
    folder = away(tmp_path, AWAY, AWAY)
    render(folder, 0, 1, 2)
    folder.lists = False
    assert ChunkFetcher(folder, 0, lambda: None).all_here()
    assert next(folder.errors, None) is None
    folder.errors = iter([AWAY] * 3)
    with pytest.raises(StorageError):
        ChunkFetcher(folder, 0, lambda: None).all_here()
    folder.errors = iter([AWAY] * 3)
    assert not ChunkFetcher(folder, 60, lambda: None).all_here()
    folder.errors = iter([StorageRefused("no key for you")])
    with pytest.raises(StorageRefused):
        ChunkFetcher(folder, 60, lambda: None).all_here()


def test_known_chunk_is_asked_for_again(
    bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk of another job is taken over though the storage fails first; not one that is gone."""
    quick_retries(monkeypatch)
    first, second = (
        prepared(tmp_path / name, small_job(id=name), partial(JobState, block=bucket))
        for name in ("one", "two")
    )
    render(first, 0, 1)
    errors = iter([AWAY, AWAY])
    copy = BucketStore.copy

    def failing(self: BucketStore, key: str, other: str) -> None:
        if error := next(errors, None):
            raise error
        copy(self, key, other)

    monkeypatch.setattr(BucketStore, "copy", failing)
    taken = second.take_over(second.job.chunks[0])
    assert taken is not None
    assert second.done(second.job.chunks) == {0}
    gone = first.manifest(first.job.chunks[1])
    assert gone is not None
    first.objects.store.delete([str(gone.stored_as)])
    assert second.take_over(second.job.chunks[1]) is None
    assert second.take_over(second.job.chunks[2]) is None


def failed_run(folder: JobState, **labels: str) -> BatchRun:
    """Return a run of all chunks that has failed."""
    run: Any = SimpleNamespace(
        id=uuid4(), name="chunks", work_pool_name="p", infrastructure_pid="c:" + 64 * "a",
        state=Failed(message="no route to the storage"), state_type=None, labels=labels,
    )  # fmt: skip
    return BatchRun(run, list(folder.job.chunks))


def test_unread_error_counts_as_a_lost_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed run whose error cannot be read is a lost one; its chunks are given out again."""

    def read(*_: object) -> bytes:
        raise AWAY

    monkeypatch.setattr(FolderStore, "read", read)
    folder = away(tmp_path)
    run = failed_run(folder)
    runs = ChunkRuns(folder, WorkPoolAdapter(), SAME, chunks=folder.job.chunks)
    runs.count_loss(run, runs._notes(run))
    assert runs.lost == {0: 1}
    for _ in range(_LEAST_LOST - 1):
        runs.count_loss(run, runs._notes(run))
    with pytest.raises(WorkerLost, match="cannot be read: storage 'x' does not answer"):
        runs.count_loss(run, runs._notes(run))


def test_run_without_a_word_counts_as_lost(tmp_path: Path) -> None:
    """A failed run that wrote no error could not reach the storage: others do its chunks."""
    folder = away(tmp_path)
    run = failed_run(folder)
    runs = ChunkRuns(folder, WorkPoolAdapter(), attempts=Attempts(retries=3))
    for _ in range(3):
        runs.count_loss(run, runs._notes(run))
    assert runs.lost == {0: 3}
    where = r"on work pool 'p' \(container aaaaaaaaaaaa\): ended as Failed: no route to the storage"
    with pytest.raises(WorkerLost, match=f"4 runs that were at it were lost; .*{where}"):
        runs.count_loss(run, runs._notes(run))


@pytest.mark.parametrize("error", [StorageRefused, SetupError, JobError])
def test_run_that_can_only_label_itself(tmp_path: Path, error: type[RenderFarmError]) -> None:
    """What would end another run, too, ends the job, though it is not in the storage."""
    folder = away(tmp_path)
    run = failed_run(folder, **{"renderfarm.error": error.__name__})
    runs = ChunkRuns(folder, WorkPoolAdapter(), attempts=Attempts(retries=3))
    with pytest.raises(error, match=r"^no route to the storage$"):
        runs.count_loss(run, runs._notes(run))
    for lost in ("StorageError", "WorkerLost", "KeyError"):
        run = failed_run(folder, **{"renderfarm.error": lost})
        runs.count_loss(run, runs._notes(run))
    assert runs.lost == {0: 3}


def test_run_that_never_began(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A container that ends before its flow begins has told only its worker why."""
    folder = away(tmp_path)
    run = failed_run(folder)
    run.run.state, run.run.start_time = Crashed(message="exit code 1"), None
    runs = ChunkRuns(folder, WorkPoolAdapter(), SAME, chunks=folder.job.chunks)
    runs.count_loss(run, runs._notes(run))
    told = "exit code 1 (it never began: what it printed is in the log of its pool's worker)"
    assert told in caplog.text


def test_what_is_done_is_logged_though_the_next_manifest_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Chunks that are found before the storage fails are in the log: nobody looks at them again."""
    folder = away(tmp_path, AWAY)
    render(folder, 0, 1)
    folder.troubled = 1
    runs = ChunkRuns(folder, WorkPoolAdapter(), SAME, chunks=folder.job.chunks)
    runs._runs = [failed_run(folder)]
    with caplog.at_level("INFO"):
        assert not runs._see(runs._runs)
    assert set(runs.done) == {0}
    assert "chunk 0: frames 0-" in caplog.text
    assert "the storage does not say what is done: storage 'x' does not answer" in caplog.text


def pool_of(folder: JobState, retries: int) -> ChunkRuns:
    """Return a run that has all chunks of a job, and who waits for it."""
    attempts = Attempts(retries=retries)
    runs = ChunkRuns(folder, WorkPoolAdapter(), SAME, attempts, chunks=folder.job.chunks)
    runs._runs = [failed_run(folder)]
    while runs._queue:
        runs._queue.next_batch(None, 0)
    return runs


def test_misfit_is_told_though_the_next_manifest_is_not_read(tmp_path: Path) -> None:
    """A chunk that is to be rendered again is not forgotten when the storage fails after it."""
    folder = away(tmp_path, AWAY, job=one_with_sound())
    render(folder, 0, 1, 2)
    folder.troubled = 2
    runs = pool_of(folder, 1)
    assert not runs._see(runs._runs)
    assert [chunk.id for chunk in runs._queue.next_batch(None, 0)] == [1]
    assert [chunk.id for chunk in runs._runs[0].chunks] == [2]
    assert runs._see(runs._runs)
    assert not runs._queue
    assert set(runs.done) == {0, 2}
    assert [(one.chunk, one.attempt, one.kind) for one in runs.failures.all] == [
        (1, 1, "ChunkFileError")
    ]


def test_misfit_whose_manifest_cannot_be_withdrawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The job fails for the chunk that does not fit, and not for the storage."""
    quick_retries(monkeypatch)
    folder = away(tmp_path, job=one_with_sound())
    render(folder, 0, 1, 2)

    def keep(_: object) -> None:
        raise AWAY

    monkeypatch.setattr(folder, "forget_chunks", keep)
    runs = pool_of(folder, 5)
    assert runs._see(runs._runs)
    assert "chunk 1: its manifest cannot be withdrawn: storage 'x' does not answer" in caplog.text
    runs._runs = [failed_run(folder)]
    with pytest.raises(RepeatedFault, match=r"chunk 1: .* differs from that of chunk 0"):
        runs._see(runs._runs)


def test_misfit_of_the_last_attempt_ends_the_job(tmp_path: Path) -> None:
    """A chunk that does not fit the others has as many attempts as any other fault."""
    folder = away(tmp_path, job=one_with_sound())
    render(folder, 0, 1, 2)
    runs = pool_of(folder, 0)
    with pytest.raises(ChunkFileError, match=r"chunk 1: .* differs from that of chunk 0"):
        runs._see(runs._runs)
    assert folder.done(folder.job.chunks) == {0, 2}
    render(folder, 1)
    runs = pool_of(folder, 5)
    runs._see(runs._runs)
    render(folder, 1)
    runs._runs = [failed_run(folder)]
    with pytest.raises(RepeatedFault, match="for the second time"):
        runs._see(runs._runs)
