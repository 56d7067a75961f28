"""Looks all the time at what a job has published: its film and its manifests."""

from __future__ import annotations

import tempfile
import threading
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from av.error import FFmpegError
from media_samples import frame_hashes
from prefect_aws.s3 import S3Bucket
from repeating import repeating

from chaos.work import CHUNKS, Work

_FOLDER_SECONDS, _STORAGE_SECONDS = 0.05, 0.4


class Watch:
    """What was seen of a job, whose chunks are in its folder or in a bucket.

    Attributes:
        published: When each chunk's manifest was seen first, in seconds since 1970.
        broken: What was wrong with files under the film's name.
        films: Number of files that were seen under the film's name.
    """

    def __init__(self, work: Work, bucket: S3Bucket | None, film: str) -> None:
        self.published: dict[int, float] = {}
        self.broken: list[str] = []
        self.films = 0
        self._work = work
        self._bucket = bucket
        self._client: Any = bucket.credentials.get_s3_client() if bucket else None
        self._key = film.removeprefix("storage:") if film.startswith("storage:") else None
        self._path = work.folder / film
        self._version: object = None
        self._lock = threading.Lock()

    def watching(self) -> AbstractContextManager[None]:
        """Look again and again, in a thread of its own."""
        return repeating(self.look, _STORAGE_SECONDS if self._bucket else _FOLDER_SECONDS)

    def look(self) -> None:
        """Look once."""
        with self._lock:
            for number in self.manifests() - self.published.keys():
                self.published[number] = time.time()
            self._look_at_film()

    def manifests(self) -> set[int]:
        """Return which chunks have a manifest now."""
        work = self._work
        if self._bucket is None:
            names = [
                path.name
                for path in (work.folder / ".renderfarm" / work.job.key / "chunks").glob("*.json")
            ]
        else:
            names = [
                found["Key"].rpartition("/")[2]
                for found in self._objects(f"renderfarm/{work.job.key}/chunks/")
                if found["Key"].count("/") == 3
            ]
        return {int(name.removesuffix(".json")) for name in names if name[0].isdigit()}

    def rendered_again(self) -> list[int]:
        """Return the chunks that were begun after their manifest had been seen."""
        return [
            number
            for number, moment in self._work.begun()
            if moment > self.published.get(number, float("inf"))
        ]

    def lost(self) -> int:
        """Return how many chunks are not done, or not any more."""
        return CHUNKS - len(self.manifests())

    def has_new_film(self) -> bool:
        """Return whether the film is the job's, frame by frame."""
        data = self._film()
        return data is not None and _frames(data) == self._work.clips.frames

    def _look_at_film(self) -> None:
        version = self._film_version()
        if version is None or version == self._version:
            return
        self._version = version
        data = self._film()
        clips = self._work.clips
        self.films += 1
        try:
            good = data is not None and _frames(data) in (clips.frames, clips.old_frames)
        except (FFmpegError, OSError, IndexError) as error:
            self.broken.append(f"{self._work.job.title}: {error}")
        else:
            if not good:
                self.broken.append(f"{self._work.job.title}: {len(data or b'')} bytes")

    def _film_version(self) -> object:
        if self._key is not None:
            return next((found["ETag"] for found in self._objects(self._key)), None)
        with suppress(FileNotFoundError):
            status = self._path.stat()
            return status.st_ino, status.st_mtime_ns, status.st_size
        return None

    def _film(self) -> bytes | None:
        if self._bucket is not None and self._key is not None:
            with suppress(self._client.exceptions.NoSuchKey):
                answer = self._client.get_object(Bucket=self._bucket.bucket_name, Key=self._key)
                return bytes(answer["Body"].read())
            return None
        return self._path.read_bytes() if self._path.exists() else None

    def _objects(self, prefix: str) -> list[dict[str, Any]]:
        assert self._bucket is not None
        answer = self._client.list_objects_v2(Bucket=self._bucket.bucket_name, Prefix=prefix)
        found: list[dict[str, Any]] = answer.get("Contents", [])
        return found


def _frames(data: bytes) -> list[str]:
    """Return the hashes of a film's frames."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(data)
        file.flush()
        return frame_hashes(Path(file.name))
