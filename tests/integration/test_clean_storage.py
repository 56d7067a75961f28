"""Cleaning up: what jobs left in a storage goes when it is old, and nothing else does."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from farm_client import FarmClient
from jobs import small_job
from media_samples import frame_hashes
from prefect_aws.s3 import S3Bucket
from storage_samples import keys

from prefect_renderfarm.blocks import (
    AssemblyError,
    JobError,
    LocalAdapter,
    RemuxStitcher,
    SetupError,
    WorkerError,
)
from prefect_renderfarm.blocks.assets.inputs import send_assets
from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.blocks.storage.job_store import JobStore
from prefect_renderfarm.flows import RenderJob, RenderReport, clean_storage, render_job

OLD, YOUNG = "old-0123456789ab", "young-0123456789ab"
RECORDS = ("job.json", "report.json", "merge.json")


def render(block: S3Bucket | None, folder: Path, extra: str = "", **options: Any) -> RenderReport:
    """Render and stitch a small job, and keep no chunks."""
    given = {
        "job": small_job(extra),
        "stitcher": RemuxStitcher(),
        "output_file": Path("film.mp4"),
        "keep_chunks": False,
    }
    return render_job(adapter=LocalAdapter(), storage=block, job_dir=folder, **(given | options))


def chunks_of(block: S3Bucket, key: str) -> list[str]:
    """Return the keys of what a job has in its folder of chunks."""
    return [name for name in keys(block) if f"{key}/chunks/" in name]


@pytest.mark.usefixtures("api")
def test_chunks_go_when_the_film_is_there(bucket: S3Bucket, tmp_path: Path) -> None:
    """After a good job only its records stay, and the film; other jobs keep what is theirs."""
    JobStore(BucketStore(bucket), OLD).write("chunks/000000.json", b"{}")
    report = render(bucket, tmp_path, output_file=Path("storage:films/film.mp4"))
    root = f"renderfarm/{report.key}"
    others = [f"renderfarm/{OLD}/chunks/000000.json", "films/film.mp4"]
    kept = [f"{root}/{name}" for name in (*RECORDS, "lock/00000001.json")]
    assert sorted(keys(bucket)) == sorted([*others, *kept])
    BucketStore(bucket).download("films/film.mp4", tmp_path / "copy.mp4")
    assert len(frame_hashes(tmp_path / "copy.mp4")) == 18


@pytest.mark.long
@pytest.mark.usefixtures("api")
def test_chunks_stay_without_a_film(bucket: S3Bucket, tmp_path: Path) -> None:
    """A job that fails, in a chunk or in the assembly, or makes no film keeps its chunks."""
    report = render(bucket, tmp_path / "off", merge=False)
    assert len(chunks_of(bucket, report.key)) == 12
    with pytest.raises(WorkerError):
        render(bucket, tmp_path / "failed", "--fail")
    failed = small_job("--fail").key
    assert [name for name in chunks_of(bucket, failed) if name.endswith("log.txt")]
    odd = RenderJob.model_validate(small_job().model_dump() | {"merge_command": "sh -c 'exit 3'"})
    with pytest.raises(AssemblyError):
        render(bucket, tmp_path / "odd", job=odd, stitcher=None)
    assert len(chunks_of(bucket, odd.key)) == 12


@pytest.mark.long
@pytest.mark.usefixtures("api")
def test_chunks_in_the_job_folder_go_too(tmp_path: Path) -> None:
    """Without a storage it is the chunks of the job folder that go."""
    render(None, tmp_path, keep_chunks=True)
    assert len(list((tmp_path / "chunks").iterdir())) == 3
    render(None, tmp_path)
    assert list((tmp_path / "chunks").iterdir()) == []
    assert len(frame_hashes(tmp_path / "film.mp4")) == 18


@pytest.fixture
def aged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every object whose key has the word `old` in it be 40 days older than it is."""
    objects = BucketStore.objects

    def older(self: BucketStore, folder: str) -> Any:
        for found in objects(self, folder):
            days = timedelta(days=40 if found.key in OLDER or OLD in found.key else 0)
            yield type(found)(found.key, found.size, found.modified - days)

    OLDER.clear()
    monkeypatch.setattr(BucketStore, "objects", older)


OLDER: set[str] = set()


