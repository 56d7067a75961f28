"""One job's place in a storage: its spec, its chunks, their manifests and logs.

    renderfarm/<job key>/job.json
    renderfarm/<job key>/chunks/<id>.json                 manifest: the chunk is done
    renderfarm/<job key>/chunks/<id>/<attempt>/<file>     what one attempt wrote
    renderfarm/<job key>/chunks/<id>/<attempt>/log.txt    its full log
    renderfarm/known/<identity>.json                      the manifest again, for other jobs

Every attempt has keys of its own, so none overwrites another's file. The manifest comes last and
names the file that counts: the first valid one. Should two attempts publish in the same moment,
either manifest names a whole file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

from prefect.blocks.abstract import ObjectStorageBlock
from pydantic import ValidationError

from prefect_renderfarm.blocks.errors import (
    AssemblyError,
    SetupError,
    StorageError,
    StorageRefused,
)
from prefect_renderfarm.blocks.media.image_sequence import IMAGE_ENDINGS, list_images
from prefect_renderfarm.blocks.storage.chunk_files import content
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.blocks.storage.object_store import ObjectStore, StoredObject

ROOT = "renderfarm"
KNOWN = f"{ROOT}/known"
# The clocks of a storage's machines differ, and times are rounded to seconds.
_SKEW = timedelta(seconds=5)
_READERS = 8  # boto3 keeps ten connections


class JobStore:
    """A job's objects in a storage; safe to use from several threads and machines.

    Args:
        block: The storage block.
        key: The job's key.
    """

    def __init__(self, block: ObjectStorageBlock, key: str) -> None:
        self.store = ObjectStore(block)
        self.root = f"{ROOT}/{key}"

    def read(self, name: str) -> bytes | None:
        """Return one of the job's records, such as `job.json`; None if it is not there."""
        return self.store.read(f"{self.root}/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Write one of the job's records."""
        self.store.write(f"{self.root}/{name}", data)

    def require_job(self) -> None:
        """Make sure that this is the storage that the job was sent to, before a chunk is rendered.

        Another one looks as if the chunk were not done, and would take its file.

        Raises:
            StorageRefused: It is another one.
        """
        spec = f"{self.root}/job.json"
        if not self.store.has(spec):
            raise StorageRefused(
                f"{self.store.name}, as it is reached from here, has no {spec!r}: check the name "
                "of the bucket, and the credentials, region and endpoint of this machine"
            )

    def manifest(self, chunk_id: int, identity: str | None = None) -> ChunkResult | None:
        """Return the manifest of a chunk; None: the chunk is not done.

        Args:
            chunk_id: Number of the chunk.
            identity: What the chunk must be known by; None: anything.

        Raises:
            StorageError: The storage did not answer.
        """
        found = _parse(self.read(self._manifest(chunk_id)))
        return found if found and identity in (None, found.identity) else None

    def known(self, identity: str) -> ChunkResult | None:
        """Return the manifest under which any job rendered the same chunk; None: none did.

        Raises:
            StorageError: The storage did not answer.
        """
        return _parse(self.store.read(f"{KNOWN}/{identity}.json"))

    def manifests(self, chunk_ids: Iterable[int]) -> dict[int, ChunkResult]:
        """Return the manifests of those chunks that are done. Raises: StorageError."""
        numbers = sorted(self.done(chunk_ids))
        with ThreadPoolExecutor(_READERS, thread_name_prefix="manifests") as readers:
            found = dict(zip(numbers, readers.map(self.manifest, numbers), strict=True))
        return {number: result for number, result in found.items() if result is not None}

    def faults(self, results: Iterable[ChunkResult]) -> dict[int, str]:
        """Return what is wrong with the files of finished chunks, by the chunks' ids.

        No file is read: one is altered if it has another size, or was written after its manifest,
        by the storage's own clocks. What slips through is found when it is fetched.

        Raises:
            StorageError: The storage did not answer.
        """
        try:
            there = {found.key: found for found in self.objects()}
        except SetupError:  # this kind of storage cannot list
            return {}
        faults = {}
        for result in results:
            manifest = there.get(f"{self.root}/{self._manifest(result.id)}")
            key = str(result.stored_as)
            names = [key] if result.images is None else [f"{key}/{name}" for name in result.images]
            files = [there[name] for name in names if name in there]
            if len(files) < len(names):
                faults[result.id] = "its file is gone"
            elif sum(file.size for file in files) != result.size or (
                manifest and max(file.modified for file in files) > manifest.modified + _SKEW
            ):
                faults[result.id] = "its file was altered"
        return faults

    def done(self, chunk_ids: Iterable[int]) -> set[int]:
        """Return which chunks are done, by their manifests; far cheaper than asking for each."""
        try:
            names = {found.key for found in self.store.objects(f"{self.root}/chunks")}
        except SetupError:  # this kind of storage cannot list
            return {number for number in chunk_ids if self.manifest(number) is not None}
        return {number for number in chunk_ids if f"{self.root}/{self._manifest(number)}" in names}

    def publish(self, result: ChunkResult, log: bytes) -> ChunkResult:
        """Send a chunk's file or images and its log, then its manifest.

        Returns:
            The manifest that counts: an earlier one, if another attempt was first.

        Raises:
            StorageError: It could not be sent; the chunk is not done.
        """
        place = self._attempt(result.id)
        result = result.model_copy(update={"stored_as": f"{place}/{result.path.name}"})
        files = _files(result)
        for path, key in files:
            self.store.upload(path, key)
        self._require_whole(place, {key: path.stat().st_size for path, key in files})
        return self._announce(result, place, log)

    def adopt(self, result: ChunkResult, log: bytes) -> ChunkResult:
        """Let an object that is there already, `result.stored_as`, count as a chunk's file.

        Returns:
            The manifest that counts, as `publish` does.

        Raises:
            StorageError: The manifest could not be sent; the chunk is not done.
        """
        return self._announce(result, self._attempt(result.id), log)

    def _require_whole(self, place: str, sent: dict[str, int]) -> None:
        """Make sure that a storage that took files without an error has all of their bytes."""
        try:
            found = {stored.key: stored.size for stored in self.store.objects(place)}
        except (SetupError, StorageRefused):  # it cannot list, or this machine may not
            return
        for key, size in sent.items():
            if found.get(key) != size:
                raise StorageError(
                    f"{self.store.name} took {key!r} of {size:,} bytes and has "
                    f"{found.get(key, 0):,} of them"
                )

    def _announce(self, result: ChunkResult, place: str, log: bytes) -> ChunkResult:
        result = result.model_copy(update={"log": f"{place}/log.txt"})
        self.store.write(f"{place}/log.txt", log)
        if (first := self.manifest(result.id, result.identity)) is not None:
            return first
        self._note(result)
        return result

    def take_over(self, result: ChunkResult, chunk_id: int) -> ChunkResult:
        """Let a chunk of another job count as one of this job, with a copy of its file.

        A copy, because the other job's may be deleted any time.

        Args:
            result: The manifest of the other.
            chunk_id: Number of the chunk here.

        Raises:
            StorageError: The file is not there any more, or cannot be copied.
        """
        place = self._attempt(chunk_id)
        old, new = str(result.stored_as), f"{place}/{Path(str(result.stored_as)).name}"
        for name in [""] if result.images is None else [f"/{image}" for image in result.images]:
            self.store.copy(old + name, new + name)
        with suppress(StorageError):  # a chunk is as good without its log
            self.store.copy(str(result.log), f"{place}/log.txt")
        result = result.model_copy(
            update={"id": chunk_id, "stored_as": new, "log": f"{place}/log.txt"}
        )
        self._note(result)
        return result

    def _note(self, result: ChunkResult) -> None:
        """Write a chunk's manifest: for all jobs, then for this one, where it makes it count."""
        manifest = result.model_dump_json().encode()
        if result.identity:
            self.store.write(f"{KNOWN}/{result.identity}.json", manifest)
        self.write(self._manifest(result.id), manifest)

    def keep_log(self, chunk_id: int, log: bytes) -> None:
        """Send the log of an attempt that failed."""
        self.store.write(f"{self._attempt(chunk_id)}/log.txt", log)

    def fetch(self, result: ChunkResult, path: Path) -> None:
        """Bring a chunk's file or images to this machine, unless they are there already.

        A chunk whose file is not what was rendered does not count as done any more.

        Raises:
            AssemblyError: They are not what the manifest says.
            StorageError: They could not be fetched.
            OSError: This machine's disk is full, or cannot be written to.
        """
        wanted = (result.size, result.sha256)
        if content(path) == wanted:
            return
        for _ in range(2):  # what was damaged on its way here is whole the second time
            self._download(result, path)
            if (found := content(path)) == wanted:
                return
        with suppress(SetupError, StorageError):
            self.forget({result.id: result.identity})
        raise AssemblyError(
            f"{self.store.name} returned {found} as size and SHA-256 of "
            f"{result.stored_as!r}, not {wanted}: run render-job again, which renders it anew"
        )

    def _download(self, result: ChunkResult, path: Path) -> None:
        key = result.stored_as or ""
        if result.images is None:
            self.store.download(key, path)
        else:
            folder = path.parent if path.suffix.lower() in IMAGE_ENDINGS else path
            for name in result.images:
                self.store.download(f"{key}/{name}", folder / name)

    def forget(self, identities: Mapping[int, str]) -> None:
        """Delete the manifests of chunks that are to be rendered anew.

        Args:
            identities: What the chunks are known by, by their ids.
        """
        known = [f"{KNOWN}/{identity}.json" for identity in identities.values()]
        own = [f"{self.root}/{self._manifest(number)}" for number in identities]
        self.store.delete(known + own)

    def objects(self) -> Iterator[StoredObject]:
        """Give all objects of the job, and no others."""
        return self.store.objects(self.root)

    def delete_chunks(self) -> int:
        """Delete the job's chunk files, logs and manifests; return how many objects that were."""
        keys = [found.key for found in self.store.objects(f"{self.root}/chunks")]
        # Manifests first: whatever is left if this is cut short, no manifest names a missing file.
        self.store.delete(sorted(keys, key=lambda key: not key.endswith(".json")))
        return len(keys)

    def _attempt(self, chunk_id: int) -> str:
        """Return a folder that no other attempt has."""
        return f"{self.root}/chunks/{chunk_id:06d}/{uuid4().hex}"

    @staticmethod
    def _manifest(chunk_id: int) -> str:
        return f"chunks/{chunk_id:06d}.json"


def _parse(data: bytes | None) -> ChunkResult | None:
    try:
        return None if data is None else ChunkResult.model_validate_json(data)
    except ValidationError:
        return None


def _files(result: ChunkResult) -> Sequence[tuple[Path, str]]:
    if result.images is None:
        return [(result.path, str(result.stored_as))]
    images = list_images(result.path).values()
    return [(image, f"{result.stored_as}/{image.name}") for image in images]
