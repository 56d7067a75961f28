"""A job's `assetsUrl`: where its input files are."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from prefect_renderfarm.blocks.assets.sources import ARCHIVE_ENDINGS
from prefect_renderfarm.blocks.errors import JobError
from prefect_renderfarm.blocks.http.url_rules import SCHEMES_VARIABLE, UrlRules, public_part
from prefect_renderfarm.blocks.runtime.text import excerpt, one_line

ASSET_LIST = "assets.json"
_SHOWN = 200


def where_assets_are(url: str | None, root: str) -> str | None:
    """Return the `assets` of chunk requests: the key of the job's list of files, or their URL.

    Args:
        url: The job's `assetsUrl`: a folder's path or `file://` URL, `s3://bucket/prefix`, or the
            `https://` URL of an archive. Empty means no input files.
        root: The job's folder in the storage.

    Raises:
        JobError: It is something else.
    """
    if not url:
        return None
    scheme = url.partition("://")[0].lower() if "://" in url else "file"
    name = _name(url)
    if scheme == "file":
        return f"{root}/{ASSET_LIST}"
    parts = _parts(url)
    if scheme == "s3" and parts.netloc and parts.path.strip("/"):
        return f"s3{url[2:]}"
    if scheme == "https" and "@" in parts.netloc:
        raise JobError(f"{name} holds a name or password: use a presigned URL")
    if scheme == "https" and parts.netloc and parts.path.lower().endswith(ARCHIVE_ENDINGS):
        return f"https{url[5:]}"
    if scheme in ("s3", "https"):
        raise JobError(
            f"{name} names no input files: give a folder in a bucket, s3://bucket/prefix, or an "
            f"archive, https://…{' or '.join(ARCHIVE_ENDINGS)}"
        )
    raise JobError(
        f"{name} has scheme {excerpt(scheme)}, which workers cannot fetch: give a folder, s3://bucket/"
        "prefix, or an archive at an https:// address"
    )


def local_folder(url: str | None, job_dir: Path) -> Path | None:
    """Return the folder on this machine that `assetsUrl` names; None if it names none.

    Raises:
        JobError: There is no such folder, or jobs may not read it.
        SetupError: The variables of `url_rules` are not valid.
    """
    if not url or ("://" in url and not url.lower().startswith("file://")):
        return None
    parts = _parts(url)
    if "://" in url and parts.netloc not in ("", "localhost"):
        raise JobError(f"{_name(url)} is on host {excerpt(parts.hostname)}: give a path, or s3://")
    # Without "..", but a link keeps its name: commands use that.
    folder = Path(os.path.normpath(unquote(parts.path) if "://" in url else job_dir / url))
    if "\0" in str(folder):
        raise JobError(f"{_name(url)} has a NUL character: remove it")
    inside = Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(job_dir))
    if not inside and "file" not in UrlRules.of().schemes:
        raise JobError(
            f"{_name(url)} is outside the job folder, and {SCHEMES_VARIABLE} does not allow that: "
            "put the input files into the job folder"
        )
    if not os.path.isdir(folder):  # noqa: PTH112 -- Path.is_dir raises at a name that is too long
        raise JobError(
            f"{_name(url)}: {excerpt(str(folder), _SHOWN)} is no folder on the machine that runs "
            "the flow: put the input files there, or into a bucket, and name that"
        )
    return folder


def _name(url: str) -> str:
    return f"assetsUrl {excerpt(public_part(url), _SHOWN)}"


def _parts(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise JobError(f"{_name(url)} is no URL: {one_line(error)}") from None
