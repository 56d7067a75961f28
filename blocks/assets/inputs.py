"""A job's input files: sent to the storage once, fetched into every worker's workspace.

    renderfarm/assets/<SHA-256>                  a file's content, shared by all jobs
    renderfarm/<job key>/assets.json             the job's `AssetList`, written after the files
    renderfarm/<job key>/assets-next.json        the same, while the files are being sent
    renderfarm/<job key>/assets-<digest>.json    the same, kept, by inputs digest

A command that runs in the job folder itself (a merge command, and every command of a job without a
storage) finds its input there: nothing is fetched for it.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from prefect_aws.s3 import S3Bucket
from pydantic import BaseModel, Field, ValidationError

from prefect_renderfarm.blocks.assets.archive import ARCHIVE_ENDINGS, lay_out_archive, name_of_url
from prefect_renderfarm.blocks.assets.workspace import (
    AssetCache,
    WantedFile,
    disk_errors,
    in_parallel,
    place_files,
)
from prefect_renderfarm.blocks.errors import FatalWorkerError, JobError, SetupError, StorageError
from prefect_renderfarm.blocks.http.url_rules import SCHEMES_VARIABLE, UrlRefused, UrlRules
from prefect_renderfarm.blocks.runtime.text import excerpt, one_line
from prefect_renderfarm.blocks.storage.atomic_file import is_temporary
from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.blocks.storage.job_store import JobStore
from prefect_renderfarm.blocks.storage.manifest import file_sha256
from prefect_renderfarm.blocks.storage.objects import ObjectStore

ASSETS = f"{BucketStore.root}/assets"
ASSET_LIST = "assets.json"
NEXT_LIST = "assets-next.json"
_MAX_OBJECTS = 200_000  # as for archives: more files are not one job's input


def where_assets_are(url: str | None, root: str) -> str | None:
    """Return the `assets` of chunk requests: the key of the job's list of files, or their URL.

    `root` is the job's folder in the storage. Raises JobError unless `assetsUrl` is a folder's path
    or `file://` URL, an `s3://bucket/prefix`, the `https://` URL of an archive, or empty.
    """
    if not url:
        return None
    scheme, found, rest = url.partition("://")
    scheme = scheme.lower() if found else "file"
    if scheme == "file":
        return f"{root}/{ASSET_LIST}"
    parts, name = _parts(url), name_of_url(url)
    if scheme == "https" and "@" in parts.netloc:
        raise JobError(f"{name} holds a name or password: use a presigned URL")
    paths = {"s3": parts.path.strip("/"), "https": parts.path.lower().endswith(ARCHIVE_ENDINGS)}
    if parts.netloc and paths.get(scheme):
        return f"{scheme}://{rest}"
    fault = f"has scheme {excerpt(scheme)}, which workers cannot fetch"
    if scheme in paths:
        fault = "names no input files"
    raise JobError(
        f"{name} {fault}: give a folder's path, a folder in a bucket, s3://bucket/prefix, or an "
        f"archive, https://…{' or '.join(ARCHIVE_ENDINGS)}"
    )


def local_folder(url: str | None, job_dir: Path) -> Path | None:
    """Return the folder on this machine that `assetsUrl` names; None if it names none.

    Raises JobError if there is no such folder, or jobs may not read it.
    """
    if not url or ("://" in url and not url.lower().startswith("file://")):
        return None
    parts, name = _parts(url), name_of_url(url)
    if "://" in url and parts.netloc not in ("", "localhost"):
        raise JobError(f"{name} is on host {excerpt(parts.hostname)}: give a path, or s3://")
    # Without "..", but a link keeps its name: commands use that.
    folder = Path(os.path.normpath(unquote(parts.path) if "://" in url else job_dir / url))
    if "\0" in str(folder):
        raise JobError(f"{name} has a NUL character: remove it")
    inside = Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(job_dir))
    if not inside and "file" not in UrlRules().schemes:
        raise JobError(
            f"{name} is outside the job folder, and {SCHEMES_VARIABLE} does not allow that: "
            "put the input files into the job folder"
        )
    if not os.path.isdir(folder):  # noqa: PTH112 -- Path.is_dir raises at a name that is too long
        raise JobError(
            f"{name}: {excerpt(str(folder), 200)} is no folder on the machine that runs "
            "the flow: put the input files there, or into a bucket, and name that"
        )
    return folder


def _parts(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise JobError(f"{name_of_url(url)} is no URL: {one_line(error)}") from None


class AssetFile(BaseModel, frozen=True):
    """An input file."""

    path: str = Field(description="Its path in the workspace, with slashes.")
    size: int = Field(ge=0, description="Bytes.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of its content.")
    executable: bool = Field(default=False, description="Whether it may be run.")

    @property
    def key(self) -> str:
        """The key of its content in the storage."""
        return f"{ASSETS}/{self.sha256}"


class AssetList(BaseModel, frozen=True):
    """The input files of a job."""

    files: tuple[AssetFile, ...]


def list_name(digest: str) -> str:
    """Return the name of the list of input files that belongs to an inputs digest."""
    return f"assets-{digest}.json"


def is_list(name: str) -> bool:
    """Return whether a job's object of this name is a list of input files."""
    return name == ASSET_LIST or (name.startswith("assets-") and name.endswith(".json"))


