"""Input files that a worker fetches itself: a folder of a bucket, or an archive on the web."""

from __future__ import annotations

import hashlib
import threading
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from prefect_aws.s3 import S3Bucket

from prefect_renderfarm.blocks.assets.archive import DamagedArchive, unpack
from prefect_renderfarm.blocks.assets.cache import AssetCache
from prefect_renderfarm.blocks.assets.workspace import WantedFile, disk_errors, place_files
from prefect_renderfarm.blocks.errors import FatalWorkerError, WorkerLost
from prefect_renderfarm.blocks.http.download import Download, DownloadFailed, open_download
from prefect_renderfarm.blocks.http.url_rules import UrlRefused, UrlRules, public_part
from prefect_renderfarm.blocks.runtime.text import excerpt
from prefect_renderfarm.blocks.storage.atomic_file import atomic_file
from prefect_renderfarm.blocks.storage.bucket import BucketStore

ARCHIVE_ENDINGS = (".zip", ".tar.gz", ".tgz", ".tar")

_MAX_ARCHIVE_BYTES = 20_000_000_000
# For an archive of that size: 5.6 MB a second.
_ARCHIVE_SECONDS = 3600.0
# As for archives: a list of more files is not one job's input.
_MAX_OBJECTS = 200_000
# URLs are shown longer than other values.
_SHOWN = 200


def lay_out_s3(
    url: str, storage: BucketStore, folder: Path, cache: AssetCache, stop: threading.Event
) -> None:
    """Copy a folder of a bucket into a workspace; see `files_in_s3` and `place_files`."""
    place_files(files_in_s3(url, storage), folder, cache, stop)


def files_in_s3(url: str, storage: BucketStore) -> list[WantedFile]:
    """Return the files in a folder of a bucket, `s3://bucket/prefix`; their names change with them.

    It is read with the credentials of the storage block if that is an `S3Bucket`; on a remote
    worker those are the worker's own.

    Raises:
        FatalWorkerError: There is nothing, or too much, or jobs may not read this bucket.
        StorageError: The bucket did not answer.
    """
    parts = urlsplit(url)
    try:
        UrlRules.of().require_bucket(parts.netloc)
    except UrlRefused as error:
        raise FatalWorkerError(f"assetsUrl {excerpt(url)}: {error}") from None
    prefix = parts.path.strip("/")
    block = S3Bucket(bucket_name=parts.netloc)
    if isinstance(storage.block, S3Bucket):
        block = S3Bucket(bucket_name=parts.netloc, credentials=storage.block.credentials)
    store = BucketStore(block)
    files: list[WantedFile] = []
    for found in store.objects(prefix):
        if found.key.endswith("/"):  # what consoles write for an empty folder
            continue
        if len(files) >= _MAX_OBJECTS:
            raise FatalWorkerError(f"assetsUrl {excerpt(url)} has more than {_MAX_OBJECTS:,} files")
        identity = f"{url} {found.key} {found.size} {found.modified.isoformat()}"
        files.append(
            WantedFile(
                path=found.key.removeprefix(f"{prefix}/"),
                size=found.size,
                name=hashlib.sha256(identity.encode()).hexdigest(),
                get=partial(store.download, found.key),
                source=f"{found.key!r} in {store.name}",
            )
        )
    if not files:
        raise FatalWorkerError(
            f"assetsUrl {excerpt(url)}: nothing is there: check the bucket and prefix"
        )
    return files


def lay_out_archive(url: str, folder: Path, cache: AssetCache, stop: threading.Event) -> None:
    """Fetch an archive, unless this version of it is in the cache, and unpack it.

    Raises:
        FatalWorkerError: It cannot be fetched, is damaged or too large, or a name in it leads out
            of the workspace.
        WorkerLost: The server did not answer, or the disk is full.
        WorkStopped: `stop` was set.
    """
    name = f"assetsUrl {excerpt(public_part(url), _SHOWN)}"
    try:
        with open_download(url, _MAX_ARCHIVE_BYTES, _ARCHIVE_SECONDS, stop) as download:
            version = [download.headers.get(key, "") for key in ("etag", "last-modified")]
            identity = hashlib.sha256(f"{url} {download.size} {version}".encode()).hexdigest()
            if not any(version):
                cache.drop(identity)
            if not cache.has(identity):
                cache.make_room(download.size, {identity})
            with disk_errors(name):
                archive = cache.fetch(identity, partial(_save, download), stop)
    except DownloadFailed as error:
        kind = WorkerLost if error.again else FatalWorkerError
        raise kind(f"{name} cannot be fetched: {error}") from None
    try:
        with disk_errors(name):
            unpack(archive, folder, stop)
    except DamagedArchive as error:
        cache.drop(identity)
        raise FatalWorkerError(f"{name} cannot be unpacked: {error}") from None
    except FatalWorkerError as error:
        raise FatalWorkerError(f"{name}: {error}") from None


def _save(download: Download, path: Path) -> None:
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        for part in download.parts():
            file.write(part)
