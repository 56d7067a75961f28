"""The folder of a job: where commands run, and where it is written which chunks are done.

Beside the job's own files it holds `.renderfarm/<job key>/`:

    job.json            the job spec
    chunks/<id>.json    a chunk's manifest, a `ChunkResult`, written after its file
    runs/<id>-*.json    between a run of `render-chunks` or `merge-job` and the one that started it
    leases/*.json       which run renders which chunks, see `Lease`
    merge.json          the last `MergeReport`
    report.json         the last `RenderReport`

and `.renderfarm/known/<identity>.json`, the manifests again, for other jobs in this folder.
"""

from __future__ import annotations

import glob
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from pydantic import ValidationError

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.assets.manifest import list_assets
from prefect_renderfarm.blocks.assets.url import local_folder
from prefect_renderfarm.blocks.errors import AssemblyError, JobError, MediaFault, SetupError
from prefect_renderfarm.blocks.http.url_rules import public_part
from prefect_renderfarm.blocks.media.image_sequence import has_number, list_images
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.blocks.storage.atomic_file import (
    link_atomic,
    remove_all_leftovers,
    remove_leftovers,
    write_atomic,
)
from prefect_renderfarm.blocks.storage.chunk_files import content, remove
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.checks import RECORDS
from prefect_renderfarm.flows.jobs.fields import Chunk
from prefect_renderfarm.flows.jobs.spec import RenderJob, job_file_path, require_inside
from prefect_renderfarm.flows.results import MergeReport, RenderReport
from prefect_renderfarm.flows.state.identity import chunk_identity, environment_digest


