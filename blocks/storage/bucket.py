"""Objects in a Prefect storage block: S3, Google Cloud Storage, Azure and others."""

from __future__ import annotations

import contextvars
import errno
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import ClientError
from prefect.blocks.abstract import ObjectStorageBlock
from prefect_aws.s3 import S3Bucket

from prefect_renderfarm.blocks.errors import (
    ObjectMissing,
    SetupError,
    StorageError,
    StorageRefused,
)
from prefect_renderfarm.blocks.runtime.prefect_api import call_sync
from prefect_renderfarm.blocks.storage.atomic_file import atomic_file
from prefect_renderfarm.blocks.storage.objects import ObjectStore, StoredObject

# The names and numbers of providers' errors, if an object does not exist ...
_MISSING = frozenset({"NoSuchKey", "NotFound", "404", "ResourceNotFoundError", "BlobNotFound"})
# ... if it is there, and was to be created: 409 while another request creates it ...
_EXISTS = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict", "409"})
# ... and if asking again will not help.
_REFUSED = frozenset(
    {"NoSuchBucket", "SignatureDoesNotMatch", "InvalidAccessKeyId", "AccessDenied", "401", "403",
     "Forbidden", "Unauthorized", "ExpiredToken", "InvalidToken", "AuthorizationHeaderMalformed",
     "NoCredentialsError", "PartialCredentialsError", "ClientAuthenticationError",
     "DefaultCredentialsError", "ContainerNotFound"}
)  # fmt: skip
# What a download meets that finds no room on this machine; it tells not of which file.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# Amazon S3 API reference, DeleteObjects.
_MOST_DELETED = 1000
_NAMES_OF_BUCKETS = ("bucket_name", "bucket", "container_name")


