"""What was rendered is not rendered again: whatever run it was, through a folder or a storage."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from jobs import save_job, small_job, with_commands
from media_samples import frame_hashes
from pool_samples import rendered, two_runs
from prefect_aws.s3 import S3Bucket
from storage_samples import keys

from prefect_renderfarm.blocks import AssemblyError, LocalAdapter, RemuxStitcher
from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.flows import RenderJob, RenderReport, merge_job, render_job
from prefect_renderfarm.flows.rendering.chunk_renderer import ChunkRenderer
from prefect_renderfarm.flows.state.job_state import JobState

pytestmark = pytest.mark.usefixtures("api")

BOTH = pytest.mark.parametrize("storage", ["folder", "storage"], indirect=True)


@pytest.fixture(params=["folder", pytest.param("storage", marks=pytest.mark.long)])
def storage(request: pytest.FixtureRequest) -> S3Bucket | None:
    """Return a bucket; or None, for a job whose chunks travel through its folder."""
    if request.param == "folder":
        return None
    bucket: S3Bucket = request.getfixturevalue("bucket")
    return bucket


class Place:
    """Where the runs of a test work: a folder, and a storage or none.

    Args:
        folder: The folder.
        storage: The storage.
    """

    def __init__(self, folder: Path, storage: S3Bucket | None) -> None:
        self.folder = folder
        self.storage = storage

    def job(self, extra: str = "", **options: Any) -> RenderJob:
        """Return a job of three chunks of four frames that notes which chunks it renders."""
        note = f"--note '{self.folder / 'note'}' {extra}".strip()
        return small_job(note, **({"total_frames": 12, "chunks": 3} | options))

    def render(self, job: RenderJob, **options: Any) -> tuple[RenderReport, list[int]]:
        """Render a job; return its report, and the ids of the chunks that were rendered."""
        before = rendered(self.folder)
        given = {"adapter": LocalAdapter(), "merge": False} | options
        report = render_job(job, job_dir=self.folder / "job", storage=self.storage, **given)
        return report, sorted((rendered(self.folder) - before).elements())

    def chunk_files(self, report: RenderReport) -> dict[int, str]:
        """Return the name of each chunk's file, a path or a key."""
        if self.storage is None:
            return {chunk.id: str(chunk.path) for chunk in report.chunks}
        return {chunk.id: str(chunk.stored_as) for chunk in report.chunks}

    def remove(self, file: str) -> None:
        """Remove a chunk's file."""
        if self.storage is None:
            Path(file).unlink()
        else:
            BucketStore(self.storage).delete([file])

    def alter(self, file: str) -> None:
        """Write something else into a chunk's file."""
        if self.storage is None:
            Path(file).write_bytes(b"something else")
        else:
            BucketStore(self.storage).write(file, b"something else")


@pytest.fixture
def place(tmp_path: Path, storage: S3Bucket | None) -> Place:
    """Return where the runs of a test work."""
    return Place(tmp_path, storage)


def test_a_new_run_renders_nothing_again(place: Place) -> None:
    """The same job again, with a film this time: nothing is rendered, and the film is right."""
    first, chunks = place.render(place.job())
    assert chunks == [0, 1, 2]
    assert first.reused == ()
    film = place.folder / "film.mp4"
    options: dict[str, Any] = {"stitcher": RemuxStitcher(), "output_file": film, "merge": True}
    again, chunks = place.render(place.job(), **options)
    assert chunks == []
    assert again.reused == (0, 1, 2)
    assert [chunk.sha256 for chunk in again.chunks] == [chunk.sha256 for chunk in first.chunks]
    assert len(frame_hashes(film)) == 12


@pytest.mark.long
def test_one_changed_command_renders_one_chunk(place: Place) -> None:
    """A job is another one when a command changes; its other chunks are those of the first."""
    job = place.job()
    place.render(job)
    command = f"{job.chunks[1].command} --sleep 0.01"
    other, chunks = place.render(with_commands(job, {1: command}))
    assert chunks == [1]
    assert other.reused == (0, 2)
    assert other.key != job.key
    assert place.render(job)[1] == []  # in a folder, too: the other command made the same file


