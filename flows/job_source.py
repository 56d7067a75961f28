"""Where a job spec comes from: an object, JSON, a file, or a URL."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from prefect_renderfarm.blocks import JobError
from prefect_renderfarm.blocks.download import DownloadFailed, open_download
from prefect_renderfarm.blocks.excerpt import excerpt, one_line
from prefect_renderfarm.blocks.url_guard import UrlRefused, UrlRules, public_part
from prefect_renderfarm.flows.job import RenderJob
from prefect_renderfarm.flows.job_fields import require_plain
from prefect_renderfarm.flows.job_text import MOST_BYTES, parse_spec, require_size
from prefect_renderfarm.flows.parameters import relative_path_message

# From the request to the last byte: the largest spec at 1 MB a second.
_FETCH_SECONDS = 100.0
_S3_CLIENT = Config(connect_timeout=10, read_timeout=30, retries={"total_max_attempts": 3})
_PART_BYTES = 1 << 20
# A path or URL is worth more of a line than other values.
_SHOWN = 200


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
