"""A storage that fails on purpose, for workers of every kind."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from faulty_proxy import Answer, FaultyProxy, Request
from media_samples import Recipe, frame_hashes, write_clip
from prefect_aws import AwsCredentials
from prefect_aws.s3 import S3Bucket
from storage_samples import REGION, S3Server

from prefect_renderfarm.blocks.storage.manifest import ChunkResult, content
from prefect_renderfarm.flows import RenderJob, plan_job

# What S3 answers to whom a policy does not let in.
DENIED = Answer(403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")

# Once, chunk 1 finds the disk full, and its log no room either.
RENDERER = """echo $1 >> {ran}
if test "$1" = 1 && test -e {fill}; then
  rm {fill}; head -c 200000000 /dev/zero > junk 2>/dev/null; printf '%020000d' 1
fi
cp frames/$1.mp4 "$2"
"""


@dataclass
class FaultyStorage:
    """An S3 server behind a proxy; every worker goes through the proxy, who orders does not.

    Attributes:
        s3: The server.
        proxy: What workers see.
        temporary: The workers' folder for temporary files.
        short: Parts of paths: the next upload to one loses its last byte, and the answer is 200.
        attempts: How often a worker began with chunk 0.
        on_attempt: Called with that number, before the worker has an answer.
        on_input: Called when a worker asks for an input file.
    """

    s3: S3Server
    proxy: FaultyProxy
    temporary: Path
    short: list[str] = field(default_factory=list)
    attempts: int = 0
    on_attempt: Callable[[int], object] = lambda _: None
    on_input: Callable[[], object] = lambda: None
    _last: str = ""
    _follows: str = ""  # what is in the path of the request before that of a further attempt
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reset(self) -> None:
        """Let nothing go wrong, until a test says so."""
        self.proxy.target, self.proxy.gate = self.s3.url, self.gate
        self.proxy.fail()
        (self.temporary / "ballast").unlink(missing_ok=True)
        self.short, self.attempts = [], 0
        self.on_attempt, self.on_input = lambda _: None, lambda: None

    def environment(self) -> dict[str, str]:
        """Return the variables by which a worker finds the storage and its temporary folder."""
        there = dataclasses.replace(self.s3, port=self.proxy.port).environment()
        return there | {"AWS_MAX_ATTEMPTS": "2", "TMPDIR": str(self.temporary)}

    def block(self, bucket: S3Bucket, kind: str) -> S3Bucket:
        """Return the storage block that a job is given: whose worker is this process, has its way.

        That of a work pool is saved, without credentials: each machine has its own.
        """
        # Who orders a chunk looks for it, too, or its run writes what failed.
        self._follows = {"local": "/chunks/000000.json", "work-pool": "/runs/"}.get(kind, "")
        if kind == "work-pool":
            block = S3Bucket(
                bucket_name=bucket.bucket_name, credentials=AwsCredentials(region_name=REGION)
            )
            block.save(f"faulty-{bucket.bucket_name}", overwrite=True)
            return S3Bucket.load(f"faulty-{bucket.bucket_name}")
        if kind != "local":
            return bucket
        credentials = dataclasses.replace(self.s3, port=self.proxy.port).credentials()
        credentials.aws_client_parameters.config = {"retries": {"total_max_attempts": 2}}
        return bucket.model_copy(update={"credentials": credentials})

    def gate(self, request: Request) -> Answer | None:
        """Notice what workers do, and lose the end of uploads."""
        with self._lock:
            return self._gate(request)

    def _gate(self, request: Request) -> Answer | None:
        # A worker makes sure of the job before its first chunk, or a run reads it; before each
        # further attempt it looks for the chunk's manifest.
        first = request.method in ("HEAD", "GET") and request.path.endswith("/job.json")
        further = request.method == "GET" and request.path.endswith("/chunks/000000.json")
        if (first and not self.attempts) or (further and self._follows in self._last):
            self.attempts += 1
            self.on_attempt(self.attempts)
        elif "/assets/" in request.path:
            self.on_input()
        self._last = request.path
        part = next((part for part in self.short if part in request.path), None)
        if request.method != "PUT" or part is None:
            return None
        self.short.remove(part)
        _, bucket, key = request.path.split("/", 2)
        stored = self.s3.client().put_object(Bucket=bucket, Key=key, Body=request.body[:-1])
        return Answer(200, headers=(("ETag", stored["ETag"]),))


@dataclass(frozen=True)
class Work:
    """A job of three chunks of two frames that needs its input files.

    Attributes:
        job: The job.
        clips: What its commands copy.
        ran: Where its commands write which chunk they render.
    """

    job: RenderJob
    clips: list[Path]
    ran: Path

    def begun(self) -> list[int]:
        """Return which chunks were begun, in order."""
        return [int(line) for line in self.ran.read_text().split()] if self.ran.exists() else []

    @property
    def frames(self) -> list[str]:
        """The frames of its film."""
        return [digest for clip in self.clips for digest in frame_hashes(clip)]


def make_work(folder: Path) -> Work:
    """Return a job; its command for chunk 1 fills the disk once, if the file `fill` is there."""
    scene, ran = folder / "scene", folder / "ran"
    clips = [
        write_clip(scene / "frames" / f"{number}.mp4", 2 * number, 2, Recipe(fps=Fraction(24)))
        for number in range(3)
    ]
    text = RENDERER.format(ran=shlex.quote(str(ran)), fill=shlex.quote(str(folder / "fill")))
    (scene / "render.sh").write_text(text)
    planned = plan_job(6, 24, chunks=3, id="f", command_template="sh render.sh {id} {output}")
    job = RenderJob.model_validate(json.loads(planned.to_json()) | {"assetsUrl": str(scene)})
    return Work(job, clips, ran)


def described(path: Path, number: int) -> ChunkResult:
    """Return the manifest of a chunk, as a worker makes it before it publishes the file."""
    size, sha256 = content(path) or (0, "")
    return ChunkResult(
        id=number, start_frame=2 * number, frame_count=2, output_file=path.name, path=path,
        size=size, sha256=sha256, seconds=0.0,
    )  # fmt: skip


def fill(disk: Path, leave: int = 0) -> Path:
    """Take all room of a disk but some bytes, and return the file that takes it."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - leave)
    return ballast
