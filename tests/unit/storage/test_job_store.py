"""What is known of a job's chunks: manifests, files, logs, in a folder and in a storage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import pytest

from prefect_renderfarm.blocks.errors import (
    AssemblyError,
    ObjectMissing,
    SetupError,
    StorageError,
    StorageRefused,
)
from prefect_renderfarm.blocks.storage.job_store import JobStore
from prefect_renderfarm.blocks.storage.manifest import ChunkResult, content
from prefect_renderfarm.blocks.storage.objects import FolderStore

KEY = "film-0123456789ab"


class RemoteStore(FolderStore):
    """A store that is reached by sending and fetching, as a storage is."""

    root: ClassVar[str] = "renderfarm"
    in_place: ClassVar[bool] = False


@pytest.fixture(params=[FolderStore, RemoteStore])
def jobs(request: pytest.FixtureRequest, tmp_path: Path) -> JobStore:
    """Return a job's objects: in the shared folder, or in a storage."""
    return JobStore(request.param(tmp_path / "job"), KEY)


@pytest.fixture
def remote(tmp_path: Path) -> JobStore:
    """Return a job's objects in a storage."""
    return JobStore(RemoteStore(tmp_path / "storage"), KEY)


def chunk(folder: Path, number: int = 0, identity: str = "a", data: bytes = b"one") -> ChunkResult:
    """Write a chunk's file, and return what is known of it."""
    path = folder / f"{number}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    size, sha256 = content(path) or (0, "")
    return ChunkResult(
        id=number, identity=identity, start_frame=number, frame_count=1, output_file=path.name,
        path=path, size=size, sha256=sha256, seconds=1.0,
    )  # fmt: skip


def test_first_manifest_counts(jobs: JobStore, tmp_path: Path) -> None:
    """Of two attempts at a chunk the first one counts; both are told so."""
    first = jobs.publish(chunk(tmp_path / "job", data=b"one"), b"log")
    second = jobs.publish(chunk(tmp_path / "other", data=b"two"), b"log")
    assert second == first
    assert jobs.manifest(0) == first
    assert first.sha256 == chunk(tmp_path / "job").sha256


def test_manifest_of_another_cache_key_is_replaced(jobs: JobStore, tmp_path: Path) -> None:
    """A chunk whose inputs have changed is done anew under its new cache key."""
    jobs.publish(chunk(tmp_path / "job", identity="old"), b"")
    assert jobs.manifest(0, "new") is None
    new = jobs.publish(chunk(tmp_path / "job", identity="new", data=b"two"), b"")
    assert new.identity == "new"
    assert jobs.manifest(0, "new") == new
    assert jobs.manifest(0, "old") is None


def test_manifest_that_cannot_be_read_is_replaced(jobs: JobStore, tmp_path: Path) -> None:
    """Half a manifest is none, and keeps no chunk from being done."""
    jobs.write("chunks/000000.json", b'{"id": 0')
    assert jobs.manifest(0) is None
    jobs.publish(chunk(tmp_path / "job"), b"")
    assert jobs.manifest(0) is not None


