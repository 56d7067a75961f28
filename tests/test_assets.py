"""A job's input files: sent once, laid out in every workspace, never out of it."""

from __future__ import annotations

import io
import logging
import os
import shutil
import socketserver
import ssl
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from certificates import write_certificate
from jobs import clip_command, small_job
from prefect_aws.s3 import S3Bucket

from prefect_renderfarm.blocks import (
    FatalWorkerError,
    JobError,
    LocalAdapter,
    RemuxStitcher,
    StorageError,
    WorkerLost,
    WorkStopped,
    asset_cache,
    asset_sources,
)
from prefect_renderfarm.blocks.archive import unpack
from prefect_renderfarm.blocks.asset_cache import AssetCache
from prefect_renderfarm.blocks.asset_url import local_folder
from prefect_renderfarm.blocks.assets import AssetFile, AssetList, lay_out, read_list, send_assets
from prefect_renderfarm.blocks.job_store import JobStore
from prefect_renderfarm.blocks.object_store import ObjectStore
from prefect_renderfarm.flows import RenderJob, plan_job, render_chunks, render_job

STRANGE = ['it\'s "quoted".txt', "日本語 é.txt", "new\nline", "-rf", "back\\slash", "a b/ç/$HOME"]
GO = threading.Event()
LIST = "renderfarm/film-0123456789ab/assets.json"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test a folder for temporary files of its own, and so a cold cache."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def store(bucket: S3Bucket) -> JobStore:
    """Return a job's place in an empty bucket."""
    return JobStore(bucket, "film-0123456789ab")


@dataclass
class Travels:
    """Which objects went to the storage, and which came from it."""

    sent: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)


@pytest.fixture
def travels(monkeypatch: pytest.MonkeyPatch) -> Travels:
    """Take down what travels."""
    found = Travels()
    upload, download = ObjectStore.upload, ObjectStore.download

    def uploading(self: ObjectStore, path: Path, key: str) -> None:
        found.sent.append(key)
        upload(self, path, key)

    def downloading(self: ObjectStore, key: str, path: Path) -> None:
        found.fetched.append(key)
        download(self, key, path)

    monkeypatch.setattr(ObjectStore, "upload", uploading)
    monkeypatch.setattr(ObjectStore, "download", downloading)
    return found


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files into a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def workspace(tmp_path: Path, name: str = "workspace") -> Path:
    """Make an empty folder."""
    (tmp_path / name).mkdir()
    return tmp_path / name


def test_only_what_changed_travels(store: JobStore, tmp_path: Path, travels: Travels) -> None:
    """Each content travels once, whatever job or name it has; later only what is new."""
    folder = write(tmp_path / "in", {"a": b"1", "deep/b": b"2", "same": b"1"})
    first = send_assets(store, folder, tmp_path)
    assert len(travels.sent) == 2
    written = {found.key: found.modified for found in store.store.objects("renderfarm/assets")}
    assert set(written) == {file.key for file in first.files}
    travels.sent.clear()
    (folder / "deep/b").write_bytes(b"3")
    other = JobStore(store.store.block, "other-0123456789ab")
    second = send_assets(other, folder, tmp_path)
    [changed] = [file.key for file in second.files if file.path == "in/deep/b"]
    assert travels.sent == [changed]
    after = {found.key: found.modified for found in store.store.objects("renderfarm/assets")}
    assert {key: after[key] for key in written} == written
    assert read_list(store.store, f"{other.root}/assets.json") == second
    assert [item.key for item in other.objects()] == [f"{other.root}/assets.json"]


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
    assert list(store.objects()) == []


