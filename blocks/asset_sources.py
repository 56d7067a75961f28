"""Input files that a worker fetches itself: a folder of a bucket, or an archive on the web."""

from __future__ import annotations

import hashlib
import shutil
import stat
import tarfile
import threading
import zipfile
import zlib
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from prefect_aws.s3 import S3Bucket

from prefect_renderfarm.blocks.asset_cache import AssetCache, require_room
from prefect_renderfarm.blocks.asset_files import WantedFile, disk_errors, inside, place_files
from prefect_renderfarm.blocks.errors import FatalWorkerError, WorkerLost, WorkStopped
from prefect_renderfarm.blocks.object_store import ObjectStore
from prefect_renderfarm.blocks.whole_file import whole_file

ARCHIVE_ENDINGS = (".zip", ".tar.gz", ".tgz", ".tar")

_MOST_ARCHIVE_BYTES = 20_000_000_000
# For each answer and each part of one.
_TIMEOUT_SECONDS = 60.0


def lay_out_s3(
    url: str, storage: ObjectStore, folder: Path, cache: AssetCache, stop: threading.Event
) -> None:
    """Copy a folder of a bucket, such as `s3://bucket/prefix`, into a workspace.

    It is read with the credentials of the storage block if that is an `S3Bucket`: on a remote
    worker those are the worker's own.

    Raises:
        FatalWorkerError: There is nothing, or a key leads out of the workspace.
        WorkerLost: It does not fit on the disk.
        StorageError: The bucket did not answer.
    """
    parts = urlsplit(url)
    prefix = parts.path.strip("/")
    block = S3Bucket(bucket_name=parts.netloc)
    if isinstance(storage.block, S3Bucket):
        block = S3Bucket(bucket_name=parts.netloc, credentials=storage.block.credentials)
    store = ObjectStore(block)
    files = []
    for found in store.objects(prefix):
        if found.key.endswith("/"):  # what consoles write for an empty folder
            continue
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
        raise FatalWorkerError(f"assetsUrl {url!r}: nothing is there: check the bucket and prefix")
    place_files(files, folder, cache, stop)


def lay_out_archive(url: str, folder: Path, cache: AssetCache, stop: threading.Event) -> None:
    """Fetch an archive, if this machine does not have this version of it, and unpack it.

    Raises:
        FatalWorkerError: It cannot be had, is damaged or too large, or a name in it leads out of
            the workspace.
        WorkerLost: The server did not answer, or the disk is full.
        WorkStopped: `stop` was set.
    """
    # A signed URL's secret is in its query.
    name = f"assetsUrl {url.partition('?')[0]!r}"
    plain = {"Accept-Encoding": "identity"}
    try:
        with httpx.stream(
            "GET", url, headers=plain, follow_redirects=True, timeout=_TIMEOUT_SECONDS
        ) as response:
            if response.url.scheme != "https":
                raise FatalWorkerError(f"{name} leads to an address without https")
            response.raise_for_status()
            size = int(response.headers.get("content-length", 0))
            if size > _MOST_ARCHIVE_BYTES:
                raise _too_large(name)
            version = [response.headers.get(key, "") for key in ("etag", "last-modified")]
            identity = hashlib.sha256(f"{url} {size} {version}".encode()).hexdigest()
            if not any(version):
                cache.drop(identity)
            if not cache.has(identity):
                cache.make_room(size, {identity})
            with disk_errors(name):
                archive = cache.fetch(identity, partial(_save, response, name, stop), stop)
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        kind = WorkerLost if status >= 500 or status == 429 else FatalWorkerError
        raise kind(f"{name}: the server answered {status}") from None
    except httpx.InvalidURL as error:
        raise FatalWorkerError(f"{name}: {error}") from None
    except httpx.HTTPError as error:
        raise WorkerLost(
            f"{name} cannot be fetched: {str(error) or type(error).__name__}"
        ) from None
    try:
        with disk_errors(name):
            unpack(archive, folder, stop)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, RuntimeError) as error:
        cache.drop(identity)
        raise FatalWorkerError(f"{name} cannot be unpacked: {error}") from None


def unpack(archive: Path, folder: Path, stop: threading.Event) -> None:
    """Unpack a zip or tar file; nothing in it may lead out of the folder.

    Raises:
        FatalWorkerError: A name leads out of the folder, or is a symbolic link.
        WorkerLost: It does not fit on the disk.
        WorkStopped: `stop` was set.
    """
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                _unpack_zipped(packed, entry, folder, stop)
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            _before(member.name, member.size, folder, stop)
            if member.issym():
                raise _link(member.name)
            if member.isdir() and not Path(member.name).name:  # the folder itself, "."
                continue
            inside(folder, member.name)
            with disk_errors(f"asset {member.name!r}"):
                tar.extract(member, folder, filter="data")


def _unpack_zipped(
    packed: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, stop: threading.Event
) -> None:
    _before(entry.filename, entry.file_size, folder, stop)
    mode = entry.external_attr >> 16
    if stat.S_ISLNK(mode):
        raise _link(entry.filename)
    target = inside(folder, entry.filename)
    with disk_errors(f"asset {entry.filename!r}"):
        if entry.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with packed.open(entry) as source, target.open("xb") as output:
            shutil.copyfileobj(source, output, 1 << 20)
        target.chmod(0o755 if mode & stat.S_IXUSR else 0o644)


def _before(name: str, size: int, folder: Path, stop: threading.Event) -> None:
    if stop.is_set():
        raise WorkStopped(f"asset {name!r}: not unpacked, the job was stopped")
    require_room(folder, size)


def _save(response: httpx.Response, name: str, stop: threading.Event, path: Path) -> None:
    written = 0
    with whole_file(path) as temporary, temporary.open("wb") as file:
        for part in response.iter_raw():
            written += len(part)
            if written > _MOST_ARCHIVE_BYTES:
                raise _too_large(name)
            if stop.is_set():
                raise WorkStopped(f"{name}: not fetched, the job was stopped")
            file.write(part)


def _too_large(name: str) -> FatalWorkerError:
    return FatalWorkerError(f"{name} has more than {_MOST_ARCHIVE_BYTES:,} bytes: use s3://")


def _link(name: str) -> FatalWorkerError:
    return FatalWorkerError(f"asset {name!r} is a symbolic link: pack the file itself")
