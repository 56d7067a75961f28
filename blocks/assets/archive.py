"""Archives of input files, perhaps a stranger's, unpacked within limits.

A small archive can hold any amount. So there are limits on the bytes and files that are unpacked,
and on what is read at once of an archive's lists and headers.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import stat
import struct
import sys
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from prefect_renderfarm.blocks.assets.workspace import AssetCache, disk_errors, inside, require_room
from prefect_renderfarm.blocks.errors import FatalWorkerError, WorkerLost, WorkStopped
from prefect_renderfarm.blocks.http.client import DownloadFailed, open_download
from prefect_renderfarm.blocks.http.url_rules import public_part
from prefect_renderfarm.blocks.runtime.text import excerpt, one_line
from prefect_renderfarm.blocks.storage.atomic_file import atomic_file

ARCHIVE_ENDINGS = (".zip", ".tar.gz", ".tgz", ".tar")
_MAX_ARCHIVE_BYTES = 20_000_000_000
_ARCHIVE_SECONDS = 3600.0  # for an archive of that size 5.6 MB a second
# The size of the cache of fetched files; a farm's largest scenes have some 10,000 files.
MAX_UNPACKED_BYTES = 20_000_000_000
MAX_FILES = 200_000
# A zip's list of 200,000 files has names and 46 bytes each; a tar's header of one file far less.
_MAX_LIST_BYTES = 32_000_000
_MAX_HEADER_BYTES = 1_000_000
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_PART_BYTES = 1 << 20
_BUFFER_BYTES = 1 << 16
_GZIP_MAGIC = b"\x1f\x8b"  # RFC 1952, section 2.3.1
# What Python's readers raise for damaged archives.
_DAMAGES = (
    *(zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, struct.error),
    *(RuntimeError, ValueError, OverflowError),
)


def name_of_url(url: str) -> str:
    """Return an `assetsUrl` for messages, without what may be secret in it."""
    return f"assetsUrl {excerpt(public_part(url), 200)}"


def lay_out_archive(url: str, folder: Path, cache: AssetCache, stop: threading.Event) -> None:
    """Fetch an archive, unless this version of it is in the cache, and unpack it."""
    name = name_of_url(url)

    def save(path: Path) -> None:
        cache.make_room(download.size, {path.name})
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            for part in download.parts():
                file.write(part)

    try:
        with open_download(url, _MAX_ARCHIVE_BYTES, _ARCHIVE_SECONDS, stop) as download:
            version = [download.headers.get(key, "") for key in ("etag", "last-modified")]
            identity = hashlib.sha256(f"{url} {download.size} {version}".encode()).hexdigest()
            if not any(version):
                cache.drop(identity)
            with disk_errors(name):
                archive = cache.fetch(identity, save, stop)
    except DownloadFailed as error:
        kind = WorkerLost if error.again else FatalWorkerError
        raise kind(f"{name} cannot be fetched: {error}") from None
    try:
        with disk_errors(name):
            unpack(archive, folder, stop)
    except WorkStopped:
        raise
    except FatalWorkerError as error:
        cache.drop(identity)  # it may be damaged
        raise FatalWorkerError(f"{name} cannot be unpacked: {error}") from None


def unpack(archive: Path, folder: Path, stop: threading.Event) -> None:
    """Unpack a zip or tar file. Raises FatalWorkerError if it is damaged or beyond the limits."""
    room = _Room(folder, stop)
    try:
        with archive.open("rb") as file:
            is_zip = zipfile.is_zipfile(archive)
            packed = not is_zip and file.peek(2)[:2] == _GZIP_MAGIC
            source: Any = gzip.GzipFile(fileobj=file) if packed else file
            with _Reader(source, _BUFFER_BYTES) as reader:
                (_unpack_zip if is_zip else _unpack_tar)(reader, room)
    except _DAMAGES as error:
        raise FatalWorkerError(one_line(error)) from None


class _Room:
    """What an archive may still unpack into a folder."""

    def __init__(self, folder: Path, stop: threading.Event) -> None:
        self.folder = folder
        self._stop = stop
        self._bytes = MAX_UNPACKED_BYTES
        self._files = MAX_FILES

    @contextmanager
    def place(self, name: str, size: int, *, is_folder: bool, is_link: bool) -> Iterator[Path]:
        """Count a member of the archive and yield its path; a folder is made, and a file's too."""
        if self._stop.is_set():
            raise WorkStopped(f"asset {excerpt(name)}: not unpacked, because the job was stopped")
        self._bytes -= size
        self._files -= 1
        if self._bytes < 0 or self._files < 0:
            raise FatalWorkerError(
                f"the archive holds more than {MAX_UNPACKED_BYTES:,} bytes or {MAX_FILES:,} "
                "files: use s3://"
            )
        require_room(self.folder, size)
        if is_link:
            raise FatalWorkerError(
                f"asset {excerpt(name)} is a symbolic link: pack the file itself"
            )
        is_top = is_folder and not Path(name).name  # the archive's own folder, "."
        target = self.folder if is_top else inside(self.folder, name)
        with disk_errors(f"asset {excerpt(name)}"):
            (target if is_folder else target.parent).mkdir(parents=True, exist_ok=True)
            yield target


