"""Servers that jobs name: redirects, endless, slow and packed answers, buckets, proxies."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_web import Asked, HostileWeb, forwarding_proxy
from job_samples import HELIOS, SECRET, archive_refusal, refusal
from prefect_aws.s3 import S3Bucket
from storage_samples import S3Server

from prefect_renderfarm.blocks import FatalWorkerError, JobError, WorkerLost, WorkStopped
from prefect_renderfarm.blocks.assets import archive as asset_archive
from prefect_renderfarm.blocks.assets.archive import lay_out_archive
from prefect_renderfarm.blocks.assets.inputs import (
    files_in_s3,
    local_folder,
    where_assets_are,
)
from prefect_renderfarm.blocks.assets.workspace import AssetCache
from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.flows import RenderJob
from prefect_renderfarm.flows.jobs import load as job_source
from prefect_renderfarm.flows.jobs.load import load_job

JOB = json.dumps(HELIOS).encode()


@pytest.fixture(autouse=True)
def only_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow the hostile server by its name."""
    monkeypatch.setenv("RENDERFARM_URL_HOSTS", "localhost")


def redirect(to: str, body: Callable[[Asked], None] = lambda _: None) -> Callable[[Asked], None]:
    """Return an answer that leads elsewhere."""

    def answer(asked: Asked) -> None:
        asked.send(302, length=0 if body is None else 10**12, Location=to)
        body(asked)

    return answer


def endless(asked: Asked) -> None:
    """Send on and on."""
    while True:
        asked.push(b" " * 65_536)


def test_redirects_are_checked(hostile: HostileWeb, tmp_path: Path) -> None:
    """Where an answer leads is looked at like the first URL; what it says is not read."""
    for number, (to, words) in enumerate(
        [
            (hostile.url("/job.json", "127.0.0.1"), "is not among those of RENDERFARM_URL_HOSTS"),
            ("https://169.254.169.254/latest", "is not among those of RENDERFARM_URL_HOSTS"),
            (f"http://localhost:{hostile.port}/job.json", "without https"),
            ("file:///etc/passwd", "without https"),
            (f"https://user:{SECRET}@localhost/x", "name or password"),
            ("https://[x/", "cannot be fetched"),
            (hostile.url("/0.zip"), "redirected more than 5 times"),
        ]
    ):
        hostile.answers[f"/{number}.zip"] = redirect(to, endless)
        url = hostile.url(f"/{number}.zip?{SECRET}")
        if "redirected" in words:
            hostile.answers["/0.zip"] = redirect(hostile.url("/0.zip"))
        for message in (refusal(lambda: load_job(url)), archive_refusal(url, tmp_path)):  # noqa: B023
            assert words in message
            assert SECRET not in message
    assert ("localhost", "/job.json") not in [(host, path) for host, path in hostile.asked]
    hostile.answers["/moved.json"] = redirect("/job.json")
    hostile.answers["/job.json"] = JOB
    assert load_job(hostile.url("/moved.json"))[0] == RenderJob.model_validate(HELIOS)