@pytest.mark.long
@pytest.mark.parametrize("storage", ["folder", "storage"], indirect=True)
def test_what_is_gone_or_altered_is_rendered_again(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is gone, or not what was rendered, is rendered anew, and the log says why."""
    report, _ = place.render(place.job())
    files = place.chunk_files(report)
    place.remove(files[1])
    place.alter(files[2])
    again, chunks = place.render(place.job())
    assert chunks == [1, 2]
    assert [chunk.sha256 for chunk in again.chunks] == [chunk.sha256 for chunk in report.chunks]
    assert "chunk 1 is rendered again: its file is gone" in caplog.text
    assert "chunk 2 is rendered again: its file was altered" in caplog.text
    assert "1 of 3 chunks are done already" in caplog.text


@pytest.mark.long
def test_force_renders_all(place: Place) -> None:
    """Whoever asks for it gets all chunks anew."""
    place.render(place.job())
    report, chunks = place.render(place.job(), force=True)
    assert chunks == [0, 1, 2]
    assert report.reused == ()


@pytest.mark.long
def test_another_environment_is_another_chunk(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """A variable that is set for commands decides what they make; the log says so."""
    place.render(place.job())
    _, chunks = place.render(place.job(), adapter=LocalAdapter(environment={"QUALITY": "high"}))
    assert chunks == [0, 1, 2]
    assert "chunk 2 is rendered again: its inputs or variables have changed" in caplog.text


@pytest.mark.long
def test_changed_input_files_render_all_again(place: Place) -> None:
    """The content of input files counts, and not when they were written."""
    scene = place.folder / "job" / "scene" / "film.blend"
    scene.parent.mkdir(parents=True)
    scene.write_text("a scene")
    job = RenderJob.model_validate(json.loads(place.job().to_json()) | {"assetsUrl": "scene"})
    assert place.render(job)[1] == [0, 1, 2]
    scene.write_text("a scene")
    assert place.render(job)[1] == []
    scene.write_text("another")
    assert place.render(job)[1] == [0, 1, 2]


@pytest.mark.long
def test_own_files_are_no_input(tmp_path: Path) -> None:
    """The job's own file and its films may lie among the input: they change nothing."""
    place = Place(tmp_path, None)
    job = RenderJob.model_validate(json.loads(place.job().to_json()) | {"assetsUrl": "."})
    path = save_job(tmp_path / "job", job)

    def render(film: str) -> list[int]:
        before = rendered(tmp_path)
        render_job(
            str(path), adapter=LocalAdapter(), stitcher=RemuxStitcher(), output_file=Path(film)
        )
        return sorted((rendered(tmp_path) - before).elements())

    assert render("one.mp4") == [0, 1, 2]
    assert render("two.mp4") == []
    save_job(tmp_path / "job", with_commands(job, {1: f"{job.chunks[1].command} --sleep 0"}))
    assert render("one.mp4") == [1]


@pytest.mark.long
def test_films_hold_no_others_chunks(place: Place) -> None:
    """What another run rendered in another environment is not put into a film of this one."""
    job = place.job()
    place.render(job, adapter=LocalAdapter(environment={"QUALITY": "draft"}))
    given = {"job_dir": place.folder / "job", "storage": place.storage}
    film = place.folder / "film.mp4"
    with pytest.raises(AssemblyError, match="chunk 0 of job 'small' is not rendered"):
        merge_job(job, stitcher=RemuxStitcher(), output_file=film, inputs="other", **given)
    assert not film.exists()
    merge_job(job, stitcher=RemuxStitcher(), output_file=film, **given)
    assert len(frame_hashes(film)) == 12


def test_what_another_run_did_meanwhile(tmp_path: Path) -> None:
    """A run that was halted looks whether its next chunk has been rendered since it last looked."""
    place = Place(tmp_path, None)
    job = place.job()
    folder = JobState(tmp_path / "job", job)
    folder.prepare()
    folder.identify(LocalAdapter())
    halted = ChunkRenderer(folder, LocalAdapter())
    place.render(job)
    before = rendered(tmp_path)
    assert halted.render(job.chunks[0]).frame_count == 4
    assert rendered(tmp_path) == before
    folder.chunk_file(job.chunks[1]).write_bytes(b"damaged")
    assert halted.render(job.chunks[1]).frame_count == 4
    assert (rendered(tmp_path) - before) == {1: 1}


@pytest.mark.long
def test_what_failed_is_all_that_is_left(place: Place) -> None:
    """After a failed job, a new run of it renders the chunks that were not done."""
    flag = place.folder / "flag"
    job = with_commands(place.job(), {2: f"{place.job().chunks[2].command} --fail-once '{flag}'"})
    with pytest.raises(Exception, match="chunk 2"):
        place.render(job, concurrency=1)
    report, chunks = place.render(job, concurrency=1)
    assert chunks == [2]
    assert report.reused == (0, 1)


@pytest.mark.long
def test_batches_render_what_is_left(place: Place) -> None:
    """Flow runs on a work pool are given only what no run has rendered, by any adapter."""
    if place.storage is not None:
        place.storage.save("paid-once", overwrite=True, _sync=True)
    job = place.job()
    command = f"{job.chunks[1].command} --sleep 0.01"
    place.render(job, adapter=two_runs())
    other, chunks = place.render(with_commands(job, {1: command}), adapter=two_runs())
    assert chunks == [1]
    assert other.reused == (0, 2)


@pytest.mark.long
@BOTH
def test_an_old_job_may_go(place: Place) -> None:
    """What a job takes over from another is its own: the other's chunks may be deleted."""
    if place.storage is None:
        pytest.skip("jobs in one folder share the files themselves")
    job = place.job()
    first, _ = place.render(job)
    other = with_commands(job, {1: f"{job.chunks[1].command} --sleep 0.01"})
    second, _ = place.render(other)
    store = BucketStore(place.storage)
    store.delete([key for key in keys(place.storage) if f"/{first.key}/" in key])
    film = place.folder / "film.mp4"
    _, chunks = place.render(other, stitcher=RemuxStitcher(), output_file=film, merge=True)
    assert chunks == []
    assert len(frame_hashes(film)) == 12
    assert Counter(chunk.id for chunk in second.chunks) == Counter(range(3))
