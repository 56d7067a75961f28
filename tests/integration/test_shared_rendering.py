"""A run among others: what they have done it uses, and what is theirs it leaves alone."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jobs import clip_command, small_job, with_commands
from prefect import flow
from processes_here import wait_for
from shared_jobs import SAME, one_with_sound, prepared, render

from prefect_renderfarm.blocks import AssemblyError, CommandFailed, LocalAdapter, StorageError
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.rendering.attempts import Attempts, Failures
from prefect_renderfarm.flows.rendering.chunk_renderer import ChunkRenderer
from prefect_renderfarm.flows.rendering.shared import SharedRendering
from prefect_renderfarm.flows.state.done_chunks import DoneChunks
from prefect_renderfarm.flows.state.job_folder import JobFolder
from prefect_renderfarm.flows.state.lease import Lease


class AwayFolder(JobFolder):
    """A job folder whose records cannot be listed for a while."""

    away = False

    def list_records(self, folder: str) -> list[str]:
        if self.away:
            raise StorageError("storage 'x' cannot list: it is away")
        return super().list_records(folder)


def render_in_flow(how: SharedRendering) -> list[ChunkResult]:
    """Render all chunks as a run does that then assembles them."""
    results: list[ChunkResult] = []

    @flow
    def rendering() -> None:
        results.extend(how.render(kept=True))

    rendering()
    return results


def render_all(folder: JobFolder) -> list[ChunkResult]:
    """Be a run that renders and assembles all chunks."""
    with sharing(folder) as how:
        return render_in_flow(how)


def sharing(folder: JobFolder, rules: ChunkRules = ChunkRules()) -> SharedRendering:  # noqa: B008
    """Return what a run renders all chunks of a folder with."""
    return SharedRendering(
        folder, folder.job.chunks, LocalAdapter(), rules, Attempts(),
        width=1, failures=Failures(None),
    )  # fmt: skip


def test_who_waits_waits_for_the_storage_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A storage that is away while a run waits for others is told of once, and ends nothing."""
    job = small_job()
    own, others = prepared(tmp_path, job, AwayFolder), prepared(tmp_path, job)
    with (
        Lease(others, [0, 1, 2]),
        caplog.at_level(logging.WARNING),
        sharing(own) as how,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(how.render)
        time.sleep(1.5)
        own.away = True
        wait_for(lambda: "it is away" in caplog.text, 10)
        time.sleep(2.5)
        render(others, 0, 1, 2)
        own.away = False
        assert [chunk.id for chunk in waiting.result(30)] == [0, 1, 2]
    assert how.reused == {0, 1, 2}
    assert caplog.text.count("it is away") == 1


def test_what_others_render_is_theirs(tmp_path: Path) -> None:
    """A chunk that does not fit is forgotten by who renders it, not by who waits for it."""
    folder = prepared(tmp_path, one_with_sound())
    render(folder, 0, 1)
    done = DoneChunks(folder, folder.job.chunks, SAME, retries=1)
    assert done.look(theirs=True) == []
    assert done.results.keys() == {0}
    assert folder.has_chunk(folder.job.chunks[1])
    assert [chunk.id for chunk in done.look()] == [1]
    assert not folder.has_chunk(folder.job.chunks[1])


@pytest.mark.long
def test_found_chunk_that_does_not_fit_is_rendered_again(tmp_path: Path) -> None:
    """What a run takes over from another must fit what it has already, else it counts no more."""
    folder = prepared(tmp_path, one_with_sound())
    render(folder, 0)
    other = prepared(tmp_path, folder.job)
    with Lease(other, [1, 2]) as lease, sharing(folder, SAME) as how:
        assert how.reused == {0}
        render(other, 1)
        lease.let_go([1, 2])
        wait_for(lambda: how._lease.take([1]) == {1}, 30)
        how._find_finished({1})
        assert how.reused == {0}
        assert not folder.has_chunk(folder.job.chunks[1])


def test_failed_attempt_clears_only_what_is_its_own(tmp_path: Path) -> None:
    """Whoever lost its lease during an attempt does not remove what may be another run's file."""
    command = clip_command("--sleep 1 --fail")
    folder = prepared(tmp_path, small_job(chunks=1, total_frames=4))
    [chunk] = with_commands(folder.job, {0: command.format(start=0, count=4, output="x")}).chunks
    for mine, left in (({0}, False), (set(), True)):
        lease: Any = SimpleNamespace(mine={0})
        renderer = ChunkRenderer(folder, LocalAdapter(), lease=lease)
        with ThreadPoolExecutor(1) as pool:
            attempt = pool.submit(renderer.render, chunk)
            wait_for(lambda running=renderer.running: bool(running), 10)  # type: ignore[misc]
            folder.chunk_file(chunk).write_bytes(b"another run's")
            lease.mine = mine
            with pytest.raises(CommandFailed):
                attempt.result(30)
        assert folder.chunk_file(chunk).exists() == left


@pytest.mark.usefixtures("api")
def test_what_a_film_is_made_of_is_not_rendered_anew(tmp_path: Path) -> None:
    """A run with another environment waits until no other uses the chunks that it will replace."""
    folder, other = prepared(tmp_path, small_job()), prepared(tmp_path, small_job())
    other.environment = "another"
    with ThreadPoolExecutor(1) as pool:
        with sharing(folder) as how:
            kept = render_in_flow(how)
            replacing = pool.submit(render_all, other)
            time.sleep(3)
            assert [folder.manifest(chunk) for chunk in folder.job.chunks] == kept
            assert not how.take_all()
        replaced = replacing.result(60)
    assert [chunk.id for chunk in replaced] == [0, 1, 2]
    assert not {chunk.identity for chunk in replaced} & {chunk.identity for chunk in kept}
    assert [folder.manifest(chunk) for chunk in folder.job.chunks] == [None] * 3


@pytest.mark.long
@pytest.mark.usefixtures("api")
def test_what_is_taken_away_before_it_is_kept_is_rendered_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A chunk that was deleted is rendered again; for one that another renders anew a run waits."""
    folder, other = prepared(tmp_path, small_job()), prepared(tmp_path, small_job())
    with sharing(folder) as how, ThreadPoolExecutor(1) as pool:
        render_in_flow(how)
        other.forget_chunks(other.job.chunks[1:2])
        assert len(render_in_flow(how)) == 3
        assert folder.done(folder.job.chunks) == {0, 1, 2}
        assert how.reused == set()
        how._lease.let_go([0, 1, 2])
        with caplog.at_level(logging.INFO), Lease(other) as lease:
            wait_for(lambda: lease.take([1]) == {1}, 30)
            keeping = pool.submit(render_in_flow, how)
            wait_for(lambda: "waiting for other runs: chunk 1" in caplog.text, 60)
            other.forget_chunks(other.job.chunks[1:2])
            wait_for(lambda: "1 chunks are with other runs: chunk 1" in caplog.text, 60)
            assert not keeping.done()
            render(other, 1)
            assert how._lease.others({0, 1, 2}) == {1}
        assert [chunk.id for chunk in keeping.result(60)] == [0, 1, 2]
    assert how.reused == {1}


@pytest.mark.usefixtures("api")
def test_what_others_put_in_its_place_is_not_assembled(tmp_path: Path) -> None:
    """Chunks that a run lost to one with another environment end it: else both took turns."""
    folder, other = prepared(tmp_path, small_job()), prepared(tmp_path, small_job())
    other.environment = "another"
    with sharing(folder) as how:
        render_in_flow(how)
        how._lease.let_go([0, 1, 2])
        render(other, 1)
        with pytest.raises(AssemblyError, match=r"chunk 1 of .*: another run has rendered"):
            render_in_flow(how)


@pytest.mark.usefixtures("api")
def test_chunks_are_deleted_by_the_last_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that would delete the chunks leaves them to another run that waits for some of them."""
    folder, other = prepared(tmp_path, small_job()), prepared(tmp_path, small_job())
    with sharing(folder) as how, caplog.at_level(logging.INFO):
        render_in_flow(how)
        with sharing(other):
            assert not how.take_all()
            assert "the chunks stay: other runs are at this job: " in caplog.text
        wait_for(how.take_all, 30)