class _Reader(io.BufferedReader):
    """Reads an archive, but no more than `most` bytes of a list or header: those are kept whole."""

    most = sys.maxsize  # while contents are read

    def read(self, size: int | None = -1) -> bytes:
        size = sys.maxsize if size is None or size < 0 else size
        try:
            data = super().read(min(size, self.most + 1))
        except gzip.BadGzipFile as error:  # an OSError, but not of the disk
            raise tarfile.ReadError(str(error)) from None
        self.most -= len(data)
        if self.most < 0:
            raise tarfile.ReadError("a list or header in it is too long")
        return data


def _unpack_zip(reader: _Reader, room: _Room) -> None:
    reader.most = _MAX_LIST_BYTES
    with zipfile.ZipFile(reader) as packed:
        reader.most = sys.maxsize
        for entry in packed.infolist():
            if entry.compress_type not in _METHODS:
                # With other methods Python unpacks any amount at once.
                raise zipfile.BadZipFile(
                    f"{excerpt(entry.filename)} is packed by method {entry.compress_type}: "
                    "only 'deflated' and 'stored' are unpacked"
                )
            name, is_folder, mode = entry.filename, entry.is_dir(), entry.external_attr >> 16
            is_link = stat.S_ISLNK(mode)
            with room.place(name, entry.file_size, is_folder=is_folder, is_link=is_link) as target:
                if not is_folder:
                    with packed.open(entry) as source:
                        _write(source, target, mode)


def _unpack_tar(reader: _Reader, room: _Room) -> None:
    # Not by `TarFile.extract`: Python before 3.11.4 has no filters for it.
    reader.most = _MAX_HEADER_BYTES  # `open` reads the first header
    with tarfile.open(fileobj=reader, mode="r:") as tar:
        while (member := tar.next()) is not None:
            reader.most = sys.maxsize
            name, is_folder, is_link = member.name, member.isdir(), member.issym()
            with room.place(name, member.size, is_folder=is_folder, is_link=is_link) as target:
                if not is_folder:
                    target.unlink(missing_ok=True)  # the last file of a name counts
                if member.islnk():
                    first = inside(room.folder, member.linkname)
                    if not first.is_file():
                        raise tarfile.ReadError(f"{excerpt(name)} links to no file in it")
                    target.hardlink_to(first)
                elif (source := tar.extractfile(member)) is not None:
                    _write(source, target, member.mode)
                elif not is_folder:
                    raise FatalWorkerError(f"asset {excerpt(name)} is no regular file")
            reader.most = _MAX_HEADER_BYTES


def _write(source: IO[bytes], target: Path, mode: int) -> None:
    with target.open("xb") as output:
        shutil.copyfileobj(source, output, _PART_BYTES)
    target.chmod(0o755 if mode & stat.S_IXUSR else 0o644)
