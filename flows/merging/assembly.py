"""Who assembles a job's chunks, and where the film goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from prefect_renderfarm.blocks.errors import AssemblyError, JobError, StorageError
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.stitchers.base import VideoStitcher
from prefect_renderfarm.flows.results import Assembly
from prefect_renderfarm.flows.state.job_state import JobState

_IN_STORAGE = "storage:"


def plan_assembly(
    merge_command: str | None, stitcher: VideoStitcher | None, film: Path | None, merge: bool = True
) -> Assembly:
    """Decide who assembles the chunks.

    Raises:
        JobError: A stitcher or an output file is chosen, but not both, and there is no merge
            command either.
    """
    if not merge:
        return Assembly.OFF
    if stitcher is not None and film is not None:
        return Assembly.STITCHED
    if merge_command is None:
        if stitcher is not None:
            raise JobError(
                "a stitcher is chosen, but no output_file, and the job has no merge command: "
                "give output_file, the path of the film"
            )
        if film is not None:
            raise JobError(
                f"output_file {str(film)!r} is given, but no stitcher, and the job has no merge "
                "command: choose a stitcher, such as 'remux-stitcher/default'"
            )
        return Assembly.SKIPPED
    if stitcher is not None:
        run_log().warning(
            "a stitcher is chosen, but no output_file: the job's merge command assembles"
        )
    return Assembly.MERGED


@dataclass(frozen=True)
class OutputLocation:
    """Where a film goes.

    Attributes:
        path: Where it is assembled, on the machine that assembles.
        key: Its key in the storage, below the storage block's folder; None: it stays at its path.
    """

    path: Path
    key: str | None = None

    @property
    def name(self) -> Path:
        """The place, for people."""
        return self.path if self.key is None else Path(f"{_IN_STORAGE}{self.key}")

    def deliver(self, state: JobState) -> None:
        """Send the film to the storage, if that is where it goes, and keep no copy.

        Raises:
            AssemblyError: It could not be sent; it stays at its path.
        """
        if self.key is None:
            return
        try:
            state.objects.store.upload(self.path, self.key)
        except StorageError as error:
            raise AssemblyError(f"{error}; the film stays at {str(self.path)!r}") from None
        self.path.unlink()


def output_location(state: JobState, output_file: Path | None) -> OutputLocation | None:
    """Return where `output_file` is: absolute, in the job folder, or `storage:films/film.mp4`.

    Raises:
        JobError: It is a key, but the job has no storage; or it is no usable key.
    """
    if output_file is None:
        return None
    text = output_file.as_posix()
    if not text.startswith(_IN_STORAGE):
        return OutputLocation(state.path / output_file)
    key = PurePosixPath(text.removeprefix(_IN_STORAGE).lstrip("/"))
    if state.block is None:
        raise JobError(f"output_file {text!r} is a key in the storage, but no storage is chosen")
    if not key.name or ".." in key.parts or "%" in key.name:
        raise JobError(f"output_file {text!r}: name one file, such as 'storage:films/film.mp4'")
    return OutputLocation(state.path / key.name, str(key))
