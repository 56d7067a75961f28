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

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from itertools import chain
from pathlib import Path
from uuid import uuid4

from prefect_renderfarm.blocks.errors import AssemblyError, SetupError, StorageError, StorageRefused
from prefect_renderfarm.blocks.media.image_sequence import IMAGE_ENDINGS
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.storage.manifest import ChunkResult, content, parse_manifest
from prefect_renderfarm.blocks.storage.objects import ObjectStore

# The clocks of a storage's machines differ, and times are rounded to seconds.
_SKEW = timedelta(seconds=5)
_READERS = 8  # boto3 keeps ten connections


class JobStore:
    """A job's objects; safe to use from several threads and machines.

    Methods raise `StorageError` if a storage does not answer, `OSError` for a folder.
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
        found = self.store.objects(f"{self.root}/{folder}")
        return [each.key.removeprefix(f"{self.root}/") for each in found]

    def delete(self, names: Iterable[str]) -> None:
        """Delete records of the job."""
        self.store.delete([f"{self.root}/{name}" for name in names])

    def require_job(self) -> None:
        """Raise StorageRefused if this is not the store that has the job, before rendering.

        In another one no chunk is done, and it would take the chunks' files.
        """
        spec = f"{self.root}/job.json"
        if not self.store.has(spec):
            raise StorageRefused(
                f"{self.store.name}, as it is reached from here, has no {spec!r}: check the name "
                "of the bucket, and the credentials, region and endpoint of this machine"
            )

    def manifest(self, chunk_id: int, identity: str | None = None) -> ChunkResult | None:
        """Return a chunk's manifest if it has this cache key; None: the chunk is not done."""
        found = parse_manifest(self.store.read(self._manifest(chunk_id)))
        return found if found and identity in (None, found.identity) else None

    def manifests(self, chunk_ids: Iterable[int]) -> dict[int, ChunkResult]:
        """Return the manifests of those chunks that are done, whatever their cache keys."""
        numbers = sorted(self.done(chunk_ids))
        with ThreadPoolExecutor(_READERS, thread_name_prefix="manifests") as readers:
            found = zip(numbers, readers.map(self.manifest, numbers), strict=True)
        return {number: result for number, result in found if result is not None}

    def done(self, chunk_ids: Iterable[int]) -> set[int]:
        """Return which chunks are done, by their manifests."""
        keys = {self._manifest(number): number for number in chunk_ids}
        try:
            return {keys[key] for key in self.store.find(keys)}
        except SetupError:  # this kind of storage cannot list
            return {number for number in keys.values() if self.manifest(number) is not None}

    def known(self, identities: Iterable[str]) -> set[str]:
        """Return the cache keys of which `take_over` is worth a call."""
        keys = {self._known(identity): identity for identity in identities}
        try:
            return {keys[key] for key in self.store.find(keys)}
        except SetupError:
            return set(keys.values())

    def faults(self, results: Iterable[ChunkResult]) -> dict[int, str]:
        """Return what is wrong with the files of finished chunks, by the chunks' ids.

        In a folder the files are read. In a storage one is altered if it has another size, or was
        written after its manifest, by the storage's clocks; the rest is found when it is fetched.
        """
        results = list(results)
        if self.store.in_place:
            with ThreadPoolExecutor(thread_name_prefix="faults") as readers:
                contents = list(readers.map(content, [result.path for result in results]))
            return {
                result.id: "its file was altered" if found else "its file is gone"
                for result, found in zip(results, contents, strict=True)
                if found != (result.size, result.sha256)
            }
        keys = [[self._manifest(one.id), *(key for _, key in _files(one))] for one in results]
        try:
            there = self.store.find(set(chain.from_iterable(keys)))
        except SetupError:  # this kind of storage cannot list
            return {}
        faults = {}
        for result, wanted in zip(results, keys, strict=True):
            manifest, *files = map(there.get, wanted)
            found = [file for file in files if file is not None]
            if len(found) < len(files):
                faults[result.id] = "its file is gone"
            elif sum(file.size for file in found) != result.size or (
                manifest and max(file.modified for file in found) > manifest.modified + _SKEW
            ):
                faults[result.id] = "its file was altered"
        return faults

    def publish(self, result: ChunkResult, log: bytes = b"", thumbnail: bytes = b"") -> ChunkResult:
        """Send a chunk's file or images and its log to a storage, then write its manifest.

        In a folder, and with `stored_as`, the file is where it belongs. `thumbnail` is a JPEG, or
        empty. Return the manifest that counts: an earlier one, if another attempt was first.
        """
        image = f"{self.root}/chunks/{result.id:06d}.jpg"
        if not self.store.in_place:
            folder = self._attempt(result.id)
            image = f"{folder}/thumbnail.jpg"
            if result.stored_as is None:
                result = result.model_copy(update={"stored_as": f"{folder}/{result.path.name}"})
                sent = _files(result)
                self._require_whole([each for each in sent if not self.store.upload(*each)])
            result = result.model_copy(update={"log": f"{folder}/log.txt"})
            self.store.write(f"{folder}/log.txt", log)
        if thumbnail:
            with suppress(StorageError, OSError):  # a chunk is as good without
                self.store.write(image, thumbnail)
                result = result.model_copy(update={"thumbnail": image})
        return self._announce(result)

    def take_over(self, identity: str, chunk_id: int, path: Path) -> ChunkResult | None:
        """Let a chunk that another job rendered count as one of this job, whose file is `path`.

        In a storage with a copy of its file, because the other job's may be deleted any time.
        Return its manifest; None: no job rendered it. Raises: ObjectMissing, if the file is gone.
        """
        found = parse_manifest(self.store.read(self._known(identity)))
        if found is None:
            return None
        found = found.model_copy(update={"id": chunk_id, "path": path})
        if self.store.in_place:
            return self._announce(found)
        folder = self._attempt(chunk_id)
        stored_as = f"{folder}/{Path(str(found.stored_as)).name}"
        new = found.model_copy(update={"stored_as": stored_as, "log": None, "thumbnail": None})
        for (_, key), (_, copy) in zip(_files(found), _files(new), strict=True):
            self.store.copy(key, copy)
        for field, extra in (("log", found.log), ("thumbnail", found.thumbnail)):
            if extra is not None:
                with suppress(StorageError):  # a chunk is as good without
                    self.store.copy(extra, copy := f"{folder}/{Path(extra).name}")
                    new = new.model_copy(update={field: copy})
        return self._announce(new)

    def keep_log(self, chunk_id: int, log: bytes) -> None:
        """Send the log of an attempt that failed."""
        self.store.write(f"{self._attempt(chunk_id)}/log.txt", log)

    def fetch(self, result: ChunkResult, path: Path) -> None:
        """Bring a chunk's file or images to this machine, unless they are there already.

        Raises AssemblyError if they are not what the manifest says (in a storage, the chunk then no
        longer counts as done), OSError if this machine's disk is full or cannot be written to.
        """
        wanted = (result.size, result.sha256)
        found = content(path)
        if found == wanted:
            return
        if self.store.in_place:
            state = "is missing" if found is None else "has changed since it was rendered"
            raise AssemblyError(f"its file {str(path)!r} {state}: render it again")
        for _ in range(2):  # what was damaged on its way is whole the second time
            for file, key in _files(result.model_copy(update={"path": path})):
                self.store.download(key, file)
            if (found := content(path)) == wanted:
                return
        with suppress(SetupError, StorageError):
            self.forget({result.id: result.identity})
        raise AssemblyError(
            f"{self.store.name} returned {found} as size and SHA-256 of "
            f"{result.stored_as!r}, not {wanted}: run render-job again, which renders it anew"
        )

    def forget(self, identities: Mapping[int, str]) -> None:
        """Delete the manifests of chunks, by ids and cache keys, for this job and for others."""
        known = [self._known(identity) for identity in identities.values()]
        self.store.delete([*known, *map(self._manifest, identities)])

    def delete_chunks(self) -> None:
        """Delete the chunks' manifests, and the files and logs that attempts sent."""
        names = self.names("chunks")
        # Manifests first: whatever is left if this is cut short, no manifest names a missing file.
        self.delete(sorted(names, key=lambda name: not name.endswith(".json")))

    def _announce(self, result: ChunkResult) -> ChunkResult:
        """Create a chunk's manifest, for this job and for others; return the one that counts."""
        key, data = self._manifest(result.id), result.model_dump_json().encode()
        try:
            created = self.store.create(key, data)
        except SetupError:  # this kind of storage has no conditional requests
            created = False
        if not created:
            if (first := self.manifest(result.id, result.identity)) is not None:
                return first
            self.store.write(key, data)  # over one with another cache key, or that cannot be read
        if result.identity:
            try:
                if self.store.in_place:  # a link, which need not be flushed
                    self.store.copy(key, self._known(result.identity))
                else:
                    self.store.write(self._known(result.identity), data)
            except (StorageError, OSError) as error:  # the chunk is done all the same
                run_log().warning("chunk %s: other jobs cannot use it: %s", result.id, error)
        return result

    def _require_whole(self, sent: Iterable[tuple[Path, str]]) -> None:
        """Raise StorageError if a storage that took files without an error lacks some bytes."""
        sizes = {key: path.stat().st_size for path, key in sent}
        try:
            found = {key: stored.size for key, stored in self.store.find(sizes).items()}
        except (SetupError, StorageRefused):  # it cannot list, or this machine may not
            return
        for key, size in sizes.items():
            if found.get(key) != size:
                raise StorageError(
                    f"{self.store.name} took {key!r} of {size:,} bytes and has "
                    f"{found.get(key, 0):,} of them"
                )

    def _attempt(self, chunk_id: int) -> str:
        """Return a folder that no other attempt has."""
        return f"{self.root}/chunks/{chunk_id:06d}/{uuid4().hex}"

    def _known(self, identity: str) -> str:
        return f"{self.store.root}/known/{identity}.json"

    def _manifest(self, chunk_id: int) -> str:
        return f"{self.root}/chunks/{chunk_id:06d}.json"


def _files(result: ChunkResult) -> list[tuple[Path, str]]:
    """Return a chunk's file or images on this machine, with their keys in the storage."""
    path, key = result.path, str(result.stored_as)
    if result.images is None:
        return [(path, key)]
    folder = path.parent if path.suffix.lower() in IMAGE_ENDINGS else path
    return [(folder / name, f"{key}/{name}") for name in result.images]