def send_assets(
    store: JobStore, folder: Path, job_dir: Path, skip: Callable[[Path], bool] = lambda _: False
) -> AssetList:
    """Send a job's input files to its storage: those that it does not have, then their list.

    A folder inside the job folder keeps its relative path in the workspace. The files of another
    folder go to the top of the workspace. Links inside it are sent as what they lead to. Files are
    left out for whose absolute paths `skip` is true. Raises JobError if a link leads out of the
    folder, or something has no UTF-8 name, is no regular file, or changes meanwhile.
    """
    found = _describe_files(folder, job_dir, skip)
    files = AssetList(files=tuple(found))
    listed = files.model_dump_json().encode()
    # For clean-storage, which then keeps the files of this list that were sent before.
    store.write(NEXT_LIST, listed)
    try:
        there = {stored.key: stored.size for stored in store.store.objects(ASSETS)}
    except SetupError:  # this kind of storage cannot list: everything is sent
        there = {}
    missing = {file.key: file for file in found if there.get(file.key) != file.size}
    in_parallel(lambda file: _send(store.store, file, *found[file]), missing.values())
    store.write(ASSET_LIST, listed)
    with suppress(SetupError):  # this kind of storage cannot delete
        store.delete([NEXT_LIST])
    return files


def list_assets(folder: Path, job_dir: Path, skip: Callable[[Path], bool]) -> AssetList:
    """Return what `send_assets` would send. Raises: JobError."""
    return AssetList(files=tuple(_describe_files(folder, job_dir, skip)))


def assets_version(assets: str, storage: BucketStore) -> str:
    """Return a text that changes with a job's input files; of an archive on the web, its URL."""
    if assets.startswith("s3://"):
        return "\n".join(sorted(file.name for file in files_in_s3(assets, storage)))
    if assets.startswith("https://"):
        return assets.partition("?")[0]
    return read_list(storage, assets).model_dump_json()


def _describe_files(
    folder: Path, job_dir: Path, skip: Callable[[Path], bool]
) -> dict[AssetFile, tuple[Path, int]]:
    """Return the files of a folder by their paths, and where they are, with times in ns."""
    paths = ((folder, job_dir), (folder.resolve(), job_dir.resolve()))
    top = next((path.relative_to(job) for path, job in paths if path.is_relative_to(job)), Path())
    folder = folder.resolve()

    def describe(path: Path) -> tuple[AssetFile, tuple[Path, int]]:
        try:
            before, name = path.stat(), (top / path.relative_to(folder)).as_posix()
            runs = bool(before.st_mode & 0o100)
            file = AssetFile(
                path=name, size=before.st_size, sha256=file_sha256(path), executable=runs
            )
        except OSError as error:
            raise JobError(f"asset {str(path)!r} cannot be read: {error.strerror}") from None
        return file, (path, before.st_mtime_ns)

    found = in_parallel(describe, list(_files_in(folder, folder, skip)))
    return dict(sorted(found, key=lambda pair: pair[0].path))


