"""Where a command runs: the interface that every adapter implements."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from prefect.blocks.abstract import ObjectStorageBlock

from prefect_renderfarm.blocks.base import FarmBlock
from prefect_renderfarm.blocks.chunks.render import naming_chunk_and_worker, render_here
from prefect_renderfarm.blocks.chunks.request import ChunkRequest
from prefect_renderfarm.blocks.command import WorkerJob, WorkerResult


class WorkerAdapter(FarmBlock, ABC):
    """Runs one command somewhere and says how it ended.

    A subclass implements `execute`. It may be called from several threads at once.

    Attributes:
        runs_commands: Whether it can run a single command, such as a merge command.
        needs_storage: Whether its workers see no job folder, so that chunks need a storage.
    """

    runs_commands: ClassVar[bool] = True
    needs_storage: ClassVar[bool] = False

    @abstractmethod
    def execute(self, job: WorkerJob) -> WorkerResult:
        """Run a command to its end.

        Args:
            job: The command.

        Returns:
            How the command ended; a non-zero exit code is a result, not an error.

        Raises:
            CommandTimeout: It ran longer than allowed and was ended.
            WorkStopped: It was ended because `job.stop` was set.
            WorkerError: It could not be run, or its end is not known.
        """

    def default_concurrency(self) -> int:
        """Return how many commands to run at once when the job does not say."""
        return 4

    def shared_limit(self) -> str | None:
        """Return the Prefect global concurrency limit of which a job holds a slot; None: none."""
        return None

    def declared_environment(self) -> dict[str, Any]:
        """Return what of this adapter decides what a command makes, as far as that is known.

        Variables, an image, a version: whatever is chosen here and would make another picture. No
        secrets. A chunk that was rendered with another one is rendered again. Called after `check`.

        Raises:
            SetupError: It cannot be told now, but may be another time.
        """
        return {}

    def check(self) -> None:
        """Refuse a block that cannot work, such as one without credentials; before any chunk.

        Raises:
            SetupError: Saying what is wrong and what to do.
        """

    def check_command(self, command: str) -> None:
        """Refuse a command that this adapter would not run; before any chunk is rendered.

        An adapter whose workers decide for themselves knows nothing of that: they refuse it.

        Raises:
            FatalWorkerError: Saying what is wrong and what to do.
        """

    def render(
        self,
        order: ChunkRequest,
        storage: ObjectStorageBlock,
        stop: threading.Event,
        worker: str | None = None,
    ) -> WorkerResult:
        """Do a chunk's round: its input from the storage, its command, its file to the storage.

        An adapter that reaches other machines sends them the order; this one runs the command with
        `execute`, in an empty workspace of its own on this machine.

        Args:
            order: The chunk.
            storage: The storage that the order names, with this machine's credentials.
            stop: As in `WorkerJob`.
            worker: What the worker is called in reports; None: as `execute` calls it.

        Returns:
            How the command ended. If well, the chunk's manifest is in the storage.

        Raises:
            WorkerError: As for `execute`; or the chunk's file is not what was planned.
            StorageError: The storage did not answer.
        """
        with naming_chunk_and_worker(order, worker):
            self.check_command(order.command)  # before its input is fetched
        return render_here(order, storage, self.execute, stop, worker)
