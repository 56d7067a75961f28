"""What the errors of storages mean, whatever library raises them."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import ClientError
from prefect.blocks.abstract import ObjectStorageBlock

from prefect_renderfarm.blocks.errors import (
    ObjectMissing,
    SetupError,
    StorageError,
    StorageRefused,
)
from prefect_renderfarm.blocks.storage.bucket import BucketStore


class FailingBlock(ObjectStorageBlock):
    """A storage block of another provider that answers everything with one error."""

    _block_type_slug = "failing-block"
    container_name: str = "films"
    error: Any = None

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise self.error

    download_object_to_path = download_object_to_file_object = _fail
    download_folder_to_path = upload_from_folder = _fail
    upload_from_path = upload_from_file_object = _fail


class HttpError(Exception):
    """An error of a client that knows the answer's status."""

    def __init__(self, code: int) -> None:
        super().__init__(f"status {code}")
        self.code = code


def store(error: Exception) -> BucketStore:
    """Return a store whose block raises an error."""
    return BucketStore(FailingBlock(error=error))


def s3_error(code: str, status: int) -> ClientError:
    """Return an error of boto3."""
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "any")


@pytest.mark.parametrize("error", [s3_error("NoSuchKey", 404), HttpError(404)])
def test_missing_object(error: Exception, tmp_path: Path) -> None:
    """What does not exist is None, False, or an error with its key; nothing is left of a file."""
    failing = store(error)
    assert failing.read("a") is None
    assert not failing.has("a")
    for call in (failing.download, failing.copy):
        with pytest.raises(
            ObjectMissing, match=r"^storage failing-block 'films' has no object 'a'"
        ):
            call("a", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_upload_that_is_lost_is_no_missing_object(tmp_path: Path) -> None:
    """A storage that answers 404 while it is written to failed; another attempt may succeed."""
    failing = store(s3_error("NoSuchUpload", 404))
    for call in (lambda: failing.write("a", b""), lambda: failing.upload(tmp_path, "a")):
        with pytest.raises(StorageError, match="cannot write 'a': ") as caught:
            call()
        assert type(caught.value) is StorageError


@pytest.mark.parametrize("error", [s3_error("NoSuchBucket", 404), HttpError(403)])
def test_refusal(error: Exception) -> None:
    """Wrong credentials and missing buckets are refusals, and the fix is named."""
    with pytest.raises(StorageRefused, match=r"refuses to write 'a': .*check the name"):
        store(error).write("a", b"")


def test_error_within_an_upload() -> None:
    """boto3 wraps what it is told of an upload; the cause counts."""
    try:
        try:
            raise s3_error("AccessDenied", 403)
        except ClientError as error:
            raise S3UploadFailedError("failed") from error
    except S3UploadFailedError as error:
        wrapped = error
    with pytest.raises(StorageRefused):
        store(wrapped).write("a", b"")


def test_full_disk_here_is_no_error_of_the_storage(tmp_path: Path) -> None:
    """A download for which this machine has no room names the file."""
    with pytest.raises(OSError, match="No space left") as caught:
        store(OSError(errno.ENOSPC, "No space left on device")).download("a", tmp_path / "a")
    assert caught.value.filename == str(tmp_path / "a")


def test_operations_that_a_block_lacks() -> None:
    """Without a bucket's methods nothing is created, listed or deleted; an empty list is fine."""
    other = store(HttpError(500))
    other.delete([])
    for call in (
        lambda: other.create("a", b""), lambda: list(other.objects("a")),
        lambda: other.delete(["a"]),
    ):  # fmt: skip
        with pytest.raises(SetupError, match=r"^storage failing-block 'films' can"):
            call()
