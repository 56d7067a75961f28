"""Input files that workers fetch themselves, from a bucket or the web; and jobs that have any."""

from __future__ import annotations

import io
import logging
import os
import shutil
import socketserver
import ssl
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from asset_samples import Travels, contents, workspace, write
from certificates import write_certificate
from jobs import clip_command, small_job
from prefect_aws.s3 import S3Bucket

from prefect_renderfarm.blocks import (
    FatalWorkerError,
    JobError,
    LocalAdapter,
    RemuxStitcher,
    WorkerLost,
)
from prefect_renderfarm.blocks.assets import archive as asset_archive
from prefect_renderfarm.blocks.assets.archive import unpack
from prefect_renderfarm.blocks.assets.inputs import lay_out, read_list
from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.flows import RenderJob, plan_job, render_chunks, render_job
from prefect_renderfarm.flows.state.job_state import JobState

pytestmark = pytest.mark.usefixtures("temporary")

GO = threading.Event()


def test_folder_of_a_bucket(bucket: S3Bucket, tmp_path: Path, travels: Travels) -> None:
    """`s3://` input is laid out at the workspace's root, once fetched; a key cannot lead out."""
    store = BucketStore(bucket)
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
    store = BucketStore(bucket)
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
    monkeypatch.setattr(asset_archive, "_MAX_ARCHIVE_BYTES", len(packed) - 1)
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
@pytest.mark.long
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


@pytest.mark.long
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
    listed = read_list(BucketStore(bucket), f"renderfarm/{report.key}/assets.json")
    assert [file.path for file in listed.files] == ["chunks/look.txt", "scene.txt"]
    assert (job_dir / "film.mp4").read_bytes() != b"old"


def test_each_run_renders_its_own_input(bucket: S3Bucket, tmp_path: Path) -> None:
    """What a later run of the same job sends does not reach the workers of an earlier one."""
    job = small_job().model_copy(update={"assets_url": "in"})
    first, second, batch = (JobState(tmp_path / "job", job, bucket) for _ in range(3))
    for folder, data in ((first, b"old"), (second, b"new")):
        write(tmp_path / "job" / "in", {"texture": data})
        folder.prepare()
        folder.identify(LocalAdapter())
    batch.inputs = first.inputs  # as render-job tells its runs on work pools
    for folder, data in ((first, b"old"), (second, b"new"), (batch, b"old")):
        here = tmp_path / uuid4().hex
        here.mkdir()
        lay_out(folder.assets or "", BucketStore(bucket), here, threading.Event())
        assert (here / "in" / "texture").read_bytes() == data
