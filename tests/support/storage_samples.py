"""A real S3 server for the tests, and storage blocks that point at it."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect_aws import AwsCredentials
from prefect_aws.s3 import S3Bucket
from pydantic import SecretStr

ACCESS_KEY, SECRET = "farm:farm", "s3cret-of-the-storage"
REGION = "us-east-1"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class S3Server:
    """Where the S3 server is, and what it lets in."""

    port: int
    folder: Path
    secret: str = field(default=SECRET, repr=False)

    @property
    def url(self) -> str:
        """The address of its API."""
        return f"http://127.0.0.1:{self.port}"

    def credentials(self, secret: str | None = None) -> AwsCredentials:
        """Return credentials for it."""
        return AwsCredentials(
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SecretStr(secret or self.secret),
            region_name=REGION,
            aws_client_parameters={
                "endpoint_url": self.url,
                "config": {"retries": {"max_attempts": 2}},
            },
        )

    def environment(self) -> dict[str, str]:
        """Return the variables by which boto3 finds it in a worker's own environment."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL_S3": self.url,
        }

    def new_bucket(self, folder: str = "") -> S3Bucket:
        """Make a bucket, and return a storage block for it."""
        name = f"renders-{self.port}-{next(_numbers)}"  # test processes share a farm
        self.client().create_bucket(Bucket=name)
        return S3Bucket(bucket_name=name, bucket_folder=folder, credentials=self.credentials())

    def client(self) -> Any:
        """Return a boto3 client for it."""
        return self.credentials().get_s3_client()


def keys(block: S3Bucket) -> list[str]:
    """Return all keys in a block's bucket."""
    client: Any = block.credentials.get_s3_client()
    answer = client.list_objects_v2(Bucket=block.bucket_name)
    return [found["Key"] for found in answer.get("Contents", [])]


@contextmanager
def serving(folder: Path, secret: str = SECRET) -> Iterator[S3Server]:
    """Run the S3 server in a process of its own."""
    port = _four_free_ports()
    script = Path(__file__).with_name("s3_server.py")
    process = subprocess.Popen(
        [sys.executable, script, folder, str(port), ACCESS_KEY, secret],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        yield S3Server(port, folder, secret)
    finally:
        process.kill()
        process.wait()


def _four_free_ports() -> int:
    """Return the first of four free ports in a row."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = int(probe.getsockname()[1])
        try:
            for port in range(first, first + 4):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
