"""Where a film goes: a path on the machine that assembles, or a key in the job's storage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from prefect_renderfarm.blocks.errors import AssemblyError, JobError, StorageError
from prefect_renderfarm.flows.state.job_state import JobState

IN_STORAGE = "storage:"


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
        return self.path if self.key is None else Path(f"{IN_STORAGE}{self.key}")

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
    if not text.startswith(IN_STORAGE):
        return OutputLocation(state.path / output_file)
    key = PurePosixPath(text.removeprefix(IN_STORAGE).lstrip("/"))
    if state.block is None:
        raise JobError(f"output_file {text!r} is a key in the storage, but no storage is chosen")
    if not key.name or ".." in key.parts or "%" in key.name:
        raise JobError(f"output_file {text!r}: name one file, such as 'storage:films/film.mp4'")
    return OutputLocation(state.path / key.name, str(key))
