"""A job's input files: sent once, laid out in every workspace, never out of it."""

from __future__ import annotations

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from asset_samples import Travels, contents, workspace, write
from prefect_aws.s3 import S3Bucket

from prefect_renderfarm.blocks import (
    FatalWorkerError,
    JobError,
    StorageError,
    WorkerLost,
    WorkStopped,
)
from prefect_renderfarm.blocks.assets import workspace as asset_workspace
from prefect_renderfarm.blocks.assets.inputs import (
    AssetFile,
    AssetList,
    lay_out,
    local_folder,
    read_list,
    send_assets,
)
from prefect_renderfarm.blocks.assets.workspace import AssetCache
from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.blocks.storage.job_store import JobStore

STRANGE = ['it\'s "quoted".txt', "日本語 é.txt", "new\nline", "-rf", "back\\slash", "a b/ç/$HOME"]
pytestmark = pytest.mark.usefixtures("temporary")

GO = threading.Event()
LIST = "renderfarm/film-0123456789ab/assets.json"


@pytest.fixture
def store(bucket: S3Bucket) -> JobStore:
    """Return a job's place in an empty bucket."""
    return JobStore(BucketStore(bucket), "film-0123456789ab")


def test_only_what_changed_travels(store: JobStore, tmp_path: Path, travels: Travels) -> None:
    """Each content travels once, whatever job or name it has; later only what is new."""
    folder = write(tmp_path / "in", {"a": b"1", "deep/b": b"2", "same": b"1"})
    first = send_assets(store, folder, tmp_path)
    assert len(travels.sent) == 2
    written = {found.key: found.modified for found in store.store.objects("renderfarm/assets")}
    assert set(written) == {file.key for file in first.files}
    travels.sent.clear()
    (folder / "deep/b").write_bytes(b"3")
    other = JobStore(store.store, "other-0123456789ab")
    second = send_assets(other, folder, tmp_path)
    [changed] = [file.key for file in second.files if file.path == "in/deep/b"]
    assert travels.sent == [changed]
    after = {found.key: found.modified for found in store.store.objects("renderfarm/assets")}
    assert {key: after[key] for key in written} == written
    assert read_list(store.store, f"{other.root}/assets.json") == second
    assert [item.key for item in other.store.objects(other.root)] == [f"{other.root}/assets.json"]


def test_files_arrive_as_they_were(store: JobStore, tmp_path: Path) -> None:
    """Content, folders, executable bits and the strangest names arrive; links as what they name."""
    folder = write(tmp_path / "in", {name: name.encode() * 1000 for name in STRANGE})
    write(folder, {"big": os.urandom(17_000_000), "empty": b"", "bin/tool": b"#!/bin/sh\nexit 7\n"})
    (folder / "bin/tool").chmod(0o755)
    (folder / "bin/link").symlink_to("../empty")
    (folder / "again").symlink_to("a b")
    write(folder, {f".film.{'0' * 32}.part.mp4": b"half a film"})
    send_assets(store, folder, tmp_path / "elsewhere", lambda path: path.name == "-rf")
    here = workspace(tmp_path)
    lay_out(f"{store.root}/assets.json", store.store, here, GO)
    wanted = contents(folder) | {"again/ç/$HOME": (folder / "a b/ç/$HOME").read_bytes()}
    for left_out in ("-rf", f".film.{'0' * 32}.part.mp4"):
        del wanted[left_out]
    assert contents(here) == wanted
    assert os.access(here / "bin/tool", os.X_OK)
    assert not os.access(here / "big", os.X_OK)
    assert not any(path.is_symlink() for path in here.rglob("*"))


def test_folder_in_the_job_folder_keeps_its_place(store: JobStore, tmp_path: Path) -> None:
    """A folder in the job folder is found under its name, one elsewhere at the root."""
    inner = write(tmp_path / "job" / "scenes" / "in", {"a": b"1"})
    outer = write(tmp_path / "out", {"b": b"2"})
    job_dir = tmp_path / "job"
    (job_dir / "link").symlink_to(outer)
    for url, folder, paths in [
        ("scenes/in", inner, ["scenes/in/a"]),
        (str(inner), inner, ["scenes/in/a"]),
        (f"{job_dir}/x/../scenes", job_dir / "scenes", ["scenes/in/a"]),
        ("link", job_dir / "link", ["link/b"]),
        (outer.as_uri(), outer, ["b"]),
        ("../out", outer, ["b"]),
    ]:
        found = local_folder(url, job_dir)
        assert found == folder
        sent = send_assets(store, found, job_dir)
        assert [file.path for file in sent.files] == paths, url


