"""Chunks that travel through a storage: a real S3 server, no shared folder."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import httpx
import pytest
from farm_client import FarmClient
from jobs import small_job
from media_samples import frame_hashes
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterType
from prefect.client.schemas.sorting import ArtifactSort
from prefect_aws.s3 import S3Bucket
from storage_jobs import render
from storage_samples import S3Server, keys

from prefect_renderfarm.blocks import (
    AssemblyError,
    LocalAdapter,
    RemuxStitcher,
    RenderFarmError,
    SetupError,
    StorageError,
    StorageRefused,
)
from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.blocks.storage.job_store import JobStore
from prefect_renderfarm.flows import merge_job, render_job


@pytest.fixture
def store(bucket: S3Bucket) -> BucketStore:
    """Return an object store on an empty bucket."""
    return BucketStore(bucket)


def test_objects_are_written_read_listed_deleted(s3: S3Server, tmp_path: Path) -> None:
    """Whatever folder the block has, keys are below it, and only what is named is deleted."""
    for folder in ("", "team/films"):
        block = s3.new_bucket(folder)
        store = BucketStore(block)
        (tmp_path / "file").write_bytes(b"x" * 20_000_000)
        store.upload(tmp_path / "file", "a/file")
        store.write("a/note", b"words")
        store.write("ab/note", b"others")
        assert store.read("a/note") == b"words"
        assert store.read("a/none") is None
        store.download("a/file", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == (tmp_path / "file").read_bytes()
        assert {(found.key, found.size) for found in store.objects("a")} == {
            ("a/file", 20_000_000),
            ("a/note", 5),
        }
        for name in ("c/000000.json", "c/000001.json", "c/000003.json"):
            store.write(name, b"{}")
            for number in range(8):
                store.write(f"{name.removesuffix('.json')}/0/{number}", b"")
        wanted = [f"c/{number:06d}.json" for number in range(5)]
        found = store.find(wanted)
        assert list(found) == [wanted[0], wanted[1], wanted[3]]
        assert {each.size for each in found.values()} == {2}
        assert set(store.find([*wanted[2:], "c/000001/0/7"])) == {wanted[3], "c/000001/0/7"}
        store.delete([each.key for each in store.objects("c")])
        store.delete(["a/note", "a/never"])
        prefix = f"{folder}/" if folder else ""
        assert keys(block) == [f"{prefix}a/file", f"{prefix}ab/note"]


def test_missing_object_leaves_no_file(store: BucketStore, tmp_path: Path) -> None:
    """An object that is not there is named, and nothing is left under the file's name."""
    with pytest.raises(StorageError, match=r"no object 'nothing'"):
        store.download("nothing", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_refusals_are_told_from_failures(s3: S3Server, bucket: S3Bucket) -> None:
    """Wrong secrets and missing buckets are refusals; a server that is not there may come back."""
    wrong = bucket.model_copy(update={"credentials": s3.credentials("wrong")})
    with pytest.raises(StorageRefused, match=r"SignatureDoesNotMatch.*credentials") as caught:
        BucketStore(wrong).write("a", b"")
    assert s3.secret not in str(caught.value)
    nowhere = bucket.model_copy(update={"bucket_name": "no-such-bucket"})
    with pytest.raises(StorageRefused, match=r"no-such-bucket"):
        BucketStore(nowhere).write("a", b"")
    gone = dataclasses.replace(s3, port=9)
    lost = bucket.model_copy(update={"credentials": gone.credentials()})
    with pytest.raises(StorageError) as failed:
        BucketStore(lost).write("a", b"")
    assert not isinstance(failed.value, StorageRefused)


@pytest.mark.usefixtures("api")
def test_job_through_the_storage(bucket: S3Bucket, tmp_path: Path) -> None:
    """Each chunk is rendered in a workspace of its own and comes home with its log."""
    report = render(bucket, tmp_path)
    film = frame_hashes(tmp_path / "film.mp4")
    assert len(film) == 18
    assert report.film == tmp_path / "film.mp4"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".renderfarm", "chunks", "film.mp4"]
    assert list((tmp_path / "chunks").iterdir()) == []  # the copies are gone, the storage has them
    store = JobStore(BucketStore(bucket), report.key)
    for chunk in report.chunks:
        assert chunk.stored_as is not None
        assert chunk.log is not None
        assert b"rendering 6 frames" in (store.store.read(chunk.log) or b"")
        assert chunk.worker
    again = merge_job(
        report.key, stitcher=RemuxStitcher(), output_file=Path("again.mkv"), storage=bucket,
        job_dir=tmp_path / "elsewhere",
    )  # fmt: skip
    assert again.film == tmp_path / "elsewhere" / "again.mkv"  # type: ignore[union-attr]
    assert frame_hashes(tmp_path / "elsewhere" / "again.mkv") == film


