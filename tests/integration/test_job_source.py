"""Where a job comes from: an object, JSON, a file, https, S3."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from jobs import save_job, small_job
from prefect_aws.s3 import S3Bucket
from storage_samples import S3Server

from prefect_renderfarm.blocks import (
    JobError,
    LocalAdapter,
)
from prefect_renderfarm.flows import render_job
from prefect_renderfarm.flows.jobs.load import load_job


@pytest.mark.usefixtures("api")
def test_job_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job is taken as an object, parsed JSON, JSON text or a path, with its default folder."""
    monkeypatch.chdir(tmp_path)
    job = small_job(total_frames=3)
    path = save_job(tmp_path / "film", job)
    for given, folder in (
        (job, tmp_path / "renderfarm-jobs" / job.key),
        (json.loads(job.to_json()), tmp_path / "renderfarm-jobs" / job.key),
        (job.to_json(), tmp_path / "renderfarm-jobs" / job.key),
        (str(path), tmp_path / "film"),
        ("film/job.json", tmp_path / "film"),
    ):
        report = render_job(given, adapter=LocalAdapter())
        assert report.job_dir == folder
        assert report.frames == 3


@contextmanager
def serve(answer: dict[str, bytes], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve files by path over HTTP(S) on the loopback interface; give the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answer.get(self.path.split("?")[0])
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def certificate(folder: Path) -> Path:
    """Make a certificate for 127.0.0.1 and its key, in one file."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "farm test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


def test_job_by_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job is read from an https:// URL; what is not there, or is no job, is refused."""
    pem = certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    monkeypatch.setenv("RENDERFARM_URL_HOSTS", "127.0.0.1")
    job = small_job()
    with serve({"/job.json": job.to_json().encode(), "/page": b"<html>"}, tls) as url:
        assert load_job(f"{url}/job.json", deployed=True) == (job, None)
        with pytest.raises(JobError, match="404"):
            load_job(f"{url}/other.json")
        with pytest.raises(JobError, match=r"/page.*not JSON"):
            load_job(f"{url}/page")


def test_job_by_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job is read from an s3:// URL with the worker's own credentials."""
    job = small_job()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with serve({"/farm/film/job.json": job.to_json().encode()}) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        assert load_job("s3://farm/film/job.json", deployed=True) == (job, None)
        with pytest.raises(JobError, match=r"s3://farm/no\.json"):
            load_job("s3://farm/no.json")


def test_job_by_s3_as_the_storage(
    bucket: S3Bucket, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job in the storage's bucket, or on its server, is read with the storage's credentials."""
    job, other = small_job(), s3.new_bucket()
    for block in (bucket, other):
        block.write_path("film.json", job.to_json().encode())
    own, elsewhere = (f"s3://{block.bucket_name}/film.json" for block in (bucket, other))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert load_job(own, block=bucket) == (job, None)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.url)
    assert load_job(elsewhere, block=bucket) == (job, None)
    with pytest.raises(JobError, match="cannot be fetched"):
        load_job(own)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(JobError, match="cannot be fetched"):
        load_job(elsewhere, block=bucket)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("/no/such/job.json", ["/no/such/job.json", "cannot be read"]),
        ("job.json", ["'job.json'", "relative path", "worker's folder", "absolute"]),
        ("ftp://host/job.json", ["https:// and s3://"]),
        ("http://host/job.json", ["https:// and s3://"]),
        ("{not json", ["not JSON"]),
        ('{"chunks": []}', ["metadata is missing"]),
    ],
)
def test_unreadable_jobs(source: str, words: list[str]) -> None:
    """What cannot be read is refused by its name, with the reason."""
    with pytest.raises(JobError) as caught:
        load_job(source, deployed=True)
    for word in words:
        assert word in str(caught.value)
