"""Where a job spec comes from: an object, JSON, a file, a URL, or an earlier run of the job."""

from __future__ import annotations

import os
import re
import stat
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from prefect.blocks.abstract import ObjectStorageBlock
from prefect_aws.s3 import S3Bucket

from prefect_renderfarm.blocks.errors import JobError
from prefect_renderfarm.blocks.http.client import DownloadFailed, open_download
from prefect_renderfarm.blocks.http.url_rules import UrlRefused, UrlRules, public_part
from prefect_renderfarm.blocks.runtime.text import excerpt, one_line
from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.blocks.storage.job_store import JobStore
from prefect_renderfarm.flows.jobs.checks import RECORDS, relative_path_message, require_plain
from prefect_renderfarm.flows.jobs.spec import (
    MOST_BYTES,
    RenderJob,
    is_key,
    parse_spec,
    require_size,
)
from prefect_renderfarm.flows.results import RenderReport

# From the request to the last byte: the largest spec at 1 MB a second.
_FETCH_SECONDS = 100.0
_S3_CLIENT = Config(connect_timeout=10, read_timeout=30, retries={"total_max_attempts": 3})


def file_of(source: Any) -> Path | None:
    """Return the path of the file that a job comes from; None: it does not come from a file."""
    if not isinstance(source, str):
        return None
    text = _text(source)
    return None if text.startswith("{") or "://" in text else Path(text).absolute()


def load_job(
    source: Any, *, deployed: bool = False, block: ObjectStorageBlock | None = None
) -> tuple[RenderJob, Path | None]:
    """Return a job, checked and read within limits of size and time, and the folder of its file.

    The source is a `RenderJob`, its parsed JSON, its JSON text, the path of a file, or an
    `https://` or `s3://` URL. S3 is read with the storage block's credentials where the URL is of
    its server, else with the worker's own; `UrlRules` says which URLs are read. In a deployed run
    a relative path is refused. Raises: JobError, SetupError.
    """
    data, name, folder = _read(source, deployed, block)
    return _validated(data, name), folder


def load_earlier_job(
    source: Any, job_dir: Path | None, *, deployed: bool = False,
    block: ObjectStorageBlock | None = None,
) -> tuple[RenderJob, Path | None]:  # fmt: skip
    """Return a job that was rendered before, and its folder, if that is known.

    The source is one of `load_job`; a `RenderReport`, its JSON or its file; or an id in `job_dir`.
    """
    if isinstance(source, RenderReport):
        return _of_report(source, job_dir)
    if job_dir is not None and isinstance(source, str):
        name = source.strip()
        if re.fullmatch(r"[^/{}:]+", name) and not name.endswith(".json"):
            return _find_by_id(name, job_dir), job_dir
    data, name, folder = _read(source, deployed, block)
    local = not isinstance(source, str) or folder is not None or _text(source).startswith("{")
    if local and isinstance(data, dict) and "job_dir" in data:
        try:
            report = RenderReport.model_validate(data)
        except ValueError as error:
            raise JobError(f"{name or 'job'}: no report of render-job: {one_line(error)}") from None
        return _of_report(report, job_dir)
    return _validated(data, name), folder


def _read(
    source: Any, deployed: bool, block: ObjectStorageBlock | None
) -> tuple[Any, str, Path | None]:
    """Return the values of a job spec or a report, its name in errors, and its file's folder."""
    if not isinstance(source, str):
        return source, "", None
    require_size(len(source), "job")
    text = _text(source)
    if text.startswith("{"):
        return parse_spec(text, "job"), "job", None
    # A signed URL's secret is in its query, and the name goes into messages.
    name = f"job {excerpt(public_part(text), 200)}"
    if (path := file_of(source)) is not None:
        if deployed and not Path(text).is_absolute():
            raise JobError(relative_path_message("job", text))
        return parse_spec(_read_file(path, name), name), name, path.parent
    try:
        require_plain(text)  # what reads URLs leaves line ends out
    except ValueError as error:
        raise JobError(f"{name}: {error}") from None
    scheme = text.partition("://")[0].lower()
    if scheme not in ("https", "s3"):
        raise JobError(f"{name}: only https:// and s3:// URLs are read")
    data = _read_s3(text, name, block) if scheme == "s3" else _read_https(text, name)
    return parse_spec(data, name), name, None


def _text(source: str) -> str:
    return source.strip().removeprefix("\ufeff")