def test_store_without_conditional_requests(
    jobs: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them manifests are written all the same; the first one that is seen counts."""

    def refuse(*_: object) -> bool:
        raise SetupError("cannot create an object on condition")

    monkeypatch.setattr(FolderStore, "create", refuse)
    first = jobs.publish(chunk(tmp_path / "job"), b"")
    assert jobs.publish(chunk(tmp_path / "other", data=b"two"), b"") == first


def test_done_and_forgotten(jobs: JobStore, tmp_path: Path) -> None:
    """A chunk counts as done by its manifest, until that is forgotten, for other jobs, too."""
    for number in (0, 2):
        jobs.publish(chunk(tmp_path / "job", number, f"key {number}"), b"")
    assert jobs.done(range(4)) == {0, 2}
    assert set(jobs.manifests(range(4))) == {0, 2}
    other = JobStore(jobs.store, "other-0123456789ab")
    jobs.forget({0: "key 0"})
    assert jobs.done(range(4)) == {2}
    assert other.take_over("key 0", 7, tmp_path / "job" / "0.mp4") is None
    taken = other.take_over("key 2", 7, tmp_path / "job" / "2.mp4")
    assert taken is not None
    assert (taken.id, other.done([7])) == (7, {7})


def test_taken_over_file_is_a_copy(remote: JobStore, tmp_path: Path) -> None:
    """What is taken over from another job stays when that one is deleted; a lost file is said."""
    first = remote.publish(chunk(tmp_path / "a"), b"the log")
    other = JobStore(remote.store, "other-0123456789ab")
    taken = other.take_over("a", 5, tmp_path / "b" / "5.mp4")
    assert taken is not None
    assert taken.stored_as != first.stored_as
    assert other.store.read(str(taken.log)) == b"the log"
    remote.delete_chunks()
    other.fetch(taken, tmp_path / "b" / "5.mp4")
    assert (tmp_path / "b" / "5.mp4").read_bytes() == b"one"
    other.delete_chunks()
    with pytest.raises(ObjectMissing):
        JobStore(remote.store, "third-0123456789ab").take_over("a", 0, tmp_path / "c")


def test_faults_of_files(jobs: JobStore, tmp_path: Path) -> None:
    """A finished chunk whose file is gone or altered is found."""
    results = [
        jobs.publish(chunk(tmp_path / "job", n, f"key {n}"), b"").model_copy(
            update={"path": tmp_path / "job" / f"{n}.mp4"}
        )
        for n in range(3)
    ]
    assert jobs.faults(results) == {}
    files = [
        result.path if jobs.store.in_place else tmp_path / "job" / str(result.stored_as)
        for result in results
    ]
    files[0].unlink()
    files[1].write_bytes(b"longer than before")
    assert jobs.faults(results) == {0: "its file is gone", 1: "its file was altered"}


def test_file_that_is_newer_than_its_manifest(remote: JobStore, tmp_path: Path) -> None:
    """A stored file of the same size that was written long after its manifest is altered."""
    result = remote.publish(chunk(tmp_path), b"")
    stored = tmp_path / "storage" / str(result.stored_as)
    manifest = tmp_path / "storage" / remote.root / "chunks" / "000000.json"
    at = manifest.stat().st_mtime
    os.utime(stored, (at + 4, at + 4))  # clocks differ
    assert remote.faults([result]) == {}
    os.utime(stored, (at + 60, at + 60))
    assert remote.faults([result]) == {0: "its file was altered"}


def test_fetched_file_is_checked(remote: JobStore, tmp_path: Path) -> None:
    """A stored file that is not what was rendered is refused, and its chunk rendered again."""
    result = remote.publish(chunk(tmp_path), b"")
    target = tmp_path / "here" / "0.mp4"
    remote.fetch(result, target)
    assert target.read_bytes() == b"one"
    target.unlink()
    (tmp_path / "storage" / str(result.stored_as)).write_bytes(b"two")
    with pytest.raises(AssemblyError, match=r"returned \(3, '.*run render-job again"):
        remote.fetch(result, target)
    assert remote.done([0]) == set()


def test_file_in_a_shared_folder_is_checked(tmp_path: Path) -> None:
    """A shared file is not fetched: it is as it was rendered, or refused."""
    jobs = JobStore(FolderStore(tmp_path), KEY)
    result = jobs.publish(chunk(tmp_path), b"")
    jobs.fetch(result, result.path)
    result.path.write_bytes(b"two")
    with pytest.raises(AssemblyError, match="has changed since it was rendered"):
        jobs.fetch(result, result.path)
    result.path.unlink()
    with pytest.raises(AssemblyError, match="is missing"):
        jobs.fetch(result, result.path)


def test_short_upload_is_noticed(
    remote: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A storage that takes a file without an error, and keeps a part of it, fails the chunk."""
    upload = RemoteStore.upload

    def short(self: RemoteStore, path: Path, key: str) -> None:
        upload(self, path, key)
        (self.folder / key).write_bytes(b"o")

    monkeypatch.setattr(RemoteStore, "upload", short)
    with pytest.raises(StorageError, match="of 3 bytes and has 1 of them"):
        remote.publish(chunk(tmp_path), b"")
    assert remote.manifest(0) is None


def test_wrong_storage_is_refused(jobs: JobStore) -> None:
    """A storage that has no such job is not the one that the job was sent to."""
    with pytest.raises(StorageRefused, match=r"has no '.*/job\.json'"):
        jobs.require_job()
    jobs.write("job.json", b"{}")
    jobs.require_job()


@pytest.mark.parametrize("output", ["frames", "frames/%04d.png", "frames/0001.png"])
def test_images_travel_one_by_one(remote: JobStore, tmp_path: Path, output: str) -> None:
    """The images of a sequence are stored, checked, taken over and fetched under their names."""
    count = 1 if output.endswith("0001.png") else 3
    names = tuple(f"{number:04d}.png" for number in range(1, count + 1))
    (tmp_path / "frames").mkdir()
    for name in names:
        (tmp_path / "frames" / name).write_bytes(name.encode())
    size, sha256 = content(tmp_path / output) or (0, "")
    result = remote.publish(
        chunk(tmp_path).model_copy(
            update={"path": tmp_path / output, "size": size, "sha256": sha256, "images": names}
        )
    )
    assert remote.faults([result]) == {}
    other = JobStore(remote.store, "other-0123456789ab")
    taken = other.take_over("a", 4, tmp_path / "there" / output)
    assert taken is not None
    remote.delete_chunks()
    assert remote.faults([result]) == {0: "its file is gone"}
    other.fetch(taken, taken.path)
    fetched = sorted(path.name for path in (tmp_path / "there" / "frames").iterdir())
    assert fetched == list(names)
    assert content(taken.path) == (size, sha256)


def test_object_that_exists_is_not_sent(remote: JobStore, tmp_path: Path) -> None:
    """A file that a worker has put into the storage itself counts where it is."""
    remote.write("out/0.mp4", b"one")
    key = f"{remote.root}/out/0.mp4"
    result = remote.publish(chunk(tmp_path).model_copy(update={"stored_as": key}), b"log")
    assert (result.stored_as, remote.manifest(0)) == (key, result)
    assert remote.store.read(str(result.log)) == b"log"
    remote.fetch(result, tmp_path / "here.mp4")
    assert (tmp_path / "here.mp4").read_bytes() == b"one"


def test_thumbnail_is_beside_the_manifest(jobs: JobStore, tmp_path: Path) -> None:
    """Its key is in the manifest; it goes with the chunk, and a chunk is as good without."""
    done = jobs.publish(chunk(tmp_path / "job"), b"log", b"jpeg")
    assert done.thumbnail is not None
    assert jobs.store.read(done.thumbnail) == b"jpeg"
    assert jobs.manifest(0, "a") == done
    assert jobs.publish(chunk(tmp_path / "job", 1), b"log").thumbnail is None
    jobs.delete_chunks()
    assert jobs.store.read(done.thumbnail) is None


def test_thumbnail_that_cannot_be_written(
    jobs: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chunk counts all the same."""
    write = FolderStore.write

    def full(self: FolderStore, key: str, data: bytes) -> None:
        if key.endswith(".jpg"):
            raise OSError("no space left")
        write(self, key, data)

    monkeypatch.setattr(FolderStore, "write", full)
    assert jobs.publish(chunk(tmp_path / "job"), b"log", b"jpeg").thumbnail is None
    assert jobs.done([0]) == {0}