def test_what_is_no_input_is_refused(store: JobStore, tmp_path: Path) -> None:
    """Links out of the folder or in a circle, pipes and unreadable names: nothing is sent."""
    write(tmp_path, {"secret": b"x", "in/a": b"1"})
    folder = tmp_path / "in"
    for make, message in [
        (lambda path: path.symlink_to(tmp_path / "secret"), "is a link out of"),
        (lambda path: path.symlink_to(tmp_path), "is a link out of"),
        (lambda path: path.symlink_to(folder), "is a link to a folder that it is in"),
        (lambda path: path.symlink_to("nowhere"), "is no file"),
        (os.mkfifo, "is no file"),
    ]:
        make(folder / "odd")
        with pytest.raises(JobError, match=message):
            send_assets(store, folder, tmp_path)
        (folder / "odd").unlink()
    os.close(os.open(os.fsencode(folder) + b"/\xff", os.O_CREAT))
    with pytest.raises(JobError, match="not UTF-8"):
        send_assets(store, folder, tmp_path)
    assert list(store.store.objects(store.root)) == []


def test_file_that_changes_while_it_is_sent_is_refused(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is written to meanwhile is named, and its wrong content does not stay."""
    folder = write(tmp_path / "in", {"a": b"1"})
    upload = BucketStore.upload

    def late(self: BucketStore, path: Path, key: str) -> None:
        path.write_bytes(b"22")
        upload(self, path, key)

    monkeypatch.setattr(BucketStore, "upload", late)
    with pytest.raises(JobError, match="changed while it was sent"):
        send_assets(store, folder, tmp_path)
    assert list(store.store.objects("renderfarm/assets")) == []


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", ".", "", "a\0b"])
def test_list_cannot_lead_out_of_the_workspace(
    store: JobStore, tmp_path: Path, path: str, travels: Travels
) -> None:
    """A list with such a path is refused before anything is fetched."""
    files = AssetList(files=(AssetFile(path=path, size=1, sha256="0" * 64),))
    store.write("assets.json", files.model_dump_json().encode())
    with pytest.raises(FatalWorkerError, match="is outside the workspace"):
        lay_out(LIST, store.store, workspace(tmp_path), GO)
    assert travels.fetched == []


def test_list_with_a_path_twice_is_refused(store: JobStore, tmp_path: Path) -> None:
    """A file where another one or its folder is: an error that says so, whichever comes first."""
    sent = send_assets(store, write(tmp_path / "in", {"a": b"1"}), tmp_path / "in")
    for number, path in enumerate(("a", "a/b")):
        both = AssetList(files=(*sent.files, sent.files[0].model_copy(update={"path": path})))
        store.write("assets.json", both.model_dump_json().encode())
        with pytest.raises(FatalWorkerError, match="another asset has that path"):
            lay_out(LIST, store.store, workspace(tmp_path, str(number)), GO)


def test_altered_and_missing_objects_are_found(store: JobStore, tmp_path: Path) -> None:
    """An object that is not what was sent, or not there, is named and not used."""
    [file] = send_assets(store, write(tmp_path / "in", {"a": b"1"}), tmp_path / "in").files
    store.store.write(file.key, b"2")
    with pytest.raises(StorageError, match=rf"asset 'a': '{file.key}' in storage s3-bucket"):
        lay_out(LIST, store.store, workspace(tmp_path, "one"), GO)
    assert contents(tmp_path / "one") == {}
    store.store.delete([file.key])
    with pytest.raises(StorageError, match=f"no object '{file.key}'"):
        lay_out(LIST, store.store, workspace(tmp_path, "two"), GO)
    store.store.delete([LIST])
    with pytest.raises(StorageError, match="no list of assets"):
        lay_out(LIST, store.store, workspace(tmp_path, "three"), GO)


def test_machine_fetches_a_file_once(store: JobStore, tmp_path: Path, travels: Travels) -> None:
    """Eight workers at once fetch each file once between them, and the next one fetches nothing."""
    files = {str(number): bytes([number]) * 100_000 for number in range(12)}
    send_assets(store, write(tmp_path / "in", files), tmp_path / "in")
    folders = [workspace(tmp_path, f"w{number}") for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda folder: lay_out(LIST, store.store, folder, GO), folders))
    assert len(travels.fetched) == len(set(travels.fetched)) == 12
    store.store.delete(set(travels.fetched))
    lay_out(LIST, store.store, workspace(tmp_path, "late"), GO)
    assert all(contents(folder) == files for folder in [*folders, tmp_path / "late"])


def test_damaged_cache_is_noticed(store: JobStore, tmp_path: Path, travels: Travels) -> None:
    """A file that a command wrote to is fetched anew; what a killed worker left is no harm."""
    [file] = send_assets(store, write(tmp_path / "in", {"a": b"1"}), tmp_path / "in").files
    leftover = AssetCache().folder / f".{file.sha256}.{'0' * 32}.part"
    leftover.write_bytes(b"ha")
    os.utime(leftover, (0, 0))
    lay_out(LIST, store.store, workspace(tmp_path, "one"), GO)
    (tmp_path / "one/a").chmod(0o644)
    (tmp_path / "one/a").write_bytes(b"2")
    lay_out(LIST, store.store, workspace(tmp_path, "two"), GO)
    assert (tmp_path / "two/a").read_bytes() == b"1"
    assert len(travels.fetched) == 2
    assert not leftover.exists()


def test_asset_is_fetched_once() -> None:
    """One that another worker drops at once is not fetched a second time: a download is over."""
    fetched: list[Path] = []

    def get(path: Path) -> None:
        path.write_bytes(b"x")
        fetched.append(path)
        path.unlink()

    cache = AssetCache()
    assert [cache.fetch("aa", get, GO)] == fetched


def test_cache_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was used longest ago goes first; what is needed now stays; so does a strange folder."""
    cache = AssetCache()
    for name, hours in (("aa", 3), ("bb", 2), ("cc", 1)):
        cache.fetch(name, lambda path: path.write_bytes(b"x" * 40), GO)
        used = (cache.folder / name).stat().st_mtime - hours * 3600
        os.utime(cache.folder / name, (used, used))
    monkeypatch.setattr(asset_workspace, "_MAX_BYTES", 100)
    cache.make_room(10, {"aa"})
    assert [cache.has(name) for name in ("aa", "bb", "cc")] == [True, False, True]
    os.utime(cache.folder / "cc", (0, 0))
    cache.make_room(0, {"aa"})
    assert [cache.has(name) for name in ("aa", "cc")] == [True, False]
    cache.folder.chmod(0o777)
    with pytest.raises(FatalWorkerError, match="can be written by others"):
        AssetCache()


def test_disk_is_looked_at_before(
    store: JobStore, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch,
    travels: Travels,
) -> None:  # fmt: skip
    """Input that does not fit on the worker's disk is not fetched; the disk is named."""
    send_assets(store, write(tmp_path / "in", {"a": b"1" * 2_000_000}), tmp_path / "in")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=65_000_000))
    with pytest.raises(WorkerLost, match=rf"'{temporary}.* 65,000,000 bytes free, and 2,000,000"):
        lay_out(LIST, store.store, workspace(tmp_path), GO)
    assert travels.fetched == []


def test_stopped_job_fetches_nothing(store: JobStore, tmp_path: Path, travels: Travels) -> None:
    """A job that is stopped lays out no more input."""
    send_assets(store, write(tmp_path / "in", {"a": b"1"}), tmp_path / "in")
    stop = threading.Event()
    stop.set()
    with pytest.raises(WorkStopped):
        lay_out(LIST, store.store, workspace(tmp_path), stop)
    assert travels.fetched == []
