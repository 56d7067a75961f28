"""Uploads cut off, full disks, wrong credentials, at every adapter: a film, or one clear error."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from farm_client import FarmClient
from faulty_proxy import Fault, faulty_proxy
from faulty_storage import DENIED, FaultyStorage, Work, described, fill, make_work
from http_samples import HttpWorker, working
from lambda_server import LambdaServer
from media_samples import frame_hashes
from prefect_aws.s3 import S3Bucket
from storage_samples import S3Server, keys, serving

from prefect_renderfarm.blocks import (
    AssemblyError,
    LocalAdapter,
    RemuxStitcher,
    SetupError,
    StorageError,
    StorageRefused,
    WorkerAdapter,
    WorkerLost,
    WorkPoolAdapter,
)
from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.blocks.storage.job_store import JobStore
from prefect_renderfarm.flows import RenderReport, merge_job, render_job
from prefect_renderfarm.flows.state.job_state import JobState

KINDS = ["local", "lambda", "http", "work-pool"]
LATER = {kind: pytest.param(kind, marks=pytest.mark.long) for kind in KINDS}
REFUSED = {"bucket": "lambda", "credentials": "http", "read-only": "http"}
DISK_BYTES = 96_000_000


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Mount a small disk for the workers' temporary files; without leave, give a folder."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    yield folder
    if mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="module")
def faulty(s3: S3Server, disk: Path) -> Iterator[FaultyStorage]:
    """Start a proxy in front of the S3 server."""
    with faulty_proxy(s3.url) as proxy:
        yield FaultyStorage(s3, proxy, disk)


@pytest.fixture(scope="module")
def worker(faulty: FaultyStorage) -> Iterator[HttpWorker]:
    """Start an HTTP worker that reaches the storage through the proxy."""
    with working(faulty.environment()) as worker:
        yield worker


@pytest.fixture(scope="module")
def function(functions: LambdaServer, faulty: FaultyStorage) -> str:
    """Make a function that reaches the storage through the proxy."""
    return functions.function("renderfarm-faulty", role=faulty.environment())


@pytest.fixture
def storage(faulty: FaultyStorage) -> FaultyStorage:
    """Return the storage; nothing goes wrong until a test says so."""
    faulty.reset()
    return faulty


@pytest.fixture
def adapter(
    kind: str, storage: FaultyStorage, s3: S3Server, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> WorkerAdapter:  # fmt: skip
    """Return an adapter of a kind, whose worker is up and goes through the proxy."""
    if kind == "lambda":
        functions: LambdaServer = request.getfixturevalue("functions")
        functions.proxy.fail()
        return functions.adapter(request.getfixturevalue("function"))
    if kind == "http":
        worker: HttpWorker = request.getfixturevalue("worker")
        return worker.wait_until_ready().adapter()
    if kind == "work-pool":
        for name, value in s3.environment().items():
            monkeypatch.setenv(name, value)
        variables = {"env": storage.environment()}
        return WorkPoolAdapter(chunks_per_run=3, poll_seconds=0.2, job_variables=variables)
    monkeypatch.setattr(tempfile, "tempdir", str(storage.temporary))
    return LocalAdapter()


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """Return a job; its command for chunk 1 fills the disk once, if the file `fill` is there."""
    return make_work(tmp_path)


def render(
    work: Work, adapter: WorkerAdapter, block: S3Bucket, folder: Path, **options: Any
) -> RenderReport:
    """Render and stitch a job, one chunk at a time."""
    given: dict[str, Any] = {"concurrency": 1, "retry_delay": 0, "output_file": "film.mp4"}
    return render_job(
        work.job, adapter=adapter, storage=block, stitcher=RemuxStitcher(), job_dir=folder / "job",
        **(given | options),
    )  # fmt: skip


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("kind", [LATER["lambda"], LATER["local"], "http", LATER["work-pool"]])
def test_broken_uploads_are_repeated(
    kind: str, adapter: WorkerAdapter, storage: FaultyStorage, work: Work, bucket: S3Bucket,
    tmp_path: Path,
) -> None:  # fmt: skip
    """An upload is cut off, another ends up short: a second attempt each, and the exact film."""
    storage.proxy.fail(Fault.CUT_OFF, Fault.CUT_OFF, matching="/000000/")  # the SDK asks twice
    storage.short = ["/000001/"]
    report = render(work, adapter, storage.block(bucket, kind), tmp_path, retries=1)
    cut = [request for request, how in storage.proxy.requests if how is Fault.CUT_OFF]
    assert [request.method for request in cut] == ["PUT", "PUT"]
    assert all(0 < len(put.body) < int(put.header("Content-Length")) for put in cut)
    assert work.begun() == [0, 0, 1, 1, 2]
    assert [chunk.attempts for chunk in report.chunks] == [2, 2, 1]
    assert frame_hashes(tmp_path / "job" / "film.mp4") == work.frames
    there = {
        found.key: found.size for found in BucketStore(bucket).objects(f"renderfarm/{report.key}")
    }
    assert {there[str(chunk.stored_as)] == chunk.size for chunk in report.chunks} == {True}


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("kind", ["http", LATER["work-pool"]])
def test_storage_that_loses_bytes_fails_the_job(
    kind: str, adapter: WorkerAdapter, storage: FaultyStorage, work: Work, bucket: S3Bucket,
    tmp_path: Path,
) -> None:  # fmt: skip
    """A file that is never stored whole: an error names its chunk; no manifest of it, no film."""
    storage.short = ["/000001/"] * 100
    with pytest.raises((StorageError, WorkerLost), match=r"^chunk 1: .*took .* bytes and has "):
        render(work, adapter, storage.block(bucket, kind), tmp_path, retries=1)
    assert JobStore(BucketStore(bucket), work.job.key).done(range(3)) == {0}
    assert not (tmp_path / "job" / "film.mp4").exists()
    assert work.begun() == [0, 1, 1] + ([1, 1] * 2 if kind == "work-pool" else [])


@pytest.mark.long
@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("kind", ["local", *(LATER[kind] for kind in KINDS[1:])])
def test_full_disk_of_a_worker(
    kind: str, adapter: WorkerAdapter, storage: FaultyStorage, work: Work, bucket: S3Bucket,
    api: FarmClient, tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """No room before a chunk, at its input, at its output: the disk is named, and tried again."""
    disk = storage.temporary
    if not disk.is_mount():
        pytest.skip("a small disk can only be mounted by root")
    (tmp_path / "fill").touch()
    ballast = fill(disk, leave=10_000_000)

    def on_attempt(number: int) -> None:
        if number > 1:
            ballast.unlink()
            storage.on_input = (lambda: fill(disk)) if number == 2 else (lambda: None)

    storage.on_attempt = on_attempt
    render(work, adapter, storage.block(bucket, kind), tmp_path, retries=2)
    assert storage.attempts == 3
    assert work.begun() == [0, 1, 1, 2]
    assert frame_hashes(tmp_path / "job" / "film.mp4") == work.frames
    log = api.farm.state / "worker-cloud.log"
    told = log.read_text() if kind == "work-pool" else caplog.text
    for chunk, words in [
        (0, r"the worker's disk at '{disk}.*' has only 9,\d{3},\d{3} bytes free"),
        (0, r"asset '.*': the worker's disk refuses it: .*No space left on device: '{disk}"),
        (1, r"its command ended with exit code 1: .*No space left.*; the disk at '{disk}' has 0 "),
    ]:
        words = words.replace("{disk}", re.escape(str(disk)))
        assert re.search(rf"chunk {chunk}: worker \S+: {words}", told), told


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("variable", ["TMPDIR", pytest.param("TMP", marks=pytest.mark.long)])
def test_full_disk_at_the_start_of_a_worker(
    storage: FaultyStorage, work: Work, bucket: S3Bucket, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, variable: str,
) -> None:  # fmt: skip
    """TMPDIR is full already, and Python would take /tmp: nothing is rendered there."""
    disk = storage.temporary
    if not disk.is_mount():
        pytest.skip("a small disk can only be mounted by root")
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setenv(variable, str(disk))
    monkeypatch.setattr(tempfile, "tempdir", None)
    fill(disk)
    assert tempfile.gettempdir() != str(disk)
    with pytest.raises(
        WorkerLost, match=rf"disk at '{disk}' has only [\d,]+ bytes free: free some"
    ):
        render(work, LocalAdapter(), bucket, tmp_path)
    assert work.begun() == []


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, S3Server]]:
    """Start an S3 server with another secret, and one with no bucket."""
    folder = tmp_path_factory.mktemp("other-s3")
    with serving(folder / "secret", "an0ther") as secret, serving(folder / "bucket") as bucket:
        yield {"credentials": secret, "bucket": bucket}


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize(
    ("kind", "trouble"),
    [
        pytest.param(kind, trouble, marks=[] if kind == usual else pytest.mark.long)
        for trouble, usual in REFUSED.items()
        for kind in KINDS[1:]
    ],
)
def test_worker_that_the_storage_refuses(
    kind: str, trouble: str, adapter: WorkerAdapter, storage: FaultyStorage, work: Work,
    bucket: S3Bucket, others: dict[str, S3Server], tmp_path: Path,
) -> None:  # fmt: skip
    """A worker has wrong credentials, no bucket, or may not write: one error, of one attempt."""
    if trouble == "read-only":
        storage.proxy.gate = lambda request: DENIED if request.method == "PUT" else None
    else:
        storage.proxy.target = others[trouble].url
    with pytest.raises((StorageRefused, SetupError), match=r"storage s3-bucket") as caught:
        render(work, adapter, storage.block(bucket, kind), tmp_path, retries=2)
    assert "check the name of the bucket, and the credentials" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert storage.s3.secret not in str(caught.value)
    if kind != "work-pool":  # whose runs come to no chunk
        assert str(caught.value).startswith("chunk 0: worker ")
    if trouble == "read-only":
        assert work.begun() == [0]
        return
    assert work.begun() == []
    asked = [request.path for request, _ in storage.proxy.requests]
    assert len([path for path in asked if path.endswith("/job.json")]) == 1


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("kind", ["http", "work-pool"])
def test_storage_is_checked_before_any_chunk(
    kind: str, adapter: WorkerAdapter, storage: FaultyStorage, work: Work, bucket: S3Bucket,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Wrong credentials or no bucket where the job is started: one line, and no worker begins."""
    wrong = bucket.model_copy(update={"credentials": storage.s3.credentials("wr0ng")})
    nowhere = bucket.model_copy(update={"bucket_name": "no-such-bucket"})
    for block in (wrong, nowhere):
        with pytest.raises(SetupError, match=r"^storage s3-bucket '.*check the name") as caught:
            render(work, adapter, block, tmp_path)
        assert "\n" not in str(caught.value)
    assert (work.begun(), storage.proxy.requests, keys(bucket)) == ([], [], [])


