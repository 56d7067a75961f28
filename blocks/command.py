"""A command for a worker, and how it ended."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prefect_renderfarm.blocks.errors import CommandFailed, CommandNotRunnable

# What ffmpeg prints of itself before anything else.
_BANNER = re.compile(r"ffmpeg version |  (built with|configuration:|lib\w+ +\d+\.) ?")
_OUTPUT_LINES = 20


@dataclass(frozen=True, kw_only=True)
class WorkerJob:
    """One command to run, and what an adapter may need to know about it.

    Attributes:
        command: The command line; it is split into words by `shlex` and run without a shell.
        cwd: Folder in which the command runs; its relative paths start here.
        name: What the command is for, in logs and errors, such as `chunk 3`.
        environment: Variables for this command, on top of the adapter's own.
        timeout: Seconds after which the command is ended; None means the adapter's own limit.
        chunk_id: The chunk that the command renders; None for a merge command.
        output_file: The file that the command writes, relative to `cwd`; None if not known.
        log_file: Takes the command's whole output; None keeps only the last part of it.
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
    log_file: Path | None = None
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
        billed_seconds: Seconds that the provider charges for; None if it does not say.
        memory_mb: Memory that the provider charges for, in 1,048,576 bytes.
        manifest: The manifest of the chunk that it rendered, as JSON; empty if it does not say.
    """

    exit_code: int
    stdout: str = ""
    stderr: str = ""
    duration: float = 0.0
    worker: str = ""
    billed_seconds: float | None = None
    memory_mb: int | None = None
    manifest: str = ""

    def require_success(self, name: str) -> None:
        """Raise unless the command ended with exit code 0. Errors name what ran, such as `chunk 3`.

        Raises:
            CommandNotRunnable: Its program is missing or cannot be executed.
            CommandFailed: It ended with any other code.
        """
        if self.exit_code == 0:
            return
        kind = CommandNotRunnable if self.exit_code in (126, 127) else CommandFailed
        words = self.last_lines()
        error = kind(
            f"{name}: its command ended with exit code {self.exit_code}"
            + (f" on {self.worker}" if self.worker else "")
            + (f": {' / '.join(words.splitlines())}" if words else "")
        )
        error.worker, error.output = self.worker, self.last_lines(_OUTPUT_LINES)
        raise error

    def last_lines(self, count: int = 5) -> str:
        """Return the last lines of standard error, or of standard output if that is empty.

        Without ffmpeg's banner, which would push the reason out of sight.
        """
        text = self.stderr.strip() or self.stdout.strip()
        lines = [line for line in text.splitlines() if not _BANNER.match(line)]
        return "\n".join(lines[-count:])