@pytest.mark.long
def test_film_goes_into_the_storage(api: FarmClient, bucket: S3Bucket, tmp_path: Path) -> None:
    """A film whose name is a key is in the storage afterwards; a link to it is on the page."""
    report = render(bucket, tmp_path, output_file="storage:films/film.mp4")
    assert str(report.film) == "storage:films/film.mp4"
    assert not (tmp_path / "film.mp4").exists()
    BucketStore(bucket).download("films/film.mp4", tmp_path / "copy.mp4")
    assert len(frame_hashes(tmp_path / "copy.mp4")) == 18
    with SyncPrefectClient(api.farm.api_url) as client:
        newest = client.read_artifacts(
            artifact_filter=ArtifactFilter(type=ArtifactFilterType(any_=["markdown"])),
            sort=ArtifactSort.CREATED_DESC, limit=2,
        )  # fmt: skip
    links = [str(found.data) for found in newest if "the film, for 24 hours" in str(found.data)]
    [url] = re.findall(r"\((http[^)]+)\)", links[0])
    assert httpx.get(url).content == (tmp_path / "copy.mp4").read_bytes()


@pytest.mark.usefixtures("api")
def test_bad_storage_is_refused_before_any_chunk(
    s3: S3Server, bucket: S3Bucket, tmp_path: Path
) -> None:
    """Wrong credentials, a missing bucket, a key without a storage: one line, no chunk."""
    wrong = bucket.model_copy(update={"credentials": s3.credentials("wrong")})
    nowhere = bucket.model_copy(update={"bucket_name": "no-such-bucket"})
    mark = f"--fail-once '{tmp_path / 'ran'}'"
    for block in (wrong, nowhere):
        with pytest.raises(SetupError, match=r"storage s3-bucket"):
            render(block, tmp_path / "job", mark)
    with pytest.raises(RenderFarmError, match=r"no storage is chosen"):
        render(None, tmp_path / "job", mark, output_file="storage:film.mp4")  # type: ignore[arg-type]
    assert not (tmp_path / "ran").exists()


@pytest.mark.long
@pytest.mark.usefixtures("api")
def test_failed_attempt_is_repeated_and_its_log_kept(bucket: S3Bucket, tmp_path: Path) -> None:
    """A chunk that fails once is rendered again; the log of the failure is in the storage."""
    report = render(
        bucket, tmp_path, f"--fail-once '{tmp_path / 'failed'}'", retries=1, concurrency=1,
        retry_delay=0,
    )  # fmt: skip
    assert sorted(chunk.attempts for chunk in report.chunks) == [1, 1, 2]
    assert len([key for key in keys(bucket) if key.endswith("log.txt")]) == 4


@pytest.mark.long
@pytest.mark.usefixtures("api")
def test_altered_object_is_not_assembled(bucket: S3Bucket, tmp_path: Path) -> None:
    """A stored chunk that is not what its manifest says is refused by its number."""
    report = render(bucket, tmp_path, merge=False)
    store = JobStore(BucketStore(bucket), report.key)
    name = report.chunks[1].stored_as or ""
    data = bytearray(store.store.read(name) or b"")
    data[-9] ^= 1
    store.store.write(name, bytes(data))
    with pytest.raises(AssemblyError, match=r"chunk 1: storage"):
        merge_job(
            report.key, stitcher=RemuxStitcher(), output_file=tmp_path / "film.mp4",
            storage=bucket, job_dir=tmp_path / "elsewhere",
        )  # fmt: skip
    assert not (tmp_path / "film.mp4").exists()


@pytest.mark.long
@pytest.mark.usefixtures("api")
def test_clean_up_takes_the_jobs_own_only(bucket: S3Bucket, tmp_path: Path) -> None:
    """Deleting a job's chunks leaves other jobs and other objects alone."""
    first = render(bucket, tmp_path, merge=False)
    second = render_job(
        small_job(id="other"), adapter=LocalAdapter(), storage=bucket, merge=False,
        job_dir=tmp_path / "other",
    )  # fmt: skip
    BucketStore(bucket).write("holiday.jpg", b"")
    before = keys(bucket)
    JobStore(BucketStore(bucket), first.key).delete_chunks()
    left = keys(bucket)
    assert len(before) - len(left) == 12
    assert "holiday.jpg" in left
    assert len([key for key in left if second.key in key and "/chunks/" in key]) == 12
    assert not [key for key in left if first.key in key and "/chunks/" in key]
