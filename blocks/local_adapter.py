"""Commands as subprocesses of this machine."""

from __future__ import annotations

import errno
import os
import shlex
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from prefect.types import SecretDict
from pydantic import Field

from prefect_renderfarm.blocks.errors import JobError
from prefect_renderfarm.blocks.ffmpeg_binary import path_with_ffmpeg
from prefect_renderfarm.blocks.process_group import run_program
from prefect_renderfarm.blocks.run_log import RunLog, run_log
from prefect_renderfarm.blocks.worker_adapter import WorkerAdapter
from prefect_renderfarm.blocks.worker_job import WorkerJob, WorkerResult

# What programs need to find themselves, their libraries, their language and their scratch space.
PASSED_VARIABLES = (
    "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "SHELL", "TERM",
    "TMPDIR", "TZ", "USER", "XDG_RUNTIME_DIR",
)  # fmt: skip


def split_command(command: str) -> list[str]:
    """Split a command line into words by the quoting rules of a POSIX shell, and no other of them.

    Raises:
        JobError: The quoting is not closed, there is no word, or there is a NUL character.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise JobError(f"command {command!r} cannot be split into words: {error}") from None
    if not words or "\0" in command:
        raise JobError(f"command {command!r} is empty or has a NUL character")
    return words


class LocalAdapter(WorkerAdapter):
    """Run commands as subprocesses of the machine that runs the flow, without a shell.

    Example:
        Load a saved adapter and run a command:
        ```python
        from prefect_renderfarm.blocks import LocalAdapter, WorkerJob

        adapter = LocalAdapter.load("BLOCK_NAME")
        result = adapter.execute(WorkerJob(command="blender --version"))
        ```
    """

    _block_type_name: ClassVar[str | None] = "Local Adapter"
    _block_type_slug: ClassVar[str | None] = "local-adapter"
    _description: ClassVar[str | None] = (
        "Run render and merge commands as subprocesses of the machine that runs the flow."
    )

    timeout: float | None = Field(
        default=None,
        gt=0,
        title="Timeout",
        description="Longest time a command may run, in seconds. Empty: no limit.",
    )
    grace: float = Field(
        default=5.0,
        ge=0,
        title="Grace period",
        description="Seconds a command gets to end itself after SIGTERM, before SIGKILL.",
    )
    pass_variables: list[str] = Field(
        default=[],
        title="Variables to pass on",
        description=(
            "Names of further environment variables of the worker that commands see. "
            f"They always see {', '.join(PASSED_VARIABLES)}."
        ),
    )
    environment: dict[str, str] = Field(
        default={},
        title="Environment",
        description="Environment variables to set for commands.",
    )
    secret_environment: SecretDict = Field(
        default_factory=lambda: SecretDict({}),
        title="Secret environment",
        description="Environment variables to set for commands whose values are kept secret.",
    )
    ffmpeg: Path | None = Field(
        default=None,
        title="FFmpeg",
        description=(
            "The program that `ffmpeg` means inside commands. "
            "Empty: the one on PATH, else the one that imageio-ffmpeg carries."
        ),
    )

    def execute(self, job: WorkerJob) -> WorkerResult:
        """Run a command as a subprocess; its output goes to the run's log line by line.

        A program that is not there ends with exit code 127, one that may not be executed with 126,
        as in a POSIX shell.
        """
        arguments = split_command(job.command)
        environment = self.child_environment(job)
        log = run_log()
        started = time.monotonic()

        def ended(exit_code: int, stdout: str, stderr: str) -> WorkerResult:
            return WorkerResult(
                exit_code=exit_code,
                stdout=stdout,
                stderr=stderr,
                duration=time.monotonic() - started,
                worker=socket.gethostname(),
            )

        try:
            with _each_line(log, job) as on_line:
                return ended(
                    *run_program(
                        arguments,
                        name=job.name,
                        cwd=job.cwd,
                        environment=environment,
                        on_line=on_line,
                        stop=job.stop,
                        timeout=job.timeout or self.timeout,
                        grace=self.grace,
                    )
                )
        except FileNotFoundError as error:
            return ended(127, "", f"{error.filename}: {os.strerror(errno.ENOENT)}")
        except (PermissionError, OSError) as error:
            if error.errno not in (errno.EACCES, errno.ENOEXEC, errno.ENOTDIR):
                raise
            return ended(126, "", f"{error.filename}: {error.strerror}")

    def child_environment(self, job: WorkerJob) -> dict[str, str]:
        """Return the whole environment that a command gets."""
        names = (*PASSED_VARIABLES, *self.pass_variables)
        environment = {name: os.environ[name] for name in names if name in os.environ}
        environment |= self.environment
        environment |= {
            name: str(value) for name, value in self.secret_environment.get_secret_value().items()
        }
        environment |= job.environment
        environment["PATH"] = path_with_ffmpeg(environment.get("PATH", os.defpath), self.ffmpeg)
        return environment

    def default_concurrency(self) -> int:
        """Return the number of processors that this process may use."""
        return (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )


@contextmanager
def _each_line(log: RunLog, job: WorkerJob) -> Iterator[Callable[[str], None]]:
    """Give what takes each line of a command's output: to the run's log, and to the job's file."""
    if job.log_file is None:
        yield lambda line: log.info("%s | %s", job.name, line)
        return
    with job.log_file.open("w", encoding="utf-8") as file:

        def on_line(line: str) -> None:
            file.write(f"{line}\n")
            log.info("%s | %s", job.name, line)

        yield on_line
