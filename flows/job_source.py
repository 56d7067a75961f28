"""Where a job spec comes from: an object, JSON, a file, or a URL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import httpx
from botocore.exceptions import BotoCoreError, ClientError

from prefect_renderfarm.blocks import JobError
from prefect_renderfarm.flows.job import RenderJob
from prefect_renderfarm.flows.parameters import relative_path_message

# 100,000 chunks with commands of 500 characters fit; a file of another kind is not read to its end.
_MAX_BYTES = 100_000_000
_TIMEOUT_SECONDS = 30.0


def load_job(source: Any, *, deployed: bool = False) -> tuple[RenderJob, Path | None]:
    """Read and check a job spec.

    Args:
        source: A `RenderJob`, its parsed JSON, its JSON text, the path of a file, or an `https://`
            or `s3://` URL. S3 is read with the worker's own AWS credentials.
        deployed: Whether the run was started through a deployment, where a relative path would
            mean the worker's folder.

    Returns:
        The job, and the folder of its file if it came from a file.

    Raises:
        JobError: It cannot be read, or is no valid job spec; the message names it.
    """
    if isinstance(source, RenderJob):
        return source, None
    if not isinstance(source, str):
        return RenderJob.model_validate(source), None
    text = source.strip()
    if text.startswith("{"):
        return _parse(text, "job"), None
    # A signed URL's secret is in its query, and the name goes into messages.
    name = f"job {text.partition('?')[0]!r}"
    if text.startswith("https://"):
        return _parse(_read_https(text, name), name), None
    if text.startswith("s3://"):
        return _parse(_read_s3(text, name), name), None
    if "://" in text:
        raise JobError(f"{name}: only https:// and s3:// URLs are read")
    path = Path(text)
    if deployed and not path.is_absolute():
        raise JobError(relative_path_message("job", text))
    path = path.absolute()
    return _parse(_read_file(path, name), name), path.parent


def _parse(text: str | bytes, name: str) -> RenderJob:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise JobError(f"{name} is not JSON: {error}") from None
    try:
        return RenderJob.model_validate(data)
    except JobError as error:
        raise JobError(f"{name}: {error}") from None


def _too_large(name: str) -> JobError:
    return JobError(f"{name} has more than {_MAX_BYTES:,} bytes: is it a job spec?")


def _read_file(path: Path, name: str) -> bytes:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise _too_large(name)
        return path.read_bytes()
    except OSError as error:
        raise JobError(
            f"{name} cannot be read on the machine that runs the flow: {error.strerror}"
        ) from None


def _read_https(url: str, name: str) -> bytes:
    try:
        with httpx.stream("GET", url, timeout=_TIMEOUT_SECONDS) as response:
            response.raise_for_status()
            data = b""
            for part in response.iter_bytes():
                data += part
                if len(data) > _MAX_BYTES:
                    raise _too_large(name)
            return data
    except httpx.HTTPStatusError as error:
        raise JobError(f"{name}: the server answered {error.response.status_code}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise JobError(f"{name} cannot be fetched: {error}") from None


def _read_s3(url: str, name: str) -> bytes:
    parts = urlsplit(url)
    try:
        answer = boto3.client("s3").get_object(Bucket=parts.netloc, Key=parts.path.lstrip("/"))
        if answer["ContentLength"] > _MAX_BYTES:
            raise _too_large(name)
        data: bytes = answer["Body"].read()
    except (BotoCoreError, ClientError) as error:
        raise JobError(f"{name} cannot be fetched: {error}") from None
    return data