class BucketStore(ObjectStore):
    """A storage block, with errors that tell whether asking again may help.

    Reading and writing take any `ObjectStorageBlock`. Creating, listing and deleting are no part of
    that interface: they take `S3Bucket`, and blocks with the methods of `GcsBucket`. Keys are below
    the storage block's own folder.

    Args:
        block: The storage block.
    """

    root: ClassVar[str] = "renderfarm"
    in_place: ClassVar[bool] = False
    poll_seconds: ClassVar[float] = 0.3
    parallel_fetches: ClassVar[int] = 4

    def __init__(self, block: ObjectStorageBlock) -> None:
        self.block = block
        self.bucket = next(
            (str(getattr(block, name)) for name in _NAMES_OF_BUCKETS if hasattr(block, name)), ""
        )
        self.name = f"storage {block.get_block_type_slug()} {self.bucket!r}"

    def read(self, key: str) -> bytes | None:
        """Return the bytes of a small object; None if it is not there.

        Raises:
            StorageError: The storage did not answer.
            StorageRefused: It will not, however often it is asked.
        """
        data = io.BytesIO()
        try:
            with self._errors(f"read {key!r}"):
                _out_of_the_log(self.block.download_object_to_file_object, key, data)
        except _MissingError:
            return None
        return data.getvalue()

    def has(self, key: str) -> bool:
        """Return whether an object is there. Raises: StorageError."""
        if not isinstance(self.block, S3Bucket):
            return self.read(key) is not None
        client: Any = self.block.credentials.get_s3_client()
        try:
            with self._errors(f"look for {key!r}"):
                client.head_object(Bucket=self.bucket, Key=self.absolute(key))
        except _MissingError:
            return False
        return True

    def write(self, key: str, data: bytes) -> None:
        """Write a small object. Raises: StorageError."""
        with self._errors(f"write {key!r}"):
            _out_of_the_log(self.block.upload_from_file_object, io.BytesIO(data), key)

    def create(self, key: str, data: bytes) -> bool:
        """Write a small object unless one exists, by a conditional request.

        Amazon S3 User Guide, "How to prevent object overwrites with conditional writes"; Google
        Cloud Storage, "Request preconditions".

        Raises:
            SetupError: This kind of storage block has no conditional requests.
            StorageError: The storage did not answer.
        """
        try:
            with self._errors(f"create {key!r}", creating=True):
                if isinstance(self.block, S3Bucket):
                    client: Any = self.block.credentials.get_s3_client()
                    client.put_object(
                        Bucket=self.bucket, Key=self.absolute(key), Body=data, IfNoneMatch="*"
                    )
                elif hasattr(self.block, "get_bucket"):
                    blob = _out_of_the_log(self.block.get_bucket).blob(self.absolute(key))
                    blob.upload_from_string(data, if_generation_match=0)
                else:
                    raise SetupError(f"{self.name} cannot create an object on condition")
        except _ExistsError:
            # The client repeats a request of which the answer was lost.
            return self.read(key) == data
        return True

    def upload(self, path: Path, key: str) -> None:
        """Send a file, in parts where it is large. Raises: StorageError."""
        with self._errors(f"write {key!r}"):
            _out_of_the_log(self.block.upload_from_path, path, key)

    def download(self, key: str, path: Path) -> None:
        """Fetch an object into a file, which appears whole or not at all.

        Raises:
            ObjectMissing: It is not there.
            StorageError: The storage did not answer.
            OSError: This machine's disk is full, or cannot be written to; with the file's name.
        """
        try:
            with atomic_file(path) as temporary, self._errors(f"read {key!r}"):
                _out_of_the_log(self.block.download_object_to_path, key, temporary)
        except _MissingError:
            raise ObjectMissing(f"{self.name} has no object {key!r}") from None
        except OSError as error:
            raise OSError(error.errno, error.strerror, error.filename or str(path)) from None

    def copy(self, key: str, other: str) -> None:
        """Copy an object, without it leaving S3; from other storages by way of this machine.

        Raises:
            ObjectMissing: It is not there.
            StorageError: It cannot be copied.
        """
        if isinstance(self.block, S3Bucket):
            client: Any = self.block.credentials.get_s3_client()
            source = {"Bucket": self.bucket, "Key": self.absolute(key)}
            try:
                with self._errors(f"copy {key!r}"):
                    client.copy(source, self.bucket, self.absolute(other))
            except _MissingError:
                raise ObjectMissing(f"{self.name} has no object {key!r}") from None
            return
        with tempfile.TemporaryDirectory(prefix="renderfarm-") as folder:
            path = Path(folder) / "copy"
            self.download(key, path)
            self.upload(path, other)

    def objects(self, folder: str) -> Iterator[StoredObject]:
        """Give the objects in a folder and below it.

        Raises:
            SetupError: This kind of storage block cannot list.
            StorageError: The storage did not answer.
        """
        folder = f"{folder.rstrip('/')}/"
        with self._errors(f"list {folder!r}"):
            if isinstance(self.block, S3Bucket):
                for found in _out_of_the_log(self.block.list_objects, folder):
                    key = self._relative(found["Key"])
                    yield StoredObject(key, found["Size"], found["LastModified"])
            elif hasattr(self.block, "list_blobs") and hasattr(self.block, "get_bucket"):
                for blob in _out_of_the_log(self.block.list_blobs, folder):
                    yield StoredObject(self._relative(blob.name), blob.size, blob.updated)
            else:
                raise SetupError(
                    f"{self.name} can be written and read, but not listed: remove what jobs left "
                    "with your provider's own tools, such as a rule for the age of objects"
                )

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; it is no error if one is not there.

        Raises:
            SetupError: This kind of storage block cannot delete.
            StorageError: The storage did not answer, or kept an object.
        """
        names = [self.absolute(key) for key in keys]
        with self._errors("delete objects"):
            if isinstance(self.block, S3Bucket):
                self._delete_from_s3(self.block, names)
            elif hasattr(self.block, "get_bucket"):
                _out_of_the_log(self.block.get_bucket).delete_blobs(names, on_error=lambda _: None)
            elif names:
                raise SetupError(f"{self.name} cannot delete objects")

    def _delete_from_s3(self, bucket: S3Bucket, names: list[str]) -> None:
        client: Any = bucket.credentials.get_s3_client()
        for first in range(0, len(names), _MOST_DELETED):
            some = [{"Key": name} for name in names[first : first + _MOST_DELETED]]
            wanted = {"Objects": some, "Quiet": True}
            answer = client.delete_objects(Bucket=bucket.bucket_name, Delete=wanted)
            if kept := answer.get("Errors"):
                raise StorageError(f"{self.name} keeps {kept[0]['Key']!r}: {kept[0]['Message']}")

    def _folder(self) -> str:
        folder = str(getattr(self.block, "bucket_folder", "") or "").strip("/")
        return f"{folder}/" if folder else ""

    def absolute(self, key: str) -> str:
        """Return an object's key in the bucket, with the storage block's own folder."""
        return self._folder() + key

    def _relative(self, key: str) -> str:
        return key.removeprefix(self._folder())

    @contextmanager
    def _errors(self, what: str, *, creating: bool = False) -> Iterator[None]:
        """Turn a provider's error into one of ours, by its code and not by its words."""
        try:
            yield
        except (SetupError, StorageError, _MissingError, _ExistsError):
            raise
        except Exception as raised:
            error = _cause(raised)
            codes = _codes(error)
            if codes & _REFUSED:
                raise StorageRefused(
                    f"{self.name} refuses to {what}: {error}; check the name of the bucket, and "
                    "the credentials of the machine that asks"
                ) from None
            if codes & _MISSING:
                raise _MissingError from None
            if creating and codes & _EXISTS:
                raise _ExistsError from None
            if isinstance(error, OSError) and (error.filename or error.errno in _NO_ROOM):
                raise  # of a file on this machine, not of the storage
            raise StorageError(f"{self.name} cannot {what}: {error}") from None


def _out_of_the_log(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call a storage block's method out of the run's sight, in whose log it notes every object.

    A job of 1,000 chunks would fill it with more than 10,000 lines.
    """
    return contextvars.Context().run(call_sync, call, *arguments)


class _MissingError(Exception):
    """There is no such object."""


class _ExistsError(Exception):
    """There is such an object already."""


def _cause(error: Exception) -> BaseException:
    """Return what the provider said: boto3's error of an upload holds it as text only."""
    wrapped = isinstance(error, S3UploadFailedError)
    return (error.__context__ or error) if wrapped else error


def _codes(error: BaseException) -> set[str]:
    """Return the names and numbers under which a provider's error is known."""
    codes = {type(error).__name__}
    if isinstance(error, ClientError):
        answer: Any = error.response
        codes.add(str(answer.get("Error", {}).get("Code")))
        codes.add(str(answer.get("ResponseMetadata", {}).get("HTTPStatusCode")))
    codes.update(str(getattr(error, name, "")) for name in ("code", "status_code", "error_code"))
    return codes
