"""A job folder of which chunks, records and inputs lie in a storage; this machine has copies."""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from prefect.blocks.abstract import ObjectStorageBlock

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.assets.manifest import assets_version, list_name, send_assets
from prefect_renderfarm.blocks.assets.url import ASSET_LIST, local_folder, where_assets_are
from prefect_renderfarm.blocks.errors import (
    AssemblyError,
    ObjectMissing,
    SetupError,
    StorageError,
    StorageRefused,
    WorkerError,
)
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.blocks.storage.chunk_files import remove
from prefect_renderfarm.blocks.storage.job_store import JobStore
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.blocks.storage.publish import disk_of
from prefect_renderfarm.flows.jobs.fields import Chunk
from prefect_renderfarm.flows.jobs.spec import RenderJob
from prefect_renderfarm.flows.results import RenderReport
from prefect_renderfarm.flows.runs.retry import patiently
from prefect_renderfarm.flows.state.identity import environment_digest
from prefect_renderfarm.flows.state.job_folder import JobFolder

_TRACK = "track"
_COPIES = "copies.lock"


class StoredFolder(JobFolder):
    """One job's folder on one machine, and its place in a storage, where the truth is.

    Args:
        path: The job folder of this machine, absolute.
        job: The job.
        block: The storage block.
    """

    poll_seconds = 0.3
    fetched_ahead = 4

    def __init__(self, path: Path, job: RenderJob, block: ObjectStorageBlock) -> None:
        super().__init__(path, job)
        self.store = JobStore(block, job.key)
        self._patient = True
        self._assets = where_assets_are(job.assets_url, self.store.root)

    def prepare(self, *, film: Path | None = None, sent: bool = False) -> None:
        """Make this machine's folder; send spec, audio track and input files to the storage.

        What the job itself makes is no input, even in the folder that its `assetsUrl` names.

        Args:
            film: The film that will be made, if its path is known.
            sent: Whether another machine has sent it all, which this one need not have.

        Raises:
            SetupError: The folder or the storage cannot be written to.
            JobError: The input files are not there, or cannot be sent.
        """
        super().prepare()
        if sent:
            return
        folder = local_folder(self.job.assets_url, self.path)
        try:
            if folder is not None:
                send_assets(
                    self.store, folder, self.path, self._made_by_the_job(*[film] if film else [])
                )
            self.store.write("job.json", self.job.to_json().encode())
            if (track := self.audio_track()) is not None and track != self._track_copy:
                self.store.store.upload(track, self._track_key())
        except StorageError as error:
            raise SetupError(str(error)) from None

    @property
    def assets(self) -> str | None:
        """What workers are told of the job's input files.

        Once the environment is known it is a list that stays as it is; other runs have others.
        """
        if self._sends_files and self.environment:
            return f"{self.store.root}/{list_name(self.environment)}"
        return self._assets

    @property
    def _sends_files(self) -> bool:
        return self._assets == f"{self.store.root}/{ASSET_LIST}"

    def identify(self, adapter: WorkerAdapter, *no_input: Path | None) -> None:
        """Take note of what decides what the chunks are, and keep the list of the input files."""
        version = self._assets_version(no_input)
        self.environment = environment_digest(adapter, version)
        if self._sends_files:
            try:
                self.store.write(list_name(self.environment), version.encode())
            except StorageError as error:
                raise SetupError(str(error)) from None

    def _assets_version(self, no_input: Iterable[Path | None]) -> str:
        if self._assets is None:
            return ""
        try:
            return assets_version(self._assets, self.store.store)
        except StorageRefused as error:
            # Only workers may read that bucket.
            run_log().warning("input files that change under the same address are not noticed: %s",
                              error)  # fmt: skip
            return self._assets
        except (StorageError, WorkerError) as error:
            raise SetupError(str(error)) from None

    def audio_track(self) -> Path | None:
        """Return the path of the whole film's sound: in the job folder, or of a fresh copy.

        A copy lies among the records, where no run takes it for the job's own file.

        Raises:
            JobError: It is nowhere, or a symbolic link leads out of the job folder.
            SetupError: The storage does not give it.
        """
        name = self.job.audio_track
        if name is None or (self.path / name).is_file():
            return super().audio_track()
        copy = self._track_copy
        fetch = partial(self.store.store.download, self._track_key(), copy)
        try:
            patiently(fetch, "the audio track")
        except ObjectMissing:
            return super().audio_track()
        except (StorageError, OSError) as error:
            raise SetupError(f"the job's audio track {name!r}: {error}") from None
        return copy

    def forget_chunks(self, chunks: Iterable[Chunk]) -> None:
        """Remove the manifests of chunks that are to be rendered anew, for this job and others."""
        self.store.forget({chunk.id: self.identity(chunk) for chunk in chunks})

    def done(self, chunks: Iterable[Chunk]) -> set[int]:
        """Return the ids of those chunks that count as done."""
        return self.store.done(chunk.id for chunk in chunks)

    def manifest(self, chunk: Chunk) -> ChunkResult | None:
        """Return a chunk's manifest; None: it is not done."""
        return self.store.manifest(chunk.id, self.identity(chunk) if self.environment else None)

    def manifests(self, chunks: Iterable[Chunk]) -> dict[int, ChunkResult]:
        """Return the manifests of those chunks that are done, whatever they are known by."""
        return self.store.manifests(chunk.id for chunk in chunks)

    def take_over(self, chunk: Chunk) -> ChunkResult | None:
        """Let a chunk count as done that another job rendered into this storage."""

        def find() -> ChunkResult | None:
            known = self.store.known(self.identity(chunk))
            return None if known is None else self.store.take_over(known, chunk.id)

        try:
            # What was waited for in vain is not waited for at each of a thousand chunks.
            return patiently(find, f"chunk {chunk.id}") if self._patient else find()
        except ObjectMissing:
            return None
        except StorageError as error:
            if self._patient:
                run_log().warning("chunks are rendered that may be known: %s", error)
            self._patient = False
            return None

    def faults(self, results: Iterable[ChunkResult]) -> dict[int, str]:
        """Return what is wrong with the files of finished chunks, by the chunks' ids."""
        return self.store.faults(results)

    def has_chunk(self, chunk: Chunk) -> bool:
        """Return whether a chunk counts as done."""
        return self.manifest(chunk) is not None

    def finished_chunk(self, chunk: Chunk) -> ChunkResult:
        """Fetch a chunk's file, checked against its manifest.

        Raises:
            AssemblyError: The chunk is not done, or its file is not what was rendered.
            StorageError: It cannot be fetched; perhaps another time.
        """
        path = self.chunk_file(chunk)
        result = self.manifest(chunk)
        if result is None:
            raise AssemblyError(
                f"chunk {chunk.id} of job {self.job.title!r} is not rendered in the "
                f"{self.store.store.name}: run render-job"
            )
        try:
            self.store.fetch(result, path)
        except AssemblyError as error:
            raise AssemblyError(f"chunk {chunk.id}: {error}") from None
        except OSError as error:
            raise AssemblyError(
                f"chunk {chunk.id}: its file {str(path)!r} cannot be written: "
                f"{error.strerror}; {disk_of(path)}"
            ) from None
        return result.model_copy(update={"path": path})

    def delete_chunks(self) -> None:
        """Delete the chunks for good: files, logs and manifests in the storage."""
        self.forget_chunks(self.job.chunks)
        self.store.delete_chunks()
        self.delete_notes()

    @contextmanager
    def assembling(self) -> Iterator[None]:
        """Have copies of the chunks on this machine; the last run here that leaves removes them.

        The storage keeps the chunks. Copies of a run that fails stay.
        """
        with ExitStack() as stack:
            lock: IO[str] | None = None
            # Not every network file system has locks, and the file may be another user's.
            with suppress(OSError):
                self.records.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context((self.records / _COPIES).open("a+"))
                fcntl.flock(lock, fcntl.LOCK_SH)
            yield
            if lock is None or _last(lock):
                self._remove_copies()

    def _remove_copies(self) -> None:
        remove(self._track_copy)
        for chunk in self.job.chunks:
            if not self._manifest(chunk).exists():  # else a job without a storage rendered it here
                remove(self.chunk_file(chunk))

    def write_record(self, name: str, text: str) -> None:
        """Write one of the job's records, where all who work at the job can read it."""
        self.store.write(name, text.encode())

    def read_record(self, name: str) -> str | None:
        """Return one of the job's records; None: it is not there."""
        data = self.store.read(name)
        return None if data is None else data.decode()

    def list_records(self, folder: str) -> list[str]:
        """Return the names of the records in a folder of theirs.

        Raises:
            SetupError: This kind of storage cannot list.
        """
        root = f"{self.store.root}/"
        return [found.key.removeprefix(root) for found in self.store.store.objects(root + folder)]

    def delete_notes(self) -> None:
        """Delete what runs of the job wrote to each other, for when none is at it any more."""
        store = self.store.store
        store.delete([found.key for found in store.objects(f"{self.store.root}/runs")])

    def delete_record(self, name: str) -> None:
        """Delete one of the job's records, if it is there."""
        self.store.store.delete([f"{self.store.root}/{name}"])

    def save_report(self, report: RenderReport) -> None:
        """Write what the job came to."""
        super().save_report(report)
        self.store.write("report.json", report.model_dump_json().encode())

    @property
    def _without_merge(self) -> str:
        return (
            f"merge-job has left no report in the {self.store.store.name}: let both work pools "
            "use the same storage block"
        )

    def _track_key(self) -> str:
        return f"{self.store.root}/{_TRACK}/{self._track_copy.name}"

    @property
    def _track_copy(self) -> Path:
        return self.records / _TRACK / Path(self.job.audio_track or "none").name


def _last(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def open_folder(path: Path, job: RenderJob, block: ObjectStorageBlock | None) -> JobFolder:
    """Return a job's folder, with its place in a storage if it has one."""
    return JobFolder(path, job) if block is None else StoredFolder(path, job, block)