class JobRecords:
    """One job's records, in the job folder.

    Args:
        path: The job folder, absolute.
        job: The job.
    """

    def __init__(self, path: Path, job: RenderJob) -> None:
        self.path = path
        self.job = job
        self.records = path / RECORDS / job.key
        self.job_file = self.records / "job.json"

    def write_record(self, name: str, text: str) -> None:
        """Write one of the job's records, where all who work at the job can read it."""
        write_atomic(self.records / name, text)

    def read_record(self, name: str) -> str | None:
        """Return one of the job's records; None: it is not there."""
        try:
            return (self.records / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def list_records(self, folder: str) -> list[str]:
        """Return the names of the records in a folder of theirs, such as `leases`."""
        names: list[str] = []
        with suppress(FileNotFoundError):
            names = [path.name for path in (self.records / folder).iterdir()]
        return [f"{folder}/{name}" for name in names if not name.startswith(".")]

    def delete_record(self, name: str) -> None:
        """Delete one of the job's records, if it is there."""
        path = self.records / name
        path.unlink(missing_ok=True)
        remove_leftovers(path)

    def delete_notes(self) -> None:
        """Delete what runs of the job wrote to each other, for when none is at it any more."""
        shutil.rmtree(self.records / "runs", ignore_errors=True)

    def save_report(self, report: RenderReport) -> None:
        """Write what the job came to."""
        write_atomic(self.records / "report.json", report.model_dump_json())

    def save_merge(self, report: MergeReport, run_id: str) -> None:
        """Write how a run assembled the film."""
        for name in (_merge_record(run_id), "merge.json"):
            self.write_record(name, report.model_dump_json())

    def load_merge(self, run_id: str) -> MergeReport:
        """Return how a run assembled the film.

        Raises:
            SetupError: It wrote elsewhere.
        """
        text = self.read_record(_merge_record(run_id))
        if text is None:
            raise SetupError(self._without_merge)
        return MergeReport.model_validate_json(text)

    @property
    def _without_merge(self) -> str:
        return (
            f"job folder {str(self.path)!r} is not the folder that merge-job sees under that "
            "path: let both work pools share it"
        )


def _merge_record(run_id: str) -> str:
    return f"runs/{run_id}-merge.json"


class JobFolder(JobRecords):
    """One job's files and records.

    Args:
        path: The job folder, absolute.
        job: The job.
    """

    # How often to look for a manifest, in seconds; and how many chunks to check at once.
    poll_seconds = 0.05
    fetched_ahead = 1

    def __init__(self, path: Path, job: RenderJob) -> None:
        super().__init__(path, job)
        # What else than their own lines decides what the chunks are; set by `identify`.
        self.environment = ""

    @property
    def assets(self) -> str | None:
        """What workers are told of the job's input files; None: nothing, they see the folder."""
        return None

    def prepare(self, *, film: Path | None = None, sent: bool = False) -> None:
        """Make the folder and write the job spec into it.

        Without a storage, commands run in it and find their input files there: a folder that
        `assetsUrl` names needs nothing, and what is elsewhere is not fetched.

        Args:
            film: The film that will be made, if its path is known.
            sent: Whether another machine has done so already.

        Raises:
            SetupError: The folder cannot be written to.
            JobError: A symbolic link in it leads out of it; nothing has been written.
        """
        require_inside(self.path, self.job.chunks, [RECORDS])
        url = public_part(self.job.assets_url or "")
        if self.assets is None and "://" in url and not url.lower().startswith("file://"):
            run_log().warning("assetsUrl %r is not fetched: without a storage, commands find "
                              "their input files in the job folder", url)  # fmt: skip
        try:
            write_atomic(self.job_file, self.job.to_json())
            for chunk in self.job.chunks:
                _make_folder(chunk, self.path / chunk.output_file)
        except OSError as error:
            raise SetupError(
                f"job folder {str(self.path)!r} cannot be written to: {error.strerror}"
            ) from None
        self.tidy()

    def tidy(self) -> None:
        """Remove what processes that were killed left unfinished an hour ago or earlier."""
        folders = {self.chunk_file(chunk).parent for chunk in self.job.chunks}
        records = [self.path / RECORDS / "known", self.records, *self.records.glob("*/")]
        for folder in [*records, *folders]:
            remove_all_leftovers(folder)

    def identify(self, adapter: WorkerAdapter, *no_input: Path | None) -> None:
        """Take note of what else than their commands decides what the chunks are.

        Args:
            adapter: Where commands run.
            no_input: Files that are no input, wherever they lie: the film that will be made, the
                job's own file. Nor are films that jobs of this name were assembled into before.

        Raises:
            JobError: The input files cannot be read.
            SetupError: They cannot be listed.
        """
        self.environment = environment_digest(adapter, self._assets_version(no_input))

    def identity(self, chunk: Chunk) -> str:
        """Return what a chunk is known by."""
        return chunk_identity(chunk, str(self.job.metadata.rate), self.environment)

    def _assets_version(self, no_input: Iterable[Path | None]) -> str:
        folder = local_folder(self.job.assets_url, self.path)
        if folder is None:
            return (self.job.assets_url or "").partition("?")[0]
        others = [path for path in [*no_input, *self._films()] if path]
        return list_assets(folder, self.path, self._made_by_the_job(*others)).model_dump_json()

    def _films(self) -> list[Path]:
        """Return the films that jobs of this name were assembled into."""
        found = []
        name = glob.escape(self.job.key.rpartition("-")[0])
        for file in (self.path / RECORDS).glob(f"{name}-*/merge.json"):
            with suppress(OSError, ValidationError):
                report = MergeReport.model_validate_json(file.read_text(encoding="utf-8"))
                found += [report.film] if report.film else []
        return found

    def _made_by_the_job(self, *others: Path) -> Callable[[Path], bool]:
        """Return what tells a file that the job makes, or one of the others, from its input."""
        outputs = [self.chunk_file(chunk) for chunk in self.job.chunks]
        files = {self.path.resolve() / RECORDS}
        for output in [*outputs, *others]:
            files.add(output.parent.resolve() / output.name)
            if has_number(output):
                with suppress(MediaFault):
                    files.update(image.resolve() for image in list_images(output).values())
        return files.__contains__

    def chunk_file(self, chunk: Chunk) -> Path:
        """Return the absolute path of a chunk's file."""
        return job_file_path(self.path, chunk)

    def audio_track(self) -> Path | None:
        """Return the absolute path of the whole film's sound, if the job has one.

        Raises:
            JobError: It is not there, or a symbolic link leads out of the job folder.
        """
        name = self.job.audio_track
        if name is None:
            return None
        path = self.path / name
        if not path.resolve().is_relative_to(self.path.resolve()) or not path.is_file():
            raise JobError(
                f"the job has audioTrack {name!r}, which is no file in the job folder "
                f"{str(self.path)!r}: put it there"
            )
        return path

    def forget_chunks(self, chunks: Iterable[Chunk]) -> None:
        """Remove the manifests of chunks that are to be rendered anew, for this job and others."""
        for chunk in chunks:
            self._known(chunk).unlink(missing_ok=True)
            self._manifest(chunk).unlink(missing_ok=True)

    def drop_chunk(self, chunk: Chunk) -> None:
        """Remove a chunk's manifest, then its file or its images."""
        self.forget_chunks([chunk])
        path = self.chunk_file(chunk)
        remove(path)
        _make_folder(chunk, path)

    def publish_chunk(self, chunk: Chunk, result: ChunkResult) -> None:
        """Write a chunk's manifest: from here on it counts as done, for this job and others."""
        write_atomic(self._manifest(chunk), result.model_dump_json())
        try:
            link_atomic(self._manifest(chunk), self._known(chunk))
        except OSError as error:  # it is done all the same
            run_log().warning("chunk %s is not known to other jobs: %s", chunk.id, error)

    def take_over(self, chunk: Chunk) -> ChunkResult | None:
        """Let a chunk count as done that another job rendered into this folder.

        Returns:
            Its manifest; None: no job did, or its file is not there any more.
        """
        if (found := _read_manifest(self._known(chunk))) is None:
            return None
        path = self.chunk_file(chunk)
        found = found.model_copy(update={"id": chunk.id, "path": path})
        write_atomic(self._manifest(chunk), found.model_dump_json())
        return found

    def manifests(self, chunks: Iterable[Chunk]) -> dict[int, ChunkResult]:
        """Return the manifests of those chunks that are done, whatever they are known by."""
        found = {chunk.id: _read_manifest(self._manifest(chunk)) for chunk in chunks}
        return {number: result for number, result in found.items() if result is not None}

    def faults(self, results: Iterable[ChunkResult]) -> dict[int, str]:
        """Return what is wrong with the files of finished chunks, by the chunks' ids."""

        def look(result: ChunkResult) -> str | None:
            found = content(self.path / result.output_file)
            if found == (result.size, result.sha256):
                return None
            return "its file is gone" if found is None else "its file was altered"

        results = list(results)
        with ThreadPoolExecutor(thread_name_prefix="faults") as readers:
            looked = zip(results, readers.map(look, results), strict=True)
        return {result.id: fault for result, fault in looked if fault}

    def has_chunk(self, chunk: Chunk) -> bool:
        """Return whether a chunk counts as done."""
        return self.manifest(chunk) is not None

    def chunks_done(self, chunks: Sequence[Chunk]) -> bool:
        """Return whether all of some chunks count as done."""
        return len(self.done(chunks)) == len(chunks)

    def done(self, chunks: Iterable[Chunk]) -> set[int]:
        """Return the ids of those chunks that count as done."""
        return {chunk.id for chunk in chunks if self._manifest(chunk).is_file()}

    def manifest(self, chunk: Chunk) -> ChunkResult | None:
        """Return a chunk's manifest; None: it is not done. Its file is not looked at."""
        found = _read_manifest(self._manifest(chunk))
        if found is not None and self.environment and found.identity != self.identity(chunk):
            return None
        return found

    def delete_chunks(self) -> None:
        """Delete the chunks for good: manifests and files, and what runs wrote to each other."""
        self.forget_chunks(self.job.chunks)
        self.delete_notes()
        for chunk in self.job.chunks:
            remove(self.chunk_file(chunk))

    def assembling(self) -> AbstractContextManager[None]:
        """Have the chunks on this machine, as they are here."""
        return nullcontext()

    def finished_chunk(self, chunk: Chunk) -> ChunkResult:
        """Return a chunk's manifest, once its file is what the manifest says.

        Raises:
            AssemblyError: The chunk is not done, or its file is missing or has changed since.
        """
        path = self.chunk_file(chunk)
        if (result := self.manifest(chunk)) is None:
            raise AssemblyError(
                f"chunk {chunk.id} of job {self.job.title!r} is not rendered in "
                f"{str(self.path)!r}: run render-job"
            )
        found = content(path)
        if found != (result.size, result.sha256):
            state = "is missing" if found is None else "has changed since it was rendered"
            raise AssemblyError(
                f"chunk {chunk.id}: its file {str(path)!r} {state}: render it again"
            )
        return result.model_copy(update={"path": path})

    def _known(self, chunk: Chunk) -> Path:
        return self.path / RECORDS / "known" / f"{self.identity(chunk)}.json"

    def _manifest(self, chunk: Chunk) -> Path:
        return self.records / "chunks" / f"{chunk.id:06d}.json"


def _make_folder(chunk: Chunk, path: Path) -> None:
    """Make the folder that a chunk is written into; an output `frames/1/` is one itself."""
    folder = path if chunk.output_file.endswith("/") else path.parent
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)


def _read_manifest(path: Path) -> ChunkResult | None:
    try:
        return ChunkResult.model_validate_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return None


def default_folder(job: RenderJob, job_file_folder: Path | None) -> Path:
    """Return the job folder to use if none is named: the job file's, else one of the job's own."""
    if job_file_folder is not None:
        return job_file_folder
    return Path.cwd() / "renderfarm-jobs" / job.key
