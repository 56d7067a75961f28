"""Several runs that put the same job together at once, on one machine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from jobs import small_job
from lock_samples import refused
from prefect_aws.s3 import S3Bucket
from processes_here import wait_for

from prefect_renderfarm.blocks import AssemblyError, JobError, LocalAdapter, SetupError
from prefect_renderfarm.flows import merge_job
from prefect_renderfarm.flows.rendering.chunk_renderer import ChunkRenderer
from prefect_renderfarm.flows.results import Assembly, MergeReport
from prefect_renderfarm.flows.state.job_lock import job_lock
from prefect_renderfarm.flows.state.job_state import JobState

Opener = Callable[[], JobState]


@pytest.fixture
def stored(bucket: S3Bucket, tmp_path: Path) -> Opener:
    """Return what opens a job's folder on this machine, as a run does; its chunks are stored."""
    job = small_job()

    def opened() -> JobState:
        folder = JobState(tmp_path / "here", job, bucket)
        folder.prepare()
        folder.inputs = "same"
        return folder

    elsewhere = JobState(tmp_path / "elsewhere", job, bucket)
    elsewhere.prepare()
    elsewhere.inputs = "same"
    renderer = ChunkRenderer(elsewhere, LocalAdapter())
    for chunk in job.chunks:
        renderer.render(chunk)
    return opened


def fetch_all(folder: JobState, but_first: Callable[[], None]) -> None:
    """Fetch all chunks of a job, to one of which something happens after the first one."""
    for number, chunk in enumerate(folder.job.chunks):
        if number == 1:
            but_first()
        folder.fetch_chunk(chunk)


def copies(folder: JobState) -> set[int]:
    """Return the chunks that have a file on this machine, by their ids."""
    return {chunk.id for chunk in folder.job.chunks if folder.chunk_file(chunk).exists()}


def test_copies_are_removed_at_the_end(stored: Opener) -> None:
    """The storage keeps the chunks: a run that is done leaves no copies."""
    folder = stored()
    with folder.copies():
        folder.fetch_chunk(folder.job.chunks[0])
        assert copies(folder) == {0}
    assert copies(folder) == set()


def test_copies_of_a_run_that_fails_stay(stored: Opener) -> None:
    """What was fetched for a film that failed need not be fetched for the next attempt."""
    folder = stored()
    with pytest.raises(AssemblyError, match="not rendered"), folder.copies():
        fetch_all(folder, but_first=lambda: folder.forget_chunks(folder.job.chunks[1:]))
    assert copies(folder) == {0}


def test_chunks_that_were_rendered_here_stay(stored: Opener) -> None:
    """In a folder where the job was rendered without a storage, its chunks are no copies."""
    folder = stored()
    local = JobState(folder.path, folder.job)
    local.inputs = "same"
    ChunkRenderer(local, LocalAdapter()).render(local.job.chunks[2])
    with folder.copies():
        for chunk in folder.job.chunks:
            folder.fetch_chunk(chunk)
    assert copies(folder) == {2}
    assert local.manifest(local.job.chunks[2])


@pytest.mark.usefixtures("api")
@pytest.mark.long
def test_merge_job_alone_holds_the_lock(tmp_path: Path) -> None:
    """While a film is assembled nobody renders its chunks anew."""
    job = small_job().model_copy(update={"merge_command": "sleep 4"})
    state = JobState(tmp_path, job)
    state.prepare()
    state.inputs = "some"
    renderer = ChunkRenderer(state, LocalAdapter())
    for chunk in job.chunks:
        renderer.render(chunk)
    with ThreadPoolExecutor(1) as pool:
        merging = pool.submit(merge_job, job, adapter=LocalAdapter(), job_dir=tmp_path)
        wait_for(lambda: "waits for run" in refused(job_lock(state)), 30)
        assert merging.result(60).assembly is Assembly.MERGED
    assert refused(job_lock(state)) == ""


def test_each_run_fetches_the_audio_track(bucket: S3Bucket, tmp_path: Path) -> None:
    """A track that was changed since a machine fetched it is fetched again; one's own is used."""
    job = small_job().model_copy(update={"audio_track": "track.wav"})
    rendering, merging = (JobState(tmp_path / name, job, bucket) for name in ("one", "two"))
    with pytest.raises(JobError, match=r"audioTrack 'track\.wav', which is no file"):
        merging.audio_track()
    for sound in (b"first", b"second"):
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / "one" / "track.wav").write_bytes(sound)
        rendering.prepare()
        assert rendering.audio_track() == tmp_path / "one" / "track.wav"
        with merging.copies():
            copy = merging.audio_track()
            assert copy is not None
            assert copy.read_bytes() == sound
        assert not copy.exists()
    assert not (tmp_path / "two" / "track.wav").exists()


@pytest.mark.parametrize("kind", ["folder", pytest.param("storage", marks=pytest.mark.long)])
def test_each_run_has_a_report_of_its_own(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A run that begins, or is done, does not touch the report of another."""
    opened: Opener = (
        request.getfixturevalue("stored")
        if kind == "storage"
        else lambda: JobState(tmp_path, small_job())
    )
    reports = {
        name: MergeReport(assembly=Assembly.STITCHED, film=Path(f"/{name}.mp4"))
        for name in ("one", "two")
    }
    for name, report in reports.items():
        opened().save_merge(report, name)
    assert {name: opened().load_merge(name) for name in reports} == reports
    with pytest.raises(SetupError, match="let both work pools"):
        opened().load_merge("three")
    opened().delete_chunks()
    with pytest.raises(SetupError, match="let both work pools"):
        opened().load_merge("one")