def read_list(store: ObjectStore, key: str) -> AssetList:
    """Return a job's list of input files. Raises: StorageError, if it is missing or not valid."""
    try:
        return AssetList.model_validate_json(store.read(key) or b"")
    except ValidationError:
        raise StorageError(
            f"{store.name} has no list of assets {key!r}: run render-job again"
        ) from None


def lay_out(assets: str, storage: BucketStore, folder: Path, stop: threading.Event) -> None:
    """Put a job's input files, `ChunkRequest.assets`, into a workspace, before its command runs.

    Raises WorkerLost (a full disk, no answer from their server), FatalWorkerError (a path outside
    the workspace, a refused URL), StorageError, or WorkStopped.
    """
    with disk_errors("assets"):
        cache = AssetCache()
        if assets.startswith("https://"):
            lay_out_archive(assets, folder, cache, stop)
            return
        if assets.startswith("s3://"):
            files = files_in_s3(assets, storage)
        else:
            files = []
            for one in read_list(storage, assets).files:
                name = f"{one.sha256}.x" if one.executable else one.sha256
                files.append(WantedFile(**one.model_dump(), name=name, store=storage, key=one.key))
        place_files(files, folder, cache, stop)


def files_in_s3(url: str, storage: BucketStore) -> list[WantedFile]:
    """Return the files in a folder of a bucket, `s3://bucket/prefix`; their names change with them.

    It is read with the credentials of the storage block if that is an `S3Bucket`. Raises
    FatalWorkerError if there is nothing, or too much, or jobs may not read this bucket.
    """
    parts, name = urlsplit(url), name_of_url(url)
    try:
        UrlRules().require_bucket(parts.netloc)
    except UrlRefused as error:
        raise FatalWorkerError(f"{name}: {error}") from None
    prefix = parts.path.strip("/")
    block = S3Bucket(bucket_name=parts.netloc)
    if isinstance(storage.block, S3Bucket):
        block = S3Bucket(bucket_name=parts.netloc, credentials=storage.block.credentials)
    store = BucketStore(block)
    files: list[WantedFile] = []
    for key, size, modified in store.objects(prefix):
        if key.endswith("/"):  # consoles write such a key for an empty folder
            continue
        if len(files) == _MAX_OBJECTS:
            raise FatalWorkerError(f"{name} has more than {_MAX_OBJECTS:,} files")
        path = key.removeprefix(f"{prefix}/")
        version = f"{url} {key} {size} {modified.isoformat()}"
        digest = hashlib.sha256(version.encode()).hexdigest()
        files.append(WantedFile(path=path, size=size, name=digest, store=store, key=key))
    if not files:
        raise FatalWorkerError(f"{name}: nothing is there: check the bucket and prefix")
    return files


def _files_in(folder: Path, root: Path, skip: Callable[[Path], bool]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if skip(path) or is_temporary(path.name):
            continue
        real = path.resolve()
        if path.is_symlink() and not real.is_relative_to(root):
            raise JobError(f"asset {str(path)!r} is a link out of {str(root)!r}: put a copy there")
        try:
            path.name.encode()
        except UnicodeEncodeError:
            raise JobError(f"asset {str(path)!r}: its name is not UTF-8: rename it") from None
        if path.is_dir():
            if real in {parent.resolve() for parent in path.parents}:
                raise JobError(f"asset {str(path)!r} is a link to a folder that it is in")
            yield from _files_in(path, root, skip)
        elif path.is_file():
            yield path
        else:
            raise JobError(f"asset {str(path)!r} is no file: remove it, or mend its link")


def _send(store: ObjectStore, file: AssetFile, path: Path, modified: int) -> None:
    try:
        store.upload(path, file.key)
        after = path.stat()
    except OSError as error:
        raise JobError(f"asset {str(path)!r} cannot be read: {error.strerror}") from None
    if (after.st_size, after.st_mtime_ns) != (file.size, modified):
        with suppress(SetupError):
            store.delete([file.key])
        raise JobError(f"asset {str(path)!r} changed while it was sent: start again")
