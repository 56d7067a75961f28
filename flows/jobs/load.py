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

from prefect_renderfarm.blocks.errors import JobError
from prefect_renderfarm.blocks.http.download import DownloadFailed, open_download
from prefect_renderfarm.blocks.http.url_rules import UrlRefused, UrlRules, public_part
from prefect_renderfarm.blocks.runtime.text import excerpt, one_line
from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.blocks.storage.job_store import JobStore
from prefect_renderfarm.flows.jobs.checks import RECORDS
from prefect_renderfarm.flows.jobs.fields import require_plain
from prefect_renderfarm.flows.jobs.parse import MOST_BYTES, parse_spec, require_size
from prefect_renderfarm.flows.jobs.spec import RenderJob, is_key
from prefect_renderfarm.flows.results import RenderReport

# From the request to the last byte: the largest spec at 1 MB a second.
_FETCH_SECONDS = 100.0
_S3_CLIENT = Config(connect_timeout=10, read_timeout=30, retries={"total_max_attempts": 3})
_PART_BYTES = 1 << 20
# A path or URL is worth more of a line than other values.
_SHOWN = 200
# Characters that tell a report from a job spec, which may be large.
_BEGINNING = 4000


def file_of(source: Any) -> Path | None:
    """Return the path of the file that a job comes from; None: it does not come from a file."""
    text = _text(source) if isinstance(source, str) else "{"
    return None if text.startswith("{") or "://" in text else Path(text).absolute()


def _text(source: str) -> str:
    return source.strip().removeprefix("\ufeff")


def load_job(source: Any, *, deployed: bool = False) -> tuple[RenderJob, Path | None]:
    """Read and check a job spec, within limits of size and time.

    Args:
        source: A `RenderJob`, its parsed JSON, its JSON text, the path of a file, or an `https://`
            or `s3://` URL. S3 is read with the worker's own AWS credentials; which URLs are read
            at all, `url_guard` says.
        deployed: Whether the run was started through a deployment, where a relative path would
            mean the worker's folder.

    Returns:
        The job, and the folder of its file if it came from a file.

    Raises:
        JobError: It cannot be read, or is no valid job spec; the message names it.
        SetupError: It is not known which URLs may be read.
    """
    if isinstance(source, RenderJob):
        return source, None
    if not isinstance(source, str):
        return RenderJob.model_validate(source), None
    require_size(len(source), "job")
    text = _text(source)
    if text.startswith("{"):
        return _parse(text, "job"), None
    # A signed URL's secret is in its query, and the name goes into messages.
    name = f"job {excerpt(public_part(text), _SHOWN)}"
    scheme = text.partition("://")[0].lower() if "://" in text else None
    if scheme is not None:
        _require_plain_url(text, name)  # what reads URLs leaves line ends out
    if scheme == "https":
        return _parse(_read_https(text, name), name), None
    if scheme == "s3":
        return _parse(_read_s3(text, name), name), None
    if scheme is not None:
        raise JobError(f"{name}: only https:// and s3:// URLs are read")
    path = Path(text)
    if deployed and not path.is_absolute():
        raise JobError(relative_path_message("job", text))
    path = path.absolute()
    return _parse(read_limited(path, name), name), path.parent


def read_limited(path: Path, name: str) -> bytes:
    """Return what is in a file, if that is not too much.

    Args:
        path: Its absolute path.
        name: What it is, in errors.

    Raises:
        JobError: It cannot be read, is larger than a job spec, or is no file: a pipe or a device
            has no end.
    """
    cannot = f"{name} cannot be read on the machine that runs the flow"
    try:
        # Not waiting for whoever might write into a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise JobError(f"{cannot}: {error.strerror}") from None
    except ValueError as error:  # a NUL in the path, or half a character
        raise JobError(f"{cannot}: {one_line(error)}") from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise JobError(f"{cannot}: it is no file")
        require_size(found.st_size, name)
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(MOST_BYTES + 1)  # it may grow meanwhile
    except OSError as error:
        raise JobError(f"{cannot}: {error.strerror}") from None
    finally:
        os.close(descriptor)
    require_size(len(data), name)
    return data


def _require_plain_url(url: str, name: str) -> None:
    try:
        require_plain(url)
    except ValueError as error:
        raise JobError(f"{name}: {error}") from None


def _parse(text: str | bytes, name: str) -> RenderJob:
    data = parse_spec(text, name)
    try:
        return RenderJob.model_validate(data)
    except JobError as error:
        raise JobError(f"{name}: {error}") from None


def _read_https(url: str, name: str) -> bytes:
    try:
        with open_download(url, MOST_BYTES, _FETCH_SECONDS) as download:
            return b"".join(download.parts())
    except DownloadFailed as error:
        raise JobError(f"{name} cannot be fetched: {error}") from None


