"""Objects in a Prefect storage block: S3, Google Cloud Storage, Azure and others."""

from __future__ import annotations

import contextvars
import errno
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import ClientError
from prefect.blocks.abstract import ObjectStorageBlock
from prefect_aws.s3 import S3Bucket

from prefect_renderfarm.blocks.errors import (
    ObjectMissing,
    RenderFarmError,
    SetupError,
    StorageError,
    StorageRefused,
)
from prefect_renderfarm.blocks.runtime.prefect_api import call_sync
from prefect_renderfarm.blocks.storage.atomic_file import atomic_file
from prefect_renderfarm.blocks.storage.objects import ObjectStore, StoredObject

# The names and numbers of providers' errors: an object that is to be read does not exist ...
_MISSING = frozenset({"NoSuchKey", "NotFound", "404", "ResourceNotFoundError", "BlobNotFound"})
_READING = frozenset({"read", "look for", "copy"})
# ... one that is to be created exists: 409 while another request creates it ...
_EXISTS = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict", "409"})
# ... and asking again will not help.
_REFUSED = frozenset(
    {"NoSuchBucket", "SignatureDoesNotMatch", "InvalidAccessKeyId", "AccessDenied", "401", "403",
     "Forbidden", "Unauthorized", "ExpiredToken", "InvalidToken", "AuthorizationHeaderMalformed",
     "NoCredentialsError", "PartialCredentialsError", "ClientAuthenticationError",
     "DefaultCredentialsError", "ContainerNotFound"}
)  # fmt: skip
# What a download raises that finds no room on this machine; it does not name the file.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# Amazon S3 API reference, DeleteObjects.
_MOST_DELETED = 1000
_NAMES_OF_BUCKETS = ("bucket_name", "bucket", "container_name")


