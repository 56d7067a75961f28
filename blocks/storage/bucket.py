"""Objects in a Prefect storage block: S3, Google Cloud Storage, Azure and others."""

from __future__ import annotations

import contextvars
import errno
import hashlib
import io
import os.path
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from boto3.exceptions import S3UploadFailedError
from botocore.config import Config
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
# Amazon S3 API reference, DeleteObjects and ListObjectsV2.
_MOST_IN_ONE_REQUEST = 1000
# What is listed for each object that is looked for: a chunk's manifest, file, log and picture.
_LISTED_EACH = 4
# Amazon S3 User Guide, "Uploading and copying objects using multipart upload": larger files go in
# parts, each of which is a request.
_MOST_IN_ONE_PART = 100_000_000
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
            if (s3 := self._s3) is not None:  # without a request for its size before
                return bytes(s3.get_object(**self._place(key))["Body"].read())
            _out_of_the_log(self.block.download_object_to_file_object, key, data)
            return data.getvalue()
        return None

    def has(self, key: str) -> bool:
        """Return whether an object exists."""
        with suppress(ObjectMissing), self._errors("look for", key):
            if (s3 := self._s3) is None:
                return super().has(key)
            s3.head_object(**self._place(key))
            return True
        return False

    def link(self, key: str, seconds: int) -> str | None:
        """Return a presigned URL of an object in S3; one of expiring credentials ends with them."""
        if not isinstance(self.block, S3Bucket):
            return None
        s3 = self._s3
        with self._errors("sign", key):
            # boto3 still signs URLs by version 2, which regions since 2014 and others refuse.
            signer = self.block.credentials.get_boto3_session().client(
                "s3", endpoint_url=s3.meta.endpoint_url, region_name=s3.meta.region_name,
                config=s3.meta.config.merge(Config(signature_version="s3v4")),
            )  # fmt: skip
            return str(
                signer.generate_presigned_url(
                    "get_object", Params=self._place(key), ExpiresIn=seconds
                )
            )

    def write(self, key: str, data: bytes) -> None:
        """Write a small object."""
        with self._errors("write", key):
            _out_of_the_log(self.block.upload_from_file_object, io.BytesIO(data), key)

    def create(self, key: str, data: bytes) -> bool:
        """Write a small object unless one exists, by a conditional request.

        Amazon S3 User Guide, "How to prevent object overwrites with conditional writes"; Google
        Cloud Storage, "Request preconditions".
        """
        try:
            with self._errors("create", key):
                if (s3 := self._s3) is not None:
                    s3.put_object(**self._place(key), Body=data, IfNoneMatch="*")
                elif hasattr(self.block, "get_bucket"):
                    blob = _out_of_the_log(self.block.get_bucket).blob(self.absolute(key))
                    blob.upload_from_string(data, if_generation_match=0)
                else:
                    raise SetupError(f"{self.name} cannot create an object on condition")
        except FileExistsError:
            # The client repeats a request of which the answer was lost.
            return self.read(key) == data
        return True

    def upload(self, path: Path, key: str) -> bool:
        """Send a file, in parts where it is large; return whether S3 has answered with its MD5.

        Amazon S3 API reference, "Object": the ETag of an object that was sent in one part is its
        MD5, unless it is encrypted with a key of KMS or of the client.
        """
        with self._errors("write", key):
            if (s3 := self._s3) is None or path.stat().st_size > _MOST_IN_ONE_PART:
                _out_of_the_log(self.block.upload_from_path, path, key)
                return False
            with path.open("rb") as file:
                md5 = hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False))
                file.seek(0)
                answer = s3.put_object(**self._place(key), Body=file)
        return str(answer.get("ETag")).strip('"') == md5.hexdigest()

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
                s3.copy(self._place(key), self.bucket, self.absolute(other))
                return
        with tempfile.TemporaryDirectory(prefix="renderfarm-") as folder:
            path = Path(folder) / "copy"
            self.download(key, path)
            self.upload(path, other)

    def objects(self, folder: str) -> Iterator[StoredObject]:
        """Give the objects in a folder and below it."""
        after: str | None = (folder := f"{folder.rstrip('/')}/")
        while after is not None:
            page, after = self._page(folder, after)
            yield from page

    def find(self, keys: Collection[str]) -> dict[str, StoredObject]:
        """Return those of some objects that exist: by lists, each from the next that is wanted.

        So there are never more lists than keys, nor many more than the objects between them fill.
        """
        left, found = sorted(set(keys)), dict[str, StoredObject]()
        folder = os.path.commonprefix([*left[:1], *left[-1:]])  # noqa: RUF071 -- of characters
        flat = not any("/" in key[len(folder) :] for key in left)
        while left:
            count = min(_LISTED_EACH * (len(left) + 1), _MOST_IN_ONE_REQUEST)
            page, after = self._page(folder, left[0][:-1], count, flat=flat)
            found |= {one.key: one for one in page}
            left = [] if after is None else left[bisect_right(left, after) :]
        return {key: found[key] for key in keys if key in found}

    def _page(
        self, prefix: str, after: str, count: int = _MOST_IN_ONE_REQUEST, *, flat: bool = False
    ) -> tuple[list[StoredObject], str | None]:
        """Return the first objects with a prefix after a key; and the last key if there are more.

        If `flat`, S3 gives a folder in the place of all that is in it: a list is for more chunks.
        Cloud Storage begins with the key itself.
        """
        prefix, after = self.absolute(prefix), self.absolute(after)
        cut = len(self._folder)
        with self._errors("list", prefix):
            if (s3 := self._s3) is not None:
                answer = s3.list_objects_v2(
                    Bucket=self.bucket, Prefix=prefix, StartAfter=after, MaxKeys=count,
                    **({"Delimiter": "/"} if flat else {}),
                )  # fmt: skip
                listed = answer.get("Contents", ())
                page = [StoredObject(o["Key"][cut:], o["Size"], o["LastModified"]) for o in listed]
                folders = [each["Prefix"][cut:] for each in answer.get("CommonPrefixes", ())]
                names = [*folders, *(one.key for one in page)]
                return page, max(names) if answer["IsTruncated"] else None
            if hasattr(self.block, "get_bucket"):
                bucket, count = _out_of_the_log(self.block.get_bucket), count + 1
                blobs = list(bucket.list_blobs(count, prefix=prefix, start_offset=after))
                new = [blob for blob in blobs if blob.name > after]
                page = [StoredObject(blob.name[cut:], blob.size, blob.updated) for blob in new]
                return page, page[-1].key if len(blobs) == count else None
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
                for first in range(0, len(names), _MOST_IN_ONE_REQUEST):
                    some = [{"Key": name} for name in names[first : first + _MOST_IN_ONE_REQUEST]]
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

    def _place(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.absolute(key)}

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
