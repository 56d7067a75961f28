"""What is known of a job: its folder on this machine, and its objects in a storage or that folder.

Without a storage all machines of a job share its folder. With one, the folder is this machine's
own: the storage has the truth, and the folder has copies.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from prefect.blocks.abstract import ObjectStorageBlock
from prefect.runtime import deployment
from pydantic import BaseModel, ValidationError

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.adapters.remote import WorkerFailure
from prefect_renderfarm.blocks.assets.inputs import (
    ASSET_LIST,
    assets_version,
    list_assets,
    list_name,
    local_folder,
    send_assets,
    where_assets_are,
)
from prefect_renderfarm.blocks.errors import (
    AssemblyError,
    JobError,
    MediaFault,
    ObjectMissing,
    SetupError,
    StorageError,
    StorageRefused,
    WorkerError,
)
from prefect_renderfarm.blocks.http.url_rules import public_part
from prefect_renderfarm.blocks.media.image_sequence import has_number, list_images
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.runtime.repeat import retry
from prefect_renderfarm.blocks.storage.atomic_file import disk_of, remove_all_leftovers
from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.blocks.storage.job_store import JobStore
from prefect_renderfarm.blocks.storage.manifest import ChunkResult, remove
from prefect_renderfarm.blocks.storage.objects import FolderStore
from prefect_renderfarm.flows.jobs.checks import RECORDS, relative_path_message, require_inside
from prefect_renderfarm.flows.jobs.load import find_in_storage, load_earlier_job, load_job
from prefect_renderfarm.flows.jobs.spec import Chunk, RenderJob
from prefect_renderfarm.flows.parameters import load_storage
from prefect_renderfarm.flows.results import FailedAttempt, MergeReport, RenderReport
from prefect_renderfarm.flows.state.identity import chunk_identity, inputs_digest

_MOST_THUMBNAILS = 48  # of the contact sheet, evenly spread


class RunNotes(BaseModel, frozen=True):
    """What a render-chunks run tells the one that started it; the server keeps a line of it."""

    failed: tuple[FailedAttempt, ...] = ()  # attempts
    done: tuple[ChunkResult, ...] = ()  # all its chunks, once it has rendered them
    failure: WorkerFailure | None = None  # why the run failed


class JobState:
    """One job: which of its chunks are done, and where its files are.

    Methods raise `StorageError` if the storage does not answer, and `OSError` for the folder.
    """

    def __init__(self, path: Path, job: RenderJob, block: ObjectStorageBlock | None = None) -> None:
        self.path = path  # the job folder of this machine, absolute
        self.job = job
        self.block = block  # None: all machines share the job folder
        self.local = self.objects = JobStore(FolderStore(path), job.key)
        self._bucket: BucketStore | None = None
        self._assets: str | None = None
        if block is not None:
            self._bucket = BucketStore(block)
            self.objects = JobStore(self._bucket, job.key)
            self._assets = where_assets_are(job.assets_url, self.objects.root)
        self._sends_files = self._assets == f"{self.objects.root}/{ASSET_LIST}"
        self.name = self.objects.store.name  # in errors and logs
        self.records = path / RECORDS / job.key
        self.job_file = self.records / "job.json"
        track = Path(job.audio_track or "none").name
        self._track_copy = self.records / "track" / track
        self._track_key = f"{self.objects.root}/track/{track}"
        count = len(job.chunks)
        most = min(count, _MOST_THUMBNAILS)
        self._shown = frozenset(job.chunks[number * count // most].id for number in range(most))
        self.inputs = ""  # the digest; empty: chunks with any cache key count as done
        self._retry_known = True

    # Before rendering

    def prepare(self, *, film: Path | None = None, sent: bool = False) -> None:
        """Make the folder, write the job spec into it, and send to a storage what workers need.

        What the job makes, and its film, is no input, even in the folder that `assetsUrl` names.
        `sent`: another machine has sent it all. Raises: SetupError; JobError, before anything is
        written, if the input files are missing or a symbolic link leads out of the folder.
        """
        require_inside(self.path, "the job folder has", RECORDS)
        for chunk in self.job.chunks:
            self.chunk_file(chunk)
        url = public_part(self.job.assets_url or "")
        if self.block is None and "://" in url and not url.lower().startswith("file://"):
            run_log().warning("assetsUrl %r is not fetched: without a storage, commands find "
                              "their input files in the job folder", url)  # fmt: skip
        spec = self.job.to_json().encode()
        try:
            self.local.write("job.json", spec)
            for chunk in self.job.chunks:
                self._make_folder(chunk)
        except OSError as error:
            raise SetupError(
                f"job folder {str(self.path)!r} cannot be written to: {error.strerror}"
            ) from None
        self.tidy()
        if self.block is None or sent:
            return
        folder = local_folder(self.job.assets_url, self.path)
        try:
            if folder is not None:
                send_assets(self.objects, folder, self.path, self._made_by_the_job(film))
            self.objects.write("job.json", spec)
            if (track := self.audio_track()) is not None and track != self._track_copy:
                self.objects.store.upload(track, self._track_key)
        except StorageError as error:
            raise SetupError(str(error)) from None

    def tidy(self) -> None:
        """Remove what processes that were killed left unfinished an hour ago or earlier."""
        folders = {self.chunk_file(chunk).parent for chunk in self.job.chunks}
        records = [self.path / RECORDS / "known", self.records, *self.records.glob("*/")]
        for folder in [*records, *folders]:
            remove_all_leftovers(folder)

    def identify(self, adapter: WorkerAdapter, *no_input: Path | None) -> None:
        """Find the inputs digest, and keep the list of the input files that it stands for.

        `no_input` are the film that will be made and the job's own file; nor is a film of an
        earlier job of this name an input. Raises: JobError, SetupError.
        """
        try:
            version = self._assets_version(no_input)
            self.inputs = inputs_digest(adapter, version)
            if self._sends_files:
                self.objects.write(list_name(self.inputs), version.encode())
        except (StorageError, WorkerError) as error:
            raise SetupError(str(error)) from None

    @property
    def assets(self) -> str | None:
        """What workers are given as the job's input files; None: they see the folder.

        Once the inputs digest is known it is a list that stays as it is; other runs have others.
        """
        if self._sends_files and self.inputs:
            return f"{self.objects.root}/{list_name(self.inputs)}"
        return self._assets

    def _assets_version(self, no_input: Sequence[Path | None]) -> str:
        """Return what stands for the content of the job's input files."""
        if self._bucket is None:
            folder = local_folder(self.job.assets_url, self.path)
            if folder is None:
                return (self.job.assets_url or "").partition("?")[0]
            made = self._made_by_the_job(*no_input, *self.films())
            return list_assets(folder, self.path, made).model_dump_json()
        if self._assets is None:
            return ""
        try:
            return assets_version(self._assets, self._bucket)
        except StorageRefused as error:
            # Only workers may read that bucket.
            run_log().warning("input files that change under the same address are not noticed: %s",
                              error)  # fmt: skip
            return self._assets

    def films(self) -> list[Path]:
        """Return the films that jobs of this name were assembled into."""
        found = []
        name = glob.escape(self.job.key.rpartition("-")[0])
        for file in (self.path / RECORDS).glob(f"{name}-*/merge.json"):
            with suppress(OSError, ValidationError):
                report = MergeReport.model_validate_json(file.read_text(encoding="utf-8"))
                found += [report.film] if report.film else []
        return found

    def _made_by_the_job(self, *others: Path | None) -> Callable[[Path], bool]:
        """Return what tells a file that the job makes, or one of the others, from its input."""
        files = {self.path.resolve() / RECORDS}
        for output in filter(None, [*map(self.chunk_file, self.job.chunks), *others]):
            files.add(output.parent.resolve() / output.name)
            if has_number(output):
                with suppress(MediaFault):
                    files.update(image.resolve() for image in list_images(output).values())
        return files.__contains__

    # Files

    def chunk_file(self, chunk: Chunk) -> Path:
        """Return the absolute path of a chunk's file, which is inside. Raises: JobError."""
        require_inside(self.path, f"chunk {chunk.id} has outputFile", chunk.output_file)
        return self.path / chunk.output_file

    def audio_track(self) -> Path | None:
        """Return the absolute path of the whole film's audio, if the job has one.

        Without such a file in the job folder, of a copy from the storage, among the records, where
        no run takes it for the job's own file. Raises: JobError, SetupError.
        """
        name = self.job.audio_track
        if name is None:
            return None
        path = self.path / name
        if self.block is not None and not path.is_file():
            fetch = partial(self.objects.store.download, self._track_key, self._track_copy)
            try:
                with suppress(ObjectMissing):
                    retry(fetch, "the audio track")
                    return self._track_copy
            except (StorageError, OSError) as error:
                raise SetupError(f"the job's audio track {name!r}: {error}") from None
        if not path.resolve().is_relative_to(self.path.resolve()) or not path.is_file():
            raise JobError(
                f"the job has audioTrack {name!r}, which is no file in the job folder "
                f"{str(self.path)!r}: put it there"
            )
        return path

    # Chunks

    def identity(self, chunk: Chunk) -> str:
        """Return the cache key of a chunk."""
        return chunk_identity(chunk, str(self.job.metadata.rate), self.inputs)

    def shows(self, chunk: Chunk) -> bool:
        """Return whether the contact sheet has a picture of a chunk."""
        return chunk.id in self._shown

    def thumbnails(self, results: Iterable[ChunkResult]) -> dict[int, bytes]:
        """Return the JPEGs of finished chunks that have one, by id; what cannot be read is left."""
        found = {}
        for result in results:
            if result.thumbnail is not None:
                with suppress(StorageError, OSError):
                    found[result.id] = self.objects.store.read(result.thumbnail) or b""
        return found

    def done(self, chunks: Iterable[Chunk]) -> set[int]:
        """Return the ids of those chunks that count as done."""
        return self.objects.done(chunk.id for chunk in chunks)

    def manifest(self, chunk: Chunk) -> ChunkResult | None:
        """Return a chunk's manifest; None: it is not done. Its file is not looked at."""
        return self.objects.manifest(chunk.id, self.identity(chunk) if self.inputs else None)

    def faults(self, results: Iterable[ChunkResult]) -> dict[int, str]:
        """Return what is wrong with the files of finished chunks, by the chunks' ids."""
        return self.objects.faults(
            result.model_copy(update={"path": self.path / result.output_file}) for result in results
        )

    def known(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """Return those chunks that another job has rendered into this storage or folder."""
        keys = {self.identity(chunk): chunk for chunk in chunks}
        try:
            found = retry(partial(self.objects.known, keys), "chunks of other jobs")
        except StorageError as error:
            run_log().warning("chunks are rendered that other jobs may have: %s", error)
            return []
        return [keys[key] for key in found]

    def take_over(self, chunk: Chunk) -> ChunkResult | None:
        """Let a chunk count as done that another job rendered into this storage or folder."""
        find = partial(
            self.objects.take_over, self.identity(chunk), chunk.id, self.path / chunk.output_file
        )
        try:
            with suppress(ObjectMissing):
                # What was waited for in vain is not waited for at each of a thousand chunks.
                return retry(find, f"chunk {chunk.id}") if self._retry_known else find()
        except StorageError as error:
            if self._retry_known:
                run_log().warning("chunks are rendered that other jobs may have: %s", error)
            self._retry_known = False
        return None

    def forget_chunks(self, chunks: Iterable[Chunk]) -> None:
        """Remove the manifests of chunks that are to be rendered anew, for this job and others."""
        self.objects.forget({chunk.id: self.identity(chunk) for chunk in chunks})

    def drop_chunk(self, chunk: Chunk) -> None:
        """Leave nothing half-written in a shared folder; a storage holds whole chunks only."""
        if self.block is None:
            self.forget_chunks([chunk])
            remove(self.chunk_file(chunk))
            self._make_folder(chunk)

    def _make_folder(self, chunk: Chunk) -> None:
        """Make the folder that a chunk is written into; an output `frames/1/` is one itself."""
        path = self.path / chunk.output_file
        folder = path if chunk.output_file.endswith("/") else path.parent
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)

    def fetch_chunk(self, chunk: Chunk) -> ChunkResult:
        """Have a chunk's file here, checked against its manifest. Raises: AssemblyError."""
        path = self.chunk_file(chunk)
        if (result := self.manifest(chunk)) is None:
            raise AssemblyError(
                f"chunk {chunk.id} of job {self.job.title!r} is not rendered in {self.name}: run "
                "render-job"
            )
        try:
            self.objects.fetch(result, path)
        except AssemblyError as error:
            raise AssemblyError(f"chunk {chunk.id}: {error}") from None
        except OSError as error:
            raise AssemblyError(
                f"chunk {chunk.id}: its file {str(path)!r} cannot be written: "
                f"{error.strerror}; {disk_of(path)}"
            ) from None
        return result.model_copy(update={"path": path})

    @contextmanager
    def copies(self) -> Iterator[None]:
        """Remove the copies of a storage's chunks from this machine, if the block ends well."""
        yield
        if self.block is not None:
            remove(self._track_copy)
            made_here = self.local.done(chunk.id for chunk in self.job.chunks)
            for chunk in self.job.chunks:
                if chunk.id not in made_here:  # by a run without a storage
                    remove(self.chunk_file(chunk))

    def delete_chunks(self) -> None:
        """Delete the chunks: manifests, files, logs, and what runs wrote to each other."""
        self.forget_chunks(self.job.chunks)
        self.objects.delete_chunks()
        self.objects.delete(self.objects.names("runs"))
        if self.block is None:
            for chunk in self.job.chunks:
                remove(self.chunk_file(chunk))

    # Reports and notes

    def save_report(self, report: RenderReport) -> None:
        """Write what the job came to, on this machine and in the storage."""
        data = report.model_dump_json().encode()
        self.local.write("report.json", data)
        if self.block is not None:
            self.objects.write("report.json", data)

    def save_merge(self, report: MergeReport, run_id: str) -> None:
        """Write how a run assembled the film."""
        for name in (f"runs/{run_id}-merge.json", "merge.json"):
            self.objects.write(name, report.model_dump_json().encode())

    def load_merge(self, run_id: str) -> MergeReport:
        """Return how a run assembled the film. Raises: SetupError, if it wrote elsewhere."""
        data = self.objects.read(f"runs/{run_id}-merge.json")
        if data is None:
            raise SetupError(
                f"merge-job has left no report in {self.name}, as it is seen from here: let both "
                "work pools use the same storage block, or share the job folder"
            )
        return MergeReport.model_validate_json(data)

    def save_notes(self, notes: RunNotes, run_id: str) -> None:
        """Write what a render-chunks run tells the one that started it."""
        self.objects.write(f"runs/{run_id}.json", notes.model_dump_json().encode())

    def load_notes(self, run_id: str) -> RunNotes:
        """Return what a render-chunks run has told so far."""
        data = self.objects.read(f"runs/{run_id}.json")
        return RunNotes() if data is None else RunNotes.model_validate_json(data)


def open_job(
    job: Any, storage: Any, job_dir: Path | None, *, rendered_before: bool = False
) -> JobState:
    """Return the job that the parameters of a flow name: what every flow does first.

    Its folder is `job_dir`, or that of the job file; else one under the run's working directory. A
    job that was rendered before may be named by its key, its id or its report, and with a storage
    its folder is this machine's own. Raises: JobError, SetupError.
    """
    block = load_storage(storage)
    deployed = deployment.id is not None
    folder: Path | None = None
    if not rendered_before:
        spec, folder = load_job(job, deployed=deployed, block=block)
    elif (stored := find_in_storage(job, block)) is not None:
        spec = stored
    else:
        spec, folder = load_earlier_job(job, job_dir, deployed=deployed, block=block)
        folder = folder if block is None else None
    path = job_dir or folder or Path.cwd() / "renderfarm-jobs" / spec.key
    if deployed and not path.is_absolute():
        raise SetupError(relative_path_message("job_dir", str(path)))
    return JobState(path.absolute(), spec, block)
