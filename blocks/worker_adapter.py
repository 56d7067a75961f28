"""Where a command runs: the interface that every adapter implements."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prefect_renderfarm.blocks.farm_block import FarmBlock


@dataclass(frozen=True, kw_only=True)
class WorkerJob:
    """One command to run, and what an adapter may need to know about it.

    Attributes:
        command: The command line, in POSIX shell quoting; it is split into words and run without a
            shell.
        cwd: Folder in which the command runs; its relative paths start here.
        name: What the command is for, in logs and errors, such as `chunk 3`.
        environment: Variables for this command, on top of the adapter's own.
        timeout: Seconds after which the command is ended; None: the adapter's own limit.
        chunk_id: The chunk that the command renders; None for a merge command.
        output_file: The file that the command writes, relative to `cwd`; None if not known.
        stop: Set when the job is being stopped. An adapter then ends the command promptly and
            raises `WorkStopped`.
    """

    command: str
    cwd: Path = field(default_factory=Path.cwd)
    name: str = "command"
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    chunk_id: int | None = None
    output_file: str | None = None
    stop: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class WorkerResult:
    """How a command ended.

    Attributes:
        exit_code: The command's exit code; 128 + N if signal N ended it.
        stdout: The last part of its standard output.
        stderr: The last part of its standard error.
        duration: Seconds from its start to its end.
        worker: The machine, function or endpoint that ran it.
    """

    exit_code: int
    stdout: str = ""
    stderr: str = ""
    duration: float = 0.0
    worker: str = ""

    def last_words(self, lines: int = 5) -> str:
        """Return the last lines of standard error, or of standard output if that is empty."""
        text = self.stderr.strip() or self.stdout.strip()
        return "\n".join(text.splitlines()[-lines:])


class WorkerAdapter(FarmBlock, ABC):
    """Runs one command somewhere and says how it ended.

    A subclass implements `execute`. It may be called from several threads at once.
    """

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