def test_file_that_changes_while_it_is_sent_is_refused(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is written to meanwhile is named, and its wrong content does not stay."""
    folder = write(tmp_path / "in", {"a": b"1"})
    upload = ObjectStore.upload

    def late(self: ObjectStore, path: Path, key: str) -> None:
        path.write_bytes(b"22")
        upload(self, path, key)

    monkeypatch.setattr(ObjectStore, "upload", late)
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
    lay_out(LIST, store.store, workspace(tmp_path, "one"), GO)
    (tmp_path / "one/a").chmod(0o644)
    (tmp_path / "one/a").write_bytes(b"2")
    lay_out(LIST, store.store, workspace(tmp_path, "two"), GO)
    assert (tmp_path / "two/a").read_bytes() == b"1"
    assert len(travels.fetched) == 2
    assert not leftover.exists()


def test_cache_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was used longest ago goes first; what is needed now stays; so does a strange folder."""
    cache = AssetCache()
    for name, hours in (("aa", 3), ("bb", 2), ("cc", 1)):
        cache.fetch(name, lambda path: path.write_bytes(b"x" * 40), GO)
        used = (cache.folder / name).stat().st_mtime - hours * 3600
        os.utime(cache.folder / name, (used, used))
    monkeypatch.setattr(asset_cache, "_MOST_BYTES", 100)
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


def test_folder_of_a_bucket(bucket: S3Bucket, tmp_path: Path, travels: Travels) -> None:
    """`s3://` input is laid out at the workspace's root, once fetched; a key cannot lead out."""
    store = ObjectStore(bucket)
    for key in ("in/put/a", "in/put/deep/b", "in/putty/c"):
        store.write(key, key.encode())
    url = f"s3://{bucket.bucket_name}/in/put"
    for name in ("one", "two"):
        lay_out(url, store, workspace(tmp_path, name), GO)
        assert contents(tmp_path / name) == {"a": b"in/put/a", "deep/b": b"in/put/deep/b"}
    assert sorted(travels.fetched) == ["in/put/a", "in/put/deep/b"]
    with pytest.raises(FatalWorkerError, match="nothing is there"):
        lay_out(f"{url}/none", store, workspace(tmp_path, "three"), GO)
    client: Any = bucket.credentials.get_s3_client()
    client.put_object(Bucket=bucket.bucket_name, Key="in/put/../../x", Body=b"x")
    with pytest.raises(FatalWorkerError, match="outside the workspace"):
        lay_out(url, store, workspace(tmp_path, "four"), GO)


def make_archive(path: Path, files: dict[str, bytes], link: tuple[str, str] | None = None) -> bytes:
    """Return an archive of the kind that the path's ending says; each file may be run."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            for name, data in files.items():
                entry = zipfile.ZipInfo(name)
                entry.external_attr = 0o100755 << 16
                packed.writestr(entry, data)
            if link:
                entry = zipfile.ZipInfo(link[0])
                entry.external_attr = 0o120777 << 16
                packed.writestr(entry, link[1])
    else:
        with tarfile.open(path, "w:gz") as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(data), 0o755
                tar.addfile(member, io.BytesIO(data))
            if link:
                member = tarfile.TarInfo(link[0])
                member.type, member.linkname = tarfile.SYMTYPE, link[1]
                tar.addfile(member)
    return path.read_bytes()


@pytest.mark.parametrize("ending", [".zip", ".tar.gz"])
def test_archive_cannot_lead_out(tmp_path: Path, ending: str) -> None:
    """Whatever leads out of the workspace is refused, and nothing is written there."""
    for number, name in enumerate(("../x", "/tmp/renderfarm-x", "a/../../x")):  # noqa: S108
        archive = tmp_path / f"{number}{ending}"
        make_archive(archive, {"fine": b"1", name: b"2"})
        with pytest.raises(FatalWorkerError, match="outside the workspace"):
            unpack(archive, workspace(tmp_path, f"w{number}"), GO)
        assert not (tmp_path / "x").exists()
        assert not Path("/tmp/renderfarm-x").exists()  # noqa: S108
    archive = tmp_path / f"link{ending}"
    make_archive(archive, {}, link=("out", "/etc"))
    with pytest.raises(FatalWorkerError, match="'out' is a symbolic link"):
        unpack(archive, workspace(tmp_path, "wl"), GO)


@dataclass
class Web:
    """A web server: what it answers."""

    url: str
    body: bytes = b""
    status: int = 200
    etag: str = '"1"'


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """Run a web server with https on loopback."""
    certificate = write_certificate(tmp_path / "certificate.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("RENDERFARM_URL_HOSTS", "localhost")
    answers = Web("")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers.status)
            self.send_header("Content-Length", str(len(answers.body)))
            self.send_header("ETag", answers.etag)
            self.end_headers()
            self.wfile.write(answers.body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        answers.url = f"https://localhost:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield answers
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("ending", [".zip", ".tar.gz"])
def test_archive_on_the_web(
    web: Web, bucket: S3Bucket, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive is fetched once for each version of it, and unpacked for every chunk."""
    store = ObjectStore(bucket)
    url = f"{web.url}/in{ending}?secret=s3cret"
    packed = make_archive(tmp_path / f"a{ending}", {"a": b"1", "deep/b": b"2"})
    web.body = packed
    lay_out(url, store, workspace(tmp_path, "one"), GO)
    web.body = bytes(len(packed))  # of the same version: not looked at
    lay_out(url, store, workspace(tmp_path, "two"), GO)
    for name in ("one", "two"):
        assert contents(tmp_path / name) == {"a": b"1", "deep/b": b"2"}
        assert os.access(tmp_path / name / "a", os.X_OK)
    web.etag = '"2"'
    with pytest.raises(FatalWorkerError, match=r"cannot be unpacked") as caught:
        lay_out(url, store, workspace(tmp_path, "three"), GO)
    assert "s3cret" not in str(caught.value)
    web.body, web.etag = packed, '"3"'
    monkeypatch.setattr(asset_sources, "_MOST_ARCHIVE_BYTES", len(packed) - 1)
    with pytest.raises(FatalWorkerError, match="has more than"):
        lay_out(url, store, workspace(tmp_path, "four"), GO)
    for status, kind in ((404, FatalWorkerError), (503, WorkerLost)):
        web.status = status
        with pytest.raises(kind, match=f"the server answered {status}"):
            lay_out(url, store, workspace(tmp_path, str(status)), GO)


def with_assets(job: RenderJob, url: str) -> RenderJob:
    """Return a job with input files."""
    return RenderJob.model_validate(job.model_dump() | {"assets_url": url})


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gs://bucket/in", "scheme 'gs'.*s3://bucket/prefix"),
        ("http://example.invalid/in.zip", "scheme 'http'.*https://"),
        ("https://example.invalid/in", "archive"),
        ("s3://bucket", "a folder in a bucket"),
        ("nowhere", "is no folder on the machine that runs the flow"),
        ("file://elsewhere/in", "on host 'elsewhere'"),
    ],
)
def test_bad_assets_url_is_refused_before_any_chunk(
    bucket: S3Bucket, tmp_path: Path, url: str, message: str
) -> None:
    """What workers cannot fetch is refused with the fix, and nothing runs."""
    job = with_assets(small_job(f"--fail-once '{tmp_path / 'ran'}'"), url)
    with pytest.raises(JobError, match=message):
        render_job(job, adapter=LocalAdapter(), storage=bucket, job_dir=tmp_path / "job")
    assert not (tmp_path / "ran").exists()


