"""Where a command runs: the interface that every adapter implements."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from prefect.blocks.abstract import ObjectStorageBlock

from prefect_renderfarm.blocks.base import FarmBlock
from prefect_renderfarm.blocks.chunks.render import (
    ChunkRequest,
    naming_chunk_and_worker,
    render_here,
)
from prefect_renderfarm.blocks.command import WorkerJob, WorkerResult


class WorkerAdapter(FarmBlock, ABC):
    """Runs one command somewhere and says how it ended.

    A subclass implements `execute`, which several threads may call at once.

    Attributes:
        runs_commands: Whether it can run a single command, such as a merge command.
        needs_storage: Whether its workers see no job folder, so that chunks need a storage.
    """

    runs_commands: ClassVar[bool] = True
    needs_storage: ClassVar[bool] = False

    @abstractmethod
    def execute(self, job: WorkerJob) -> WorkerResult:
        """Run a command to its end.

        Returns:
            How the command ended; a non-zero exit code is a result, not an error.

        Raises:
            CommandTimeout: It ran longer than allowed and was ended.
            WorkStopped: It was ended because `job.stop` was set.
            WorkerError: It could not be run, or its outcome is unknown.
        """

    def default_concurrency(self) -> int:
        """Return how many commands to run at once when the job does not say."""
        return 4

    def shared_limit(self) -> str | None:
        """Return the Prefect global concurrency limit of which each job holds a slot, if any."""
        return None

    def digest_inputs(self) -> dict[str, Any]:
        """Return the adapter's part of the inputs digest: what determines the pictures.

        Process variables, an image, a version, but no secrets. After a change, chunks are rendered
        again. Called after `check`. Raises SetupError if it cannot be read now.
        """
        return {}

    def check(self) -> None:
        """Raise SetupError if the block cannot work, such as without credentials."""

    def check_command(self, command: str) -> None:
        """Raise FatalWorkerError for a command that would not be run; before any chunk.

        An adapter whose workers decide for themselves accepts all commands here.
        """

    def render(
        self,
        request: ChunkRequest,
        storage: ObjectStorageBlock,
        stop: threading.Event,
        worker: str | None = None,
    ) -> WorkerResult:
        """Render a chunk: fetch its input from the storage, run its command, publish its file.

        An adapter that reaches other machines sends them the request; this one runs the command
        with `execute`, in an empty workspace on this machine. `storage` is the one that the request
        names, with this machine's credentials; `worker` is the worker's name in reports, None the
        one that `execute` returns.

        Returns:
            How the command ended. If the exit code is 0, the chunk's manifest is in the storage.

        Raises:
            WorkerError: As for `execute`; or the chunk's file is not as planned.
            StorageError: A storage operation failed.
        """
        with naming_chunk_and_worker(request, worker):
            self.check_command(request.command)  # before its input is fetched
            return render_here(request, storage, self.execute, stop, worker)