def fill(block: S3Bucket, folder: Path) -> dict[str, str]:
    """Leave an old and a young job with input in a bucket, and things that are no job's."""
    assets: dict[str, str] = {}
    for key, names in ((OLD, ("shared", "old only")), (YOUNG, ("shared", "young only"))):
        store = JobStore(BucketStore(block), key)
        for name in names:
            (folder / key).mkdir(exist_ok=True)
            (folder / key / name).write_text(name)
        sent = send_assets(store, folder / key, folder / key)
        assets |= {file.path: file.key for file in sent.files}
        for name in (*RECORDS, "chunks/000000/a/00000.mp4", "chunks/000000/a/log.txt",
                     "chunks/000000.json", "track/sound.wav"):  # fmt: skip
            store.write(name, b"12345")
    store = BucketStore(block)
    for name in ("holiday.jpg", "films/film.mp4", "renderfarm/notes.txt", "renderfarm/else/old"):
        store.write(name, b"mine")
    store.write("renderfarm/assets/" + "0" * 64, b"under way")
    OLDER.update((assets["shared"], assets["old only"], "renderfarm/else/old"))
    return assets


@pytest.mark.usefixtures("api", "aged")
def test_only_what_is_old_goes(bucket: S3Bucket, tmp_path: Path) -> None:
    """A look deletes nothing; then the old job's chunks go, and input that no other job names."""
    assets = fill(bucket, tmp_path)
    before = set(keys(bucket))
    looked = clean_storage(bucket)
    assert set(keys(bucket)) == before
    assert [(job.key, job.old, job.deleted) for job in looked.jobs] == [
        (OLD, True, False), (YOUNG, False, False),
    ]  # fmt: skip
    listed = len(BucketStore(bucket).read(f"renderfarm/{OLD}/assets.json") or b"")
    assert (looked.jobs[0].objects, looked.jobs[0].size) == (5, 20 + listed)
    assert looked.jobs[0].age_days == pytest.approx(40, abs=0.1)
    assert (looked.assets.objects, looked.assets.size) == (1, len("old only"))
    cleaned = clean_storage(bucket, dry_run=False)
    assert [job.deleted for job in cleaned.jobs] == [True, False]
    assert cleaned.assets.deleted
    gone = {f"renderfarm/{OLD}/{name}" for name in (
        "chunks/000000/a/00000.mp4", "chunks/000000/a/log.txt", "chunks/000000.json",
        "track/sound.wav", "assets.json")}  # fmt: skip
    assert before - set(keys(bucket)) == gone | {assets["old only"]}
    assert [job.key for job in clean_storage(bucket).jobs] == [YOUNG]


@pytest.mark.long
@pytest.mark.usefixtures("api", "aged")
def test_one_job_alone(bucket: S3Bucket, tmp_path: Path) -> None:
    """Named by its key, one job is looked at; its age counts; an unknown key is refused."""
    fill(bucket, tmp_path)
    before = set(keys(bucket))
    assert [job.old for job in clean_storage(bucket, job=YOUNG, dry_run=False).jobs] == [False]
    assert set(keys(bucket)) == before
    report = clean_storage(bucket, older_than_days=0, job=YOUNG, dry_run=False)
    assert [job.key for job in report.jobs] == [YOUNG]
    assert not [name for name in before - set(keys(bucket)) if OLD in name]
    assert not chunks_of(bucket, YOUNG)
    with pytest.raises(JobError, match="no such job"):
        clean_storage(bucket, job="none-0123456789ab")
    with pytest.raises(SetupError, match="choose the storage"):
        clean_storage(None)  # type: ignore[arg-type]


@pytest.mark.long
@pytest.mark.usefixtures("api", "aged")
def test_input_of_a_job_under_way_stays(bucket: S3Bucket, tmp_path: Path) -> None:
    """Old input that a job is about to use again stays, though its list is not final yet."""
    assets = fill(bucket, tmp_path)
    store = BucketStore(bucket)
    listed = store.read(f"renderfarm/{OLD}/assets.json") or b""
    JobStore(BucketStore(bucket), "next-0123456789ab").write("assets-next.json", listed)
    report = clean_storage(bucket, dry_run=False)
    assert report.assets.objects == 0
    assert store.read(assets["old only"]) == b"old only"


@pytest.mark.long
def test_clean_storage_from_its_deployment(api: FarmClient, bucket: S3Bucket) -> None:
    """The deployment is there; its run has a name, and an artifact with a row for each job."""
    JobStore(BucketStore(bucket), OLD).write("chunks/000000.json", b"{}")
    bucket.credentials.save("clean-credentials", overwrite=True)
    bucket.save("clean-storage", overwrite=True)
    run = api.submit("clean-storage/local", storage="s3-bucket/clean-storage", older_than_days=0)
    assert run.state is not None
    assert run.state.is_completed(), run.state.message
    assert run.name == "look through storage"
    [artifact] = api.artifacts(run)
    assert f"| `{OLD}` | 1 | 2 Bytes | 0.0 | old |" in artifact["data"]
    assert len(keys(bucket)) == 1