@pytest.mark.long
@pytest.mark.usefixtures("api")
def test_damaged_chunk_is_rendered_anew(
    storage: FaultyStorage, work: Work, bucket: S3Bucket, tmp_path: Path
) -> None:
    """A stored file that has changed is not assembled, and does not count as done any more."""
    report = render(work, LocalAdapter(), bucket, tmp_path, merge=False)
    store = JobStore(BucketStore(bucket), report.key)
    name = str(report.chunks[1].stored_as)
    data = store.store.read(name) or b""
    store.store.write(name, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(AssemblyError, match=r"^chunk 1: storage .* run render-job again"):
        merge_job(
            report.key, stitcher=RemuxStitcher(), output_file=tmp_path / "film.mp4",
            storage=bucket, job_dir=tmp_path / "elsewhere",
        )  # fmt: skip
    assert not (tmp_path / "film.mp4").exists()
    assert store.done(range(3)) == {0, 2}
    render(work, LocalAdapter(), bucket, tmp_path)
    assert work.begun() == [0, 1, 2, 1]
    assert frame_hashes(tmp_path / "job" / "film.mp4") == work.frames


@pytest.mark.long
def test_large_upload_is_cut_off(
    storage: FaultyStorage, bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that travels in parts, one of them cut off, is not there; sent again, it is whole."""
    monkeypatch.setattr("prefect_renderfarm.blocks.storage.bucket._MOST_IN_ONE_PART", 10_000_000)
    path = tmp_path / "00000.mp4"
    path.write_bytes(os.urandom(20_000_000))
    store = JobStore(BucketStore(storage.block(bucket, "local")), "film-0123456789ab")
    storage.proxy.fail(*[Fault.CUT_OFF] * 2, matching="partNumber=2")
    with pytest.raises(StorageError, match=r"cannot write 'renderfarm/film-"):
        store.publish(described(path, 0), b"")
    assert keys(bucket) == []
    store.fetch(store.publish(described(path, 0), b""), tmp_path / "copy.mp4")
    assert (tmp_path / "copy.mp4").read_bytes() == path.read_bytes()


def test_full_disk_where_the_film_is_made(
    storage: FaultyStorage, work: Work, bucket: S3Bucket
) -> None:
    """A chunk that finds no room on the machine that assembles: chunk, file and disk are named."""
    disk = storage.temporary
    if not disk.is_mount():
        pytest.skip("a small disk can only be mounted by root")
    folder = JobState(disk / "job", work.job, bucket)
    folder.objects.publish(described(work.clips[1], 1), b"")
    ballast = fill(disk)
    told = rf"^chunk 1: its file '{disk}/job/.*' cannot be written: No space left .*'{disk}' has 0 "
    with pytest.raises(AssemblyError, match=told):
        folder.fetch_chunk(work.job.chunks[1])
    ballast.unlink()
    path = folder.fetch_chunk(work.job.chunks[1]).path
    assert path.read_bytes() == work.clips[1].read_bytes()