TOOL = """#!/bin/sh
[ "$(cat assets/look.txt)" = "$1" ] || exit 3
shift
exec "$@"
"""


@pytest.mark.usefixtures("api")
def test_commands_read_and_run_input(bucket: S3Bucket, tmp_path: Path, travels: Travels) -> None:
    """Commands find a program and a file; other runs, from elsewhere, find the same by the key."""
    job_dir = write(tmp_path / "job", {"assets/tool": TOOL.encode(), "assets/look.txt": b"noir"})
    (job_dir / "assets/tool").chmod(0o755)
    job = plan_job(
        12, 24, chunks=3, id="noir", command_template=f"assets/tool noir {clip_command()}"
    )
    report = render_job(
        with_assets(job, "assets"), adapter=LocalAdapter(), storage=bucket, job_dir=job_dir,
        stitcher=RemuxStitcher(), output_file=Path("assets/film.mp4"),
    )  # fmt: skip
    assert report.frames == 12
    assert len([key for key in travels.fetched if "/assets/" in key]) == 2
    shutil.rmtree(job_dir / "assets")
    done = render_chunks(report.key, [1], LocalAdapter(), bucket, tmp_path / "elsewhere")
    assert [chunk.id for chunk in done] == [1]


@pytest.mark.usefixtures("api")
def test_shared_folder_needs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a storage, input is where it is; a warning says that other input is not fetched."""
    monkeypatch.setattr(logging.getLogger("prefect"), "propagate", True)
    write(tmp_path, {"in/a": b"1"})
    for url, said in (("in", False), ("s3://bucket/in", True)):
        job = with_assets(small_job(total_frames=1, chunks=1), url)
        render_job(job, adapter=LocalAdapter(), job_dir=tmp_path)
        assert (f"assetsUrl {url!r} is not fetched" in caplog.text) == said


@pytest.mark.usefixtures("api")
def test_what_the_job_makes_is_no_input(bucket: S3Bucket, tmp_path: Path) -> None:
    """With the job folder itself as input, chunks, film and records do not travel as input."""
    job = with_assets(small_job(), ".")
    made = dict.fromkeys(("film.mp4", job.chunks[0].output_file, ".renderfarm/x"), b"old")
    job_dir = write(tmp_path / "job", {"scene.txt": b"1", "chunks/look.txt": b"2"} | made)
    report = render_job(
        job, adapter=LocalAdapter(), storage=bucket, job_dir=job_dir,
        stitcher=RemuxStitcher(), output_file=Path("film.mp4"),
    )  # fmt: skip
    listed = read_list(ObjectStore(bucket), f"renderfarm/{report.key}/assets.json")
    assert [file.path for file in listed.files] == ["chunks/look.txt", "scene.txt"]
    assert (job_dir / "film.mp4").read_bytes() != b"old"