def _validated(data: Any, name: str) -> RenderJob:
    try:
        return RenderJob.model_validate(data)
    except JobError as error:
        raise JobError(f"{name}: {error}" if name else str(error)) from None


def _read_file(path: Path, name: str) -> bytes:
    """Return what is in a file, but not in a pipe or a device, which have no end."""
    cannot = f"{name} cannot be read on the machine that runs the flow"
    no_file = JobError(f"{cannot}: it is no file")
    try:
        with open(  # without waiting for a writer of a pipe
            path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
        ) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise no_file
            require_size(found.st_size, name)
            data = file.read(MOST_BYTES + 1)  # it may grow meanwhile
    except IsADirectoryError:
        raise no_file from None
    except JobError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or half a character
        raise JobError(f"{cannot}: {getattr(error, 'strerror', one_line(error))}") from None
    require_size(len(data), name)
    return data


def _read_https(url: str, name: str) -> bytes:
    try:
        with open_download(url, MOST_BYTES, _FETCH_SECONDS) as download:
            return b"".join(download.parts())
    except DownloadFailed as error:
        raise JobError(f"{name} cannot be fetched: {error}") from None


def _read_s3(url: str, name: str, block: ObjectStorageBlock | None) -> bytes:
    deadline = time.monotonic() + _FETCH_SECONDS
    try:
        parts = urlsplit(url)
        UrlRules().require_bucket(parts.netloc)
        client = _s3_client(parts.netloc, block)
        answer = client.get_object(Bucket=parts.netloc, Key=parts.path.lstrip("/"))
        require_size(answer["ContentLength"], name)
        data = bytearray()
        for part in answer["Body"].iter_chunks(1 << 20):
            data += part
            require_size(len(data), name)
            if time.monotonic() > deadline:
                raise TimeoutError(f"it took longer than {_FETCH_SECONDS:g} s")
    except JobError:
        raise
    except (BotoCoreError, ClientError, Boto3Error, OSError, UrlRefused, ValueError) as error:
        raise JobError(f"{name} cannot be fetched: {one_line(error)}") from None
    return bytes(data)


def _s3_client(bucket: str, block: Any) -> Any:
    """Return the client of a storage block, else that of the environment.

    The block is asked for its own bucket, and for others of the server that the environment names.
    """
    session = boto3.Session()
    if not isinstance(block, S3Bucket):
        return session.client("s3", config=_S3_CLIENT)
    client = block.credentials.get_s3_client()
    if bucket == block.bucket_name:
        return client
    own = session.client("s3", config=_S3_CLIENT, region_name=client.meta.region_name)
    return client if client.meta.endpoint_url == own.meta.endpoint_url else own


def find_in_storage(job: Any, block: ObjectStorageBlock | None) -> RenderJob | None:
    """Return the job of a key, such as `film-1a2b3c4d5e6f`; None if `job` is no key."""
    if block is None or not isinstance(job, str) or not is_key(job.strip()):
        return None
    store = JobStore(BucketStore(block), job.strip())
    data = store.read("job.json")
    if data is None:
        raise JobError(
            f"job {job.strip()!r}: no such job was rendered through this storage, "
            f"{store.store.name}, as it is reached from here: check the name of the bucket, and "
            "the credentials, region and endpoint of this machine"
        )
    return RenderJob.model_validate_json(data)


def _of_report(report: RenderReport, job_dir: Path | None) -> tuple[RenderJob, Path]:
    name = f"job {excerpt(report.job)}"
    if not is_key(report.key):  # it is the name of a folder
        raise JobError(f"{name}: its report has key {excerpt(report.key)}, which is none")
    folder = job_dir or report.job_dir
    return _recorded(folder / RECORDS / report.key / "job.json", name), folder


def _find_by_id(name: str, folder: Path) -> RenderJob:
    # An edited job has several keys: the one that was run last is meant.
    records = (folder / RECORDS).glob("*/job.json")
    for path in sorted(records, key=lambda path: path.stat().st_mtime, reverse=True):
        job = _recorded(path, f"job {excerpt(name)}")
        if name in (job.id, job.key):
            return job
    raise JobError(
        f"job {excerpt(name)}: no job with this id was rendered in {str(folder)!r}: give another "
        "job_dir, or the absolute path of the job"
    )


def _recorded(path: Path, name: str) -> RenderJob:
    return RenderJob.model_validate_json(_read_file(path, f"{name}: {str(path)!r}"))