def _read_s3(url: str, name: str) -> bytes:
    deadline = time.monotonic() + _FETCH_SECONDS
    try:
        parts = urlsplit(url)
        UrlRules.of().require_bucket(parts.netloc)
        client = boto3.Session().client("s3", config=_S3_CLIENT)
        answer = client.get_object(Bucket=parts.netloc, Key=parts.path.lstrip("/"))
        require_size(answer["ContentLength"], name)
        data = bytearray()
        for part in answer["Body"].iter_chunks(_PART_BYTES):
            data += part
            require_size(len(data), name)
            _require_time(deadline, name)
    except JobError:
        raise
    except (BotoCoreError, ClientError, Boto3Error, UrlRefused, ValueError) as error:
        raise JobError(f"{name} cannot be fetched: {one_line(error)}") from None
    return bytes(data)


def _require_time(deadline: float, name: str) -> None:
    if time.monotonic() > deadline:
        raise JobError(f"{name} cannot be fetched: it took longer than {_FETCH_SECONDS:g} s")


def relative_path_message(parameter: str, value: str) -> str:
    """Say why a relative path is refused in a deployed run."""
    return (
        f"{parameter} {excerpt(value)} is a relative path: in a deployed run it would mean the "
        "worker's folder, not yours; give an absolute path"
    )


def find_in_storage(job: Any, block: ObjectStorageBlock | None) -> RenderJob | None:
    """Find the job that a key stands for; None if `job` is something else.

    Args:
        job: The key of a job that was rendered through the storage, such as `film-1a2b3c4d5e6f`.
        block: The storage block; None: there is none.

    Raises:
        JobError: It is no spec that is found there.
    """
    if block is None or not isinstance(job, str) or not is_key(job.strip()):
        return None
    job = job.strip()
    store = JobStore(BucketStore(block), job)
    data = store.read("job.json")
    if data is None:
        raise JobError(
            f"job {job!r}: no such job was rendered through this storage, {store.store.name}, as "
            "it is reached from here: check the name of the bucket, and the credentials, region "
            "and endpoint of this machine"
        )
    return RenderJob.model_validate_json(data)


def find_stored_job(job: Any, job_dir: Path | None) -> tuple[RenderJob, Path] | None:
    """Find the job that a report or an id stands for.

    Args:
        job: A `RenderReport`, its JSON, or the absolute path of its file; or the id of a job that
            was rendered in `job_dir`.
        job_dir: The job folder.

    Returns:
        The job and its folder; None if `job` is something else.

    Raises:
        JobError: It is a report or an id, but there is no such job in the folder.
    """
    report = _as_report(job)
    if report is not None:
        name = f"job {excerpt(report.job)}"
        if not is_key(report.key):  # it is the name of a folder
            raise JobError(f"{name}: its report has key {excerpt(report.key)}, which is none")
        folder = job_dir or report.job_dir
        return _read(folder / RECORDS / report.key / "job.json", name), folder
    if job_dir is not None and isinstance(job, str) and re.fullmatch(r"[^/{}:]+", job.strip()):
        name = job.strip()
        if not name.endswith(".json"):
            return _find_by_id(name, job_dir), job_dir
    return None


def _as_report(job: Any) -> RenderReport | None:
    if isinstance(job, RenderReport):
        return job
    if isinstance(job, str):
        text = job.strip()
        beginning = _beginning(Path(text)) if text.startswith("/") else text[:_BEGINNING]
        # Its first lines tell it from a job spec, which may be large.
        if not beginning.startswith("{") or '"job_dir"' not in beginning:
            return None
        name = f"report {excerpt(text)}"
        job = parse_spec(text if text.startswith("{") else read_limited(Path(text), name), name)
    if not isinstance(job, dict) or "job_dir" not in job:
        return None
    try:
        return RenderReport.model_validate(job)
    except ValueError as error:
        raise JobError(f"the report is none of render-job's: {one_line(error)}") from None


def _beginning(path: Path) -> str:
    """Return the first lines of a file; none if it cannot be read, or is none."""
    try:
        if not path.is_file():  # a pipe or a device has no end
            return ""
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_BEGINNING).lstrip()
    except (OSError, ValueError):
        return ""


def _find_by_id(name: str, folder: Path) -> RenderJob:
    found = []
    for path in (folder / RECORDS).glob("*/job.json"):
        job = _read(path, f"job {excerpt(name)}")
        if name in (job.id, job.key):
            found.append((path.stat().st_mtime, path, job))
    if not found:
        raise JobError(
            f"job {excerpt(name)}: no job with this id was rendered in {str(folder)!r}: give "
            "another job_dir, or the absolute path of the job"
        )
    # A job that was edited has several keys: the last one that was run is meant.
    return max(found)[2]


def _read(path: Path, name: str) -> RenderJob:
    return RenderJob.model_validate_json(read_limited(path, f"{name}: {str(path)!r}"))
