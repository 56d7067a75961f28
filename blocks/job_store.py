"""One job's place in a storage: its spec, its chunks, their manifests and logs.

    renderfarm/<job key>/job.json
    renderfarm/<job key>/chunks/<id>.json                 manifest: the chunk is done
    renderfarm/<job key>/chunks/<id>/<attempt>/<file>     what one attempt wrote
    renderfarm/<job key>/chunks/<id>/<attempt>/log.txt    its full log

Every attempt has keys of its own, so none overwrites another's file. The manifest comes last and
names the file that counts: the first valid one. Should two attempts publish in the same moment,
either manifest names a whole file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from uuid import uuid4

from prefect.blocks.abstract import ObjectStorageBlock
from pydantic import ValidationError

from prefect_renderfarm.blocks.chunk_file import content
from prefect_renderfarm.blocks.chunk_result import ChunkResult
from prefect_renderfarm.blocks.errors import SetupError, StorageError
from prefect_renderfarm.blocks.image_sequence import IMAGE_ENDINGS, list_images
from prefect_renderfarm.blocks.object_store import ObjectStore, StoredObject

ROOT = "renderfarm"


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

    def manifest(self, chunk_id: int) -> ChunkResult | None:
        """Return the manifest of a chunk; None: the chunk is not done.

        Raises:
            StorageError: The storage did not answer.
        """
        data = self.read(self._manifest(chunk_id))
        try:
            return None if data is None else ChunkResult.model_validate_json(data)
        except ValidationError:
            return None

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
        for path, key in _files(result):
            self.store.upload(path, key)
        return self._announce(result, place, log)

    def adopt(self, result: ChunkResult, log: bytes) -> ChunkResult:
        """Let an object that is there already, `result.stored_as`, count as a chunk's file.

        Returns:
            The manifest that counts, as `publish` does.

        Raises:
            StorageError: The manifest could not be sent; the chunk is not done.
        """
        return self._announce(result, self._attempt(result.id), log)

    def _announce(self, result: ChunkResult, place: str, log: bytes) -> ChunkResult:
        result = result.model_copy(update={"log": f"{place}/log.txt"})
        self.store.write(f"{place}/log.txt", log)
        if (first := self.manifest(result.id)) is not None:
            return first
        self.write(self._manifest(result.id), result.model_dump_json().encode())
        return result

    def keep_log(self, chunk_id: int, log: bytes) -> None:
        """Send the log of an attempt that failed."""
        self.store.write(f"{self._attempt(chunk_id)}/log.txt", log)

    def fetch(self, result: ChunkResult, path: Path) -> None:
        """Bring a chunk's file or images to this machine, unless they are there already.

        Raises:
            StorageError: They could not be fetched, or are not what the manifest says.
        """
        wanted = (result.size, result.sha256)
        if content(path) == wanted:
            return
        key = result.stored_as or ""
        if result.images is None:
            self.store.download(key, path)
        else:
            folder = path.parent if path.suffix.lower() in IMAGE_ENDINGS else path
            for name in result.images:
                self.store.download(f"{key}/{name}", folder / name)
        if (found := content(path)) != wanted:
            raise StorageError(
                f"chunk {result.id}: {self.store.name} returned {found} as size and SHA-256 of "
                f"{key!r}, not {wanted}"
            )

    def forget(self, chunk_ids: Iterable[int]) -> None:
        """Delete the manifests of chunks that are to be rendered anew."""
        self.store.delete(f"{self.root}/{self._manifest(number)}" for number in chunk_ids)

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


def _files(result: ChunkResult) -> Sequence[tuple[Path, str]]:
    if result.images is None:
        return [(result.path, str(result.stored_as))]
    images = list_images(result.path).values()
    return [(image, f"{result.stored_as}/{image.name}") for image in images]
