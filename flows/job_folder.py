"""The folder of a job: where commands run, and where it is written which chunks are done.

Beside the job's own files it holds `.renderfarm/<job key>/`:

    job.json            the job spec
    chunks/<id>.json    a chunk's manifest, a `ChunkResult`, written after its file
    runs/<id>-*.json    between a run of `render-chunks` and the one that started it
    merge.json          the last `MergeReport`
    report.json         the last `RenderReport`
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from prefect_renderfarm.blocks import AssemblyError, JobError, SetupError
from prefect_renderfarm.blocks.chunk_file import content, remove
from prefect_renderfarm.blocks.chunk_result import ChunkResult
from prefect_renderfarm.blocks.run_log import run_log
from prefect_renderfarm.blocks.whole_file import write_whole
from prefect_renderfarm.flows.job import Chunk, RenderJob, job_file_path
from prefect_renderfarm.flows.results import MergeReport, RenderReport

RECORDS = ".renderfarm"


class JobFolder:
    """One job's files and records.

    Args:
        path: The job folder, absolute.
        job: The job.
    """

    # How often to look for a manifest, in seconds; and how many chunks to check at once.
    poll_seconds = 0.05
    fetched_ahead = 1
    # What workers are told of the job's input files; None: nothing, they see the folder.
    assets: str | None = None

    def __init__(self, path: Path, job: RenderJob) -> None:
        self.path = path
        self.job = job
        self.records = path / RECORDS / job.key
        self.job_file = self.records / "job.json"
        self._merge_file = self.records / "merge.json"

    def prepare(self, *, film: Path | None = None, sent: bool = False) -> None:
        """Make the folder and write the job spec into it.

        Without a storage, commands run in it and find their input files there: a folder that
        `assetsUrl` names needs nothing, and what is elsewhere is not fetched.

        Args:
            film: The film that will be made, if its path is known.
            sent: Whether another machine has done so already.

        Raises:
            SetupError: The folder cannot be written to.
            JobError: A chunk's file would lie outside it.
        """
        url = (self.job.assets_url or "").partition("?")[0]
        if self.assets is None and "://" in url and not url.lower().startswith("file://"):
            run_log().warning("assetsUrl %r is not fetched: without a storage, commands find "
                              "their input files in the job folder", url)  # fmt: skip
        try:
            write_whole(self.job_file, self.job.to_json())
            for chunk in self.job.chunks:
                self._make_folder(chunk)
        except OSError as error:
            raise SetupError(
                f"job folder {str(self.path)!r} cannot be written to: {error.strerror}"
            ) from None

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
        """Remove the manifests of chunks that are to be rendered anew."""
        for chunk in chunks:
            self._manifest(chunk).unlink(missing_ok=True)

    def drop_chunk(self, chunk: Chunk) -> None:
        """Remove a chunk's manifest, then its file or its images."""
        self._manifest(chunk).unlink(missing_ok=True)
        remove(self.chunk_file(chunk))
        self._make_folder(chunk)

    def publish_chunk(self, chunk: Chunk, result: ChunkResult) -> None:
        """Write a chunk's manifest: from here on it counts as done."""
        write_whole(self._manifest(chunk), result.model_dump_json())

    def has_chunk(self, chunk: Chunk) -> bool:
        """Return whether a chunk counts as done."""
        return self._manifest(chunk).is_file()

    def chunks_done(self, chunks: Sequence[Chunk]) -> bool:
        """Return whether all of some chunks count as done."""
        return len(self.done(chunks)) == len(chunks)

    def done(self, chunks: Iterable[Chunk]) -> set[int]:
        """Return the ids of those chunks that count as done."""
        return {chunk.id for chunk in chunks if self.has_chunk(chunk)}

    def manifest(self, chunk: Chunk) -> ChunkResult | None:
        """Return a chunk's manifest; None: it is not done. Its file is not looked at."""
        try:
            text = self._manifest(chunk).read_text(encoding="utf-8")
            return ChunkResult.model_validate_json(text)
        except (FileNotFoundError, ValidationError):
            return None

    def delete_chunks(self) -> None:
        """Delete the chunks for good: manifests and files."""
        for chunk in self.job.chunks:
            self._manifest(chunk).unlink(missing_ok=True)
            remove(self.chunk_file(chunk))

    def remove_copies(self) -> None:
        """Remove copies of chunks that are kept elsewhere: here, none are."""

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

    def write_record(self, name: str, text: str) -> None:
        """Write one of the job's records, where all who work at the job can read it."""
        write_whole(self.records / name, text)

    def read_record(self, name: str) -> str | None:
        """Return one of the job's records; None: it is not there."""
        try:
            return (self.records / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def save_report(self, report: RenderReport) -> None:
        """Write what the job came to."""
        write_whole(self.records / "report.json", report.model_dump_json())

    def save_merge(self, report: MergeReport) -> None:
        """Write how the film was assembled."""
        write_whole(self._merge_file, report.model_dump_json())

    def forget_merge(self) -> None:
        """Remove what an earlier assembly wrote."""
        self._merge_file.unlink(missing_ok=True)

    def load_merge(self) -> MergeReport:
        """Return how the film was assembled.

        Raises:
            SetupError: The run that assembled it wrote into another folder.
        """
        try:
            return MergeReport.model_validate_json(self._merge_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SetupError(
                f"job folder {str(self.path)!r} is not the folder that merge-job sees under that "
                "path: let both work pools share it"
            ) from None

    def _make_folder(self, chunk: Chunk) -> None:
        """Make the folder that a chunk is written into; an output `frames/1/` is one itself."""
        path = self.chunk_file(chunk)
        folder = path if chunk.output_file.endswith("/") else path.parent
        folder.mkdir(parents=True, exist_ok=True)

    def _manifest(self, chunk: Chunk) -> Path:
        return self.records / "chunks" / f"{chunk.id:06d}.json"


def default_folder(job: RenderJob, job_file_folder: Path | None) -> Path:
    """Return the job folder to use if none is named: the job file's, else one of the job's own."""
    if job_file_folder is not None:
        return job_file_folder
    return Path.cwd() / "renderfarm-jobs" / job.key
