"""What a job's `assetsUrl` says: where its input files are."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from prefect_renderfarm.blocks.asset_sources import ARCHIVE_ENDINGS
from prefect_renderfarm.blocks.errors import JobError

ASSET_LIST = "assets.json"


def where_assets_are(url: str | None, root: str) -> str | None:
    """Return what an order says of a job's input: its list's key, or where workers fetch it.

    Args:
        url: The job's `assetsUrl`: a folder's path or `file://` URL, `s3://bucket/prefix`, or the
            `https://` URL of an archive. Empty: the job has no input files.
        root: The job's folder in the storage.

    Raises:
        JobError: It is something else.
    """
    if not url:
        return None
    scheme = url.partition("://")[0].lower() if "://" in url else "file"
    name = f"assetsUrl {url.partition('?')[0]!r}"
    if scheme == "file":
        return f"{root}/{ASSET_LIST}"
    if scheme == "s3" and urlsplit(url).netloc and urlsplit(url).path.strip("/"):
        return f"s3{url[2:]}"
    if scheme == "https" and urlsplit(url).path.lower().endswith(ARCHIVE_ENDINGS):
        return f"https{url[5:]}"
    if scheme in ("s3", "https"):
        raise JobError(
            f"{name} names no input files: give a folder in a bucket, s3://bucket/prefix, or an "
            f"archive, https://…{' or '.join(ARCHIVE_ENDINGS)}"
        )
    raise JobError(
        f"{name} has scheme {scheme!r}, which workers cannot fetch: give a folder, s3://bucket/"
        "prefix, or an archive at an https:// address"
    )


def local_folder(url: str | None, job_dir: Path) -> Path | None:
    """Return the folder that `assetsUrl` names on this machine; None: it names none here.

    Raises:
        JobError: There is no such folder.
    """
    if not url or ("://" in url and not url.lower().startswith("file://")):
        return None
    parts = urlsplit(url)
    if "://" in url and parts.netloc not in ("", "localhost"):
        raise JobError(f"assetsUrl {url!r} is on host {parts.netloc!r}: give a path, or s3://")
    # Without "..", but a link keeps its name: commands call it so.
    folder = Path(os.path.normpath(unquote(parts.path) if "://" in url else job_dir / url))
    if "\0" in str(folder) or not folder.is_dir():
        raise JobError(
            f"assetsUrl {url!r}: {str(folder)!r} is no folder on the machine that runs the flow: "
            "put the input files there, or into a bucket, and name that"
        )
    return folder
