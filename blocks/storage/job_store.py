"""One job's objects in a store: its spec, its records, its chunks' manifests, files and logs.

    <root>/<job key>/job.json
    <root>/<job key>/chunks/<id>.json                 manifest: the chunk is done
    <root>/<job key>/chunks/<id>/<attempt>/<file>     what one attempt sent to a storage
    <root>/<job key>/chunks/<id>/<attempt>/log.txt    its full log
    <root>/known/<cache key>.json                     the manifest again, for other jobs

In a shared folder commands write the chunks' files themselves, to the names that the job gives
them. In a storage every attempt has keys of its own, so none overwrites another's file. The
manifest comes last and names the file that counts. It is created once: the first valid one counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

from pydantic import ValidationError

from prefect_renderfarm.blocks.errors import (
    AssemblyError,
    SetupError,
    StorageError,
    StorageRefused,
)
from prefect_renderfarm.blocks.media.image_sequence import IMAGE_ENDINGS, list_images
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.storage.manifest import ChunkResult, content
from prefect_renderfarm.blocks.storage.objects import ObjectStore

# The clocks of a storage's machines differ, and times are rounded to seconds.
_SKEW = timedelta(seconds=5)
_READERS = 8  # boto3 keeps ten connections


class JobStore:
    """A job's objects; safe to use from several threads and machines.

    Methods raise `StorageError` if a storage does not answer, `OSError` for a folder.

    Args:
        store: The store.
        key: The job's key.
    """

    def __init__(self, store: ObjectStore, key: str) -> None:
        self.store = store
        self.root = f"{store.root}/{key}"

    def read(self, name: str) -> bytes | None:
        """Return one of the job's records, such as `job.json`; None if it does not exist."""
        return self.store.read(f"{self.root}/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Write one of the job's records."""
        self.store.write(f"{self.root}/{name}", data)

    def create(self, name: str, data: bytes) -> bool:
        """Write one of the job's records unless it exists; return whether it was written."""
        return self.store.create(f"{self.root}/{name}", data)

    def names(self, folder: str) -> list[str]:
        """Return the names of the job's records in a folder, such as `lock`."""
        cut = len(self.root) + 1
        return [found.key[cut:] for found in self.store.objects(f"{self.root}/{folder}")]

    def delete(self, names: Iterable[str]) -> None:
        """Delete records of the job."""
        self.store.delete([f"{self.root}/{name}" for name in names])

    def require_job(self) -> None:
        """Make sure that this is the store that has the job, before a chunk is rendered.

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
            identity: The chunk's cache key; None: any.
        """
        found = _parse(self.read(_manifest(chunk_id)))
        return found if found and identity in (None, found.identity) else None

    def manifests(self, chunk_ids: Iterable[int]) -> dict[int, ChunkResult]:
        """Return the manifests of those chunks that are done, whatever their cache keys."""
        numbers = sorted(self.done(chunk_ids))
        with ThreadPoolExecutor(_READERS, thread_name_prefix="manifests") as readers:
            found = zip(numbers, readers.map(self.manifest, numbers), strict=True)
        return {number: result for number, result in found if result is not None}

    def done(self, chunk_ids: Iterable[int]) -> set[int]:
        """Return which chunks are done, by a list of their manifests."""
        try:
            names = set(self.names("chunks"))
        except SetupError:  # this kind of storage cannot list
            return {number for number in chunk_ids if self.manifest(number) is not None}
        return {number for number in chunk_ids if _manifest(number) in names}

    def faults(self, results: Iterable[ChunkResult]) -> dict[int, str]:
        """Return what is wrong with the files of finished chunks, by the chunks' ids.

        In a folder the files are read. In a storage none is: one is altered if it has another size,
        or was written after its manifest, by the storage's own clocks. What slips through is found
        when it is fetched.
        """
        if self.store.in_place:
            results = list(results)
            with ThreadPoolExecutor(thread_name_prefix="faults") as readers:
                looked = zip(results, readers.map(_fault_of_file, results), strict=True)
            return {result.id: fault for result, fault in looked if fault}
        try:
            there = {found.key: found for found in self.store.objects(self.root)}
        except SetupError:  # this kind of storage cannot list
            return {}
        faults = {}
        for result in results:
            manifest = there.get(f"{self.root}/{_manifest(result.id)}")
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

    def publish(self, result: ChunkResult, log: bytes = b"") -> ChunkResult:
        """Send a chunk's file or images and its log to a storage, then write its manifest.

        In a folder the file is where it belongs, and only the manifest is written.

        Returns:
            The manifest that counts: an earlier one, if another attempt was first.
        """
        if self.store.in_place:
            return self._announce(result)
        folder = self._attempt(result.id)
        result = result.model_copy(update={"stored_as": f"{folder}/{result.path.name}"})
        files = _files(result)
        for path, key in files:
            self.store.upload(path, key)
        self._require_whole(folder, {key: path.stat().st_size for path, key in files})
        return self._with_log(result, folder, log)

    def adopt(self, result: ChunkResult, log: bytes) -> ChunkResult:
        """Let an object that exists already, `result.stored_as`, count as a chunk's file.

        Returns:
            The manifest that counts, as `publish` does.
        """
        return self._with_log(result, self._attempt(result.id), log)

    def take_over(self, identity: str, chunk_id: int, path: Path) -> ChunkResult | None:
        """Let a chunk that another job rendered count as one of this job.

        In a storage with a copy of its file, because the other job's may be deleted any time.

        Args:
            identity: The cache key.
            chunk_id: Number of the chunk here.
            path: Its file in the job folder.

        Returns:
            Its manifest; None: no job rendered it.

        Raises:
            ObjectMissing: The file does not exist any more.
            StorageError: The file cannot be copied.
        """
        found = _parse(self.store.read(self._known(identity)))
        if found is None:
            return None
        found = found.model_copy(update={"id": chunk_id, "path": path})
        if self.store.in_place:
            return self._announce(found)
        folder, old = self._attempt(chunk_id), str(found.stored_as)
        new, log = f"{folder}/{Path(old).name}", f"{folder}/log.txt"
        for name in [""] if found.images is None else [f"/{image}" for image in found.images]:
            self.store.copy(old + name, new + name)
        with suppress(StorageError):  # a chunk is as good without its log
            self.store.copy(str(found.log), log)
        return self._announce(found.model_copy(update={"stored_as": new, "log": log}))

    def keep_log(self, chunk_id: int, log: bytes) -> None:
        """Send the log of an attempt that failed."""
        self.store.write(f"{self._attempt(chunk_id)}/log.txt", log)

    def fetch(self, result: ChunkResult, path: Path) -> None:
        """Bring a chunk's file or images to this machine, unless they are there already.

        A chunk whose file is not what was rendered does not count as done any more.

        Raises:
            AssemblyError: They are not what the manifest says.
            OSError: This machine's disk is full, or cannot be written to.
        """
        wanted = (result.size, result.sha256)
        found = content(path)
        if found == wanted:
            return
        if self.store.in_place:
            state = "is missing" if found is None else "has changed since it was rendered"
            raise AssemblyError(f"its file {str(path)!r} {state}: render it again")
        for _ in range(2):  # what was damaged on its way is whole the second time
            self._download(result, path)
            if (found := content(path)) == wanted:
                return
        with suppress(SetupError, StorageError):
            self.forget({result.id: result.identity})
        raise AssemblyError(
            f"{self.store.name} returned {found} as size and SHA-256 of "
            f"{result.stored_as!r}, not {wanted}: run render-job again, which renders it anew"
        )

    def forget(self, identities: Mapping[int, str]) -> None:
        """Delete the manifests of chunks that are to be rendered anew, for this job and others.

        Args:
            identities: The chunks' cache keys, by their ids.
        """
        known = [self._known(identity) for identity in identities.values()]
        own = [f"{self.root}/{_manifest(number)}" for number in identities]
        self.store.delete(known + own)

    def delete_chunks(self) -> int:
        """Delete the chunks' manifests, and the files and logs that attempts sent; count them."""
        names = self.names("chunks")
        # Manifests first: whatever is left if this is cut short, no manifest names a missing file.
        self.delete(sorted(names, key=lambda name: not name.endswith(".json")))
        return len(names)

    def _with_log(self, result: ChunkResult, folder: str, log: bytes) -> ChunkResult:
        result = result.model_copy(update={"log": f"{folder}/log.txt"})
        self.store.write(f"{folder}/log.txt", log)
        return self._announce(result)

    def _announce(self, result: ChunkResult) -> ChunkResult:
        """Create a chunk's manifest, for this job and for others; return the one that counts."""
        name, data = _manifest(result.id), result.model_dump_json().encode()
        try:
            created = self.create(name, data)
        except SetupError:  # this kind of storage has no conditional requests
            created = False
        if not created:
            if (first := self.manifest(result.id, result.identity)) is not None:
                return first
            self.write(name, data)  # over one with another cache key, or that cannot be read
        if result.identity:
            try:
                if self.store.in_place:  # a link, which need not be flushed
                    self.store.copy(f"{self.root}/{name}", self._known(result.identity))
                else:
                    self.store.write(self._known(result.identity), data)
            except (StorageError, OSError) as error:  # the chunk is done all the same
                run_log().warning("chunk %s: other jobs cannot use it: %s", result.id, error)
        return result

    def _require_whole(self, folder: str, sent: dict[str, int]) -> None:
        """Make sure that a storage that took files without an error has all of their bytes."""
        try:
            found = {stored.key: stored.size for stored in self.store.objects(folder)}
        except (SetupError, StorageRefused):  # it cannot list, or this machine may not
            return
        for key, size in sent.items():
            if found.get(key) != size:
                raise StorageError(
                    f"{self.store.name} took {key!r} of {size:,} bytes and has "
                    f"{found.get(key, 0):,} of them"
                )

    def _download(self, result: ChunkResult, path: Path) -> None:
        key = result.stored_as or ""
        if result.images is None:
            self.store.download(key, path)
        else:
            folder = path.parent if path.suffix.lower() in IMAGE_ENDINGS else path
            for name in result.images:
                self.store.download(f"{key}/{name}", folder / name)

    def _attempt(self, chunk_id: int) -> str:
        """Return a folder that no other attempt has."""
        return f"{self.root}/chunks/{chunk_id:06d}/{uuid4().hex}"

    def _known(self, identity: str) -> str:
        return f"{self.store.root}/known/{identity}.json"


def _manifest(chunk_id: int) -> str:
    return f"chunks/{chunk_id:06d}.json"


def _parse(data: bytes | None) -> ChunkResult | None:
    try:
        return None if data is None else ChunkResult.model_validate_json(data)
    except ValidationError:
        return None


def _fault_of_file(result: ChunkResult) -> str | None:
    found = content(result.path)
    if found == (result.size, result.sha256):
        return None
    return "its file is gone" if found is None else "its file was altered"


def _files(result: ChunkResult) -> Sequence[tuple[Path, str]]:
    if result.images is None:
        return [(result.path, str(result.stored_as))]
    images = list_images(result.path).values()
    return [(image, f"{result.stored_as}/{image.name}") for image in images]