class BucketStore(ObjectStore):
    """A storage block, with errors that tell whether asking again may help.

    Reading and writing take any `ObjectStorageBlock`. Creating, listing and deleting are no part of
    that interface: they take `S3Bucket`, and blocks with the methods of `GcsBucket`. Keys are below
    the storage block's own folder.
    """

    root: ClassVar[str] = "renderfarm"
    in_place: ClassVar[bool] = False

    def __init__(self, block: ObjectStorageBlock) -> None:
        self.block = block
        self.bucket = next(
            (str(getattr(block, name)) for name in _NAMES_OF_BUCKETS if hasattr(block, name)), ""
        )
        self.name = f"storage {block.get_block_type_slug()} {self.bucket!r}"
        folder = str(getattr(block, "bucket_folder", "") or "").strip("/")
        self._folder = f"{folder}/" if folder else ""

    def read(self, key: str) -> bytes | None:
        """Return the bytes of a small object; None if it does not exist."""
        data = io.BytesIO()
        with suppress(ObjectMissing), self._errors("read", key):
            _out_of_the_log(self.block.download_object_to_file_object, key, data)
            return data.getvalue()
        return None

    def has(self, key: str) -> bool:
        """Return whether an object exists."""
        with suppress(ObjectMissing), self._errors("look for", key):
            if (s3 := self._s3) is None:
                return super().has(key)
            s3.head_object(Bucket=self.bucket, Key=self.absolute(key))
            return True
        return False

    def write(self, key: str, data: bytes) -> None:
        """Write a small object."""
        with self._errors("write", key):
            _out_of_the_log(self.block.upload_from_file_object, io.BytesIO(data), key)

    def create(self, key: str, data: bytes) -> bool:
        """Write a small object unless one exists, by a conditional request.

        Amazon S3 User Guide, "How to prevent object overwrites with conditional writes"; Google
        Cloud Storage, "Request preconditions".
        """
        name = self.absolute(key)
        try:
            with self._errors("create", key):
                if (s3 := self._s3) is not None:
                    s3.put_object(Bucket=self.bucket, Key=name, Body=data, IfNoneMatch="*")
                elif hasattr(self.block, "get_bucket"):
                    blob = _out_of_the_log(self.block.get_bucket).blob(name)
                    blob.upload_from_string(data, if_generation_match=0)
                else:
                    raise SetupError(f"{self.name} cannot create an object on condition")
        except FileExistsError:
            # The client repeats a request of which the answer was lost.
            return self.read(key) == data
        return True

    def upload(self, path: Path, key: str) -> None:
        """Send a file, in parts where it is large."""
        with self._errors("write", key):
            _out_of_the_log(self.block.upload_from_path, path, key)

    def download(self, key: str, path: Path) -> None:
        """Fetch an object into a file, which appears whole or not at all."""
        try:
            with atomic_file(path) as temporary, self._errors("read", key):
                _out_of_the_log(self.block.download_object_to_path, key, temporary)
        except OSError as error:
            raise OSError(error.errno, error.strerror, error.filename or str(path)) from None

    def copy(self, key: str, other: str) -> None:
        """Copy an object, without it leaving S3; from other storages by way of this machine."""
        with self._errors("copy", key):
            if (s3 := self._s3) is not None:
                source = {"Bucket": self.bucket, "Key": self.absolute(key)}
                s3.copy(source, self.bucket, self.absolute(other))
                return
        with tempfile.TemporaryDirectory(prefix="renderfarm-") as folder:
            path = Path(folder) / "copy"
            self.download(key, path)
            self.upload(path, other)

    def objects(self, folder: str) -> Iterator[StoredObject]:
        """Give the objects in a folder and below it."""
        folder = f"{folder.rstrip('/')}/"
        with self._errors("list", folder):
            if isinstance(self.block, S3Bucket):
                for found in _out_of_the_log(self.block.list_objects, folder):
                    key = found["Key"].removeprefix(self._folder)
                    yield StoredObject(key, found["Size"], found["LastModified"])
            elif hasattr(self.block, "list_blobs") and hasattr(self.block, "get_bucket"):
                for blob in _out_of_the_log(self.block.list_blobs, folder):
                    key = blob.name.removeprefix(self._folder)
                    yield StoredObject(key, blob.size, blob.updated)
            else:
                raise SetupError(
                    f"{self.name} can be written and read, but not listed: remove what jobs left "
                    "with your provider's own tools, such as a rule for the age of objects"
                )

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that do not exist are no error."""
        if not (names := [self.absolute(key) for key in keys]):
            return
        with self._errors("delete", names[0]):
            if (s3 := self._s3) is not None:
                for first in range(0, len(names), _MOST_DELETED):
                    some = [{"Key": name} for name in names[first : first + _MOST_DELETED]]
                    wanted = {"Objects": some, "Quiet": True}
                    answer = s3.delete_objects(Bucket=self.bucket, Delete=wanted)
                    if kept := answer.get("Errors"):
                        raise StorageError(
                            f"{self.name} keeps {kept[0]['Key']!r}: {kept[0]['Message']}"
                        )
            elif hasattr(self.block, "get_bucket"):
                _out_of_the_log(self.block.get_bucket).delete_blobs(names, on_error=lambda _: None)
            else:
                raise SetupError(f"{self.name} cannot delete objects")

    def absolute(self, key: str) -> str:
        """Return an object's key in the bucket, with the storage block's own folder."""
        return self._folder + key

    @property
    def _s3(self) -> Any:
        """The client of a bucket in S3; None for other storages."""
        return self.block.credentials.get_s3_client() if isinstance(self.block, S3Bucket) else None

    @contextmanager
    def _errors(self, what: str, key: str) -> Iterator[None]:
        """Turn a provider's error into one of ours, by its code and not by its words."""
        try:
            yield
        except RenderFarmError:
            raise
        except Exception as raised:
            # boto3's own error of an upload holds the provider's as text only.
            wrapped = isinstance(raised, S3UploadFailedError)
            error = (raised.__context__ or raised) if wrapped else raised
            codes = _codes(error)
            if codes & _REFUSED:
                raise StorageRefused(
                    f"{self.name} refuses to {what} {key!r}: {error}; check the name of the "
                    "bucket, and the credentials of the machine that asks"
                ) from None
            if codes & _MISSING and what in _READING:
                raise ObjectMissing(f"{self.name} has no object {key!r}") from None
            if codes & _EXISTS and what == "create":
                raise FileExistsError from None
            if isinstance(error, OSError) and (error.filename or error.errno in _NO_ROOM):
                raise  # of a file on this machine, not of the storage
            raise StorageError(f"{self.name} cannot {what} {key!r}: {error}") from None


def _out_of_the_log(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call a storage block's method outside the run's context, to whose log it adds each object.

    A job of 1,000 chunks would fill that log with more than 10,000 lines.
    """
    return contextvars.Context().run(call_sync, call, *arguments)


def _codes(error: BaseException) -> set[str]:
    """Return the names and numbers of a provider's error."""
    codes = {type(error).__name__}
    if isinstance(error, ClientError):
        answer: Any = error.response
        codes.add(str(answer.get("Error", {}).get("Code")))
        codes.add(str(answer.get("ResponseMetadata", {}).get("HTTPStatusCode")))
    codes.update(str(getattr(error, name, "")) for name in ("code", "status_code", "error_code"))
    return codes