def test_redirect_into_this_machine_is_refused_by_default(
    hostile: HostileWeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an allowed server, none leads to an address that would not be fetched itself."""
    monkeypatch.setenv("RENDERFARM_URL_HOSTS", "localhost, *")
    hostile.answers["/job.json"] = redirect(hostile.url("/secrets.json", "127.0.0.1"))
    hostile.answers["/secrets.json"] = JOB
    message = refusal(lambda: load_job(hostile.url("/job.json")))
    assert "is at 127.0.0.1, which is no public address" in message
    assert [path for _, path in hostile.asked] == ["/job.json"]


def packed(asked: Asked) -> None:
    """Send a bomb: 1 MB that holds 1 GB."""
    asked.send(200, gzip.compress(bytes(1_000_000)), Content_Encoding="gzip")


def cut_off(asked: Asked) -> None:
    """Send less than announced."""
    asked.send(200, JOB, length=len(JOB) + 1)


def gigabyte(asked: Asked) -> None:
    """Announce 1 GB and send it."""
    asked.send(200, length=1_000_000_000)
    endless(asked)


def unannounced(asked: Asked) -> None:
    """Send without an end, and without saying so."""
    asked.send_response(200)
    asked.end_headers()
    endless(asked)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (gigabyte, "more than 3,000,000 bytes"),
        (unannounced, "more than 3,000,000 bytes"),
        (packed, "compresses it (gzip)"),
        (cut_off, "cannot be fetched"),
        (
            lambda asked: asked.push(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000),
            "cannot be fetched",
        ),
        (lambda asked: asked.push(b"\xff\x1b[31m" * 1000 + b"\r\n\r\n"), "cannot be fetched"),
        (lambda asked: asked.send(403), "answered 403"),
        (lambda asked: asked.send(204), "not JSON"),
    ],
)
def test_answers_that_are_no_job(
    hostile: HostileWeb, monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[Asked], None], words: str,
) -> None:  # fmt: skip
    """An answer that is too large is not read to its end; others are refused with the reason."""
    monkeypatch.setattr(job_source, "MOST_BYTES", 3_000_000)
    hostile.answers["/job.json"] = answer
    assert words in refusal(lambda: load_job(hostile.url("/job.json")))
    assert hostile.sent < 20_000_000  # what lies in buffers on the way


def slow_headers(asked: Asked) -> None:
    """Send headers byte by byte."""
    asked.push(b"HTTP/1.1 200 OK\r\n")
    while True:
        asked.push(b"x")
        time.sleep(0.1)


def slow_body(asked: Asked) -> None:
    """Send a body byte by byte."""
    asked.send(200, length=1000)
    while True:
        asked.push(b" ")
        time.sleep(0.1)


@pytest.mark.long
@pytest.mark.parametrize("answer", [slow_headers, slow_body, lambda _: time.sleep(20)])
def test_time_is_limited_as_a_whole(
    hostile: HostileWeb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[Asked], None],
) -> None:  # fmt: skip
    """A server that always sends a little holds nobody up: there is one limit for all of it."""
    monkeypatch.setattr(job_source, "_FETCH_SECONDS", 1.0)
    monkeypatch.setattr(asset_archive, "_ARCHIVE_SECONDS", 1.0)
    hostile.answers["/a.zip"] = answer
    started = time.monotonic()
    assert "took longer than 1 s" in refusal(lambda: load_job(hostile.url("/a.zip")))
    cache = AssetCache(tmp_path / "cache")
    with pytest.raises(WorkerLost, match="took longer than 1 s"):
        lay_out_archive(hostile.url("/a.zip"), tmp_path, cache, threading.Event())
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(WorkStopped):
        lay_out_archive(hostile.url("/a.zip"), tmp_path, cache, stop)
    assert time.monotonic() - started < 6


def test_behind_a_proxy_only_listed_names(
    hostile: HostileWeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy looks names up by itself: only those are asked of it that are listed."""
    hostile.answers["/job.json"] = JOB
    names: list[str] = []
    with forwarding_proxy(names) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        monkeypatch.setenv("NO_PROXY", "")
        assert load_job(hostile.url("/job.json"))[0].chunks
        assert names == [f"localhost:{hostile.port}"]
        for hosts in ("*", "127.0.0.0/8"):
            monkeypatch.setenv("RENDERFARM_URL_HOSTS", hosts)
            assert "behind a proxy" in refusal(lambda: load_job(hostile.url("/job.json")))
    assert len(names) == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://[", "Invalid IPv6 URL"),
        ("s3://", "Parameter validation failed"),
        ("s3://farm", "Parameter validation failed"),
        ("s3://a b/c", "Invalid bucket name"),
        (f"s3://farm\n{SECRET}/c?{SECRET}", "control character, U+000A"),
        ("S3://other/x", "is not among those of RENDERFARM_URL_HOSTS"),
    ],
)
def test_odd_s3_urls(monkeypatch: pytest.MonkeyPatch, url: str, words: str) -> None:
    """What names no object, or a bucket that is not for jobs, is refused in one line."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    if "other" in url:
        monkeypatch.setenv("RENDERFARM_URL_HOSTS", "s3://farm, s3://team-*")
    assert words in refusal(lambda: load_job(url))


def test_large_objects_and_other_buckets(
    s3: S3Server, bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object that is too large is not read, and input of a bucket that is not listed is not."""
    store = BucketStore(bucket)
    store.write("job.json", JOB)
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    url = f"s3://{bucket.bucket_name}"
    assert load_job(f"{url}/job.json")[0].chunks
    monkeypatch.setattr("prefect_renderfarm.flows.jobs.spec.MOST_BYTES", len(JOB) - 1)
    assert "is it a job spec?" in refusal(lambda: load_job(f"{url}/job.json"))
    monkeypatch.setenv("RENDERFARM_URL_HOSTS", "s3://another")
    with pytest.raises(FatalWorkerError, match="is not among those of RENDERFARM_URL_HOSTS"):
        files_in_s3(url + "/in", store)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://[x/a.zip", "is no URL"),
        ("s3://[x/a", "is no URL"),
        ("file://[x/a", "is no URL"),
        ("https:///a.zip", "names no input files"),
        (f"https://u:{SECRET}@host/a.zip?{SECRET}#{SECRET}", "name or password"),
        ("file:///%00", "NUL character"),
        (f"file:///{'x' * 300}", "is no folder"),
        ("javascript://x", "scheme 'javascript'"),
    ],
)
def test_odd_input(tmp_path: Path, url: str, words: str) -> None:
    """`assetsUrl` is refused in one line if it cannot be used, and its secret is not shown."""

    def use() -> None:
        local_folder(url, tmp_path)
        where_assets_are(url, "renderfarm/x")

    message = refusal(use)
    assert words in message
    assert SECRET not in message


def test_folders_outside_can_be_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `file` among the schemes, no input is taken from outside of the job folder."""
    folder, outside = tmp_path / "job", tmp_path / "outside"
    (folder / "in").mkdir(parents=True)
    outside.mkdir()
    (folder / "link").symlink_to(outside)
    names = [str(outside), "../outside", "link", outside.as_uri(), "/etc", "/none"]
    assert local_folder("../outside", folder) == outside
    monkeypatch.setenv("RENDERFARM_URL_SCHEMES", "https,s3")
    for name in names:
        assert "RENDERFARM_URL_SCHEMES" in refusal(lambda: local_folder(name, folder))  # noqa: B023
    assert local_folder("in", folder) == folder / "in"
    monkeypatch.setenv("RENDERFARM_URL_SCHEMES", "file")
    for url in ("https://example.com/job.json", "s3://farm/job.json"):
        with pytest.raises(JobError, match="URLs are not allowed here"):
            load_job(url)
