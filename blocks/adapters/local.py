"""Commands as subprocesses of this machine."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from prefect.types import SecretDict
from pydantic import Field, field_validator

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.command import WorkerJob, WorkerResult
from prefect_renderfarm.blocks.errors import CommandNotRunnable
from prefect_renderfarm.blocks.processes.command_line import (
    check_programs,
    find_program,
    require_allowed,
    split_command,
)
from prefect_renderfarm.blocks.processes.ffmpeg_binary import path_with_ffmpeg
from prefect_renderfarm.blocks.processes.masking import MASKED, MIN_CHARACTERS, Mask, warn_of_short
from prefect_renderfarm.blocks.processes.process_group import run_program
from prefect_renderfarm.blocks.runtime.prefect_api import run_log

# What programs need to find themselves, their libraries, their language and their scratch space.
PASSED_VARIABLES = (
    "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "SHELL", "TERM",
    "TMPDIR", "TZ", "USER", "XDG_RUNTIME_DIR",
)  # fmt: skip


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
            "Names of further environment variables of the worker to pass to commands. "
            f"Always passed: {', '.join(PASSED_VARIABLES)}."
        ),
    )
    environment: dict[str, str] = Field(
        default={}, title="Environment", description="Environment variables to set for commands."
    )
    secret_environment: SecretDict = Field(
        default_factory=lambda: SecretDict({}),
        title="Secret environment",
        description=(
            "Environment variables to set for commands whose values are kept secret. Logs, errors "
            f"and kept output show {MASKED} in their place, unless they have fewer than "
            f"{MIN_CHARACTERS} characters. Files that a command writes are not searched."
        ),
    )
    ffmpeg: Path | None = Field(
        default=None,
        title="FFmpeg",
        description=(
            "The program that `ffmpeg` means inside commands. "
            "Empty: the one on PATH, else the one that imageio-ffmpeg carries."
        ),
    )
    programs: list[str] = Field(
        default=[],
        title="Allowed programs",
        description=(
            "What commands may begin with, word for word: a name such as ffmpeg, which is looked "
            "up on PATH, or an absolute path. Empty: any program. A program that starts others, "
            "such as env, sh, xargs or python, lets a job run anything."
        ),
    )

    @field_validator("programs")
    @classmethod
    def _programs_are_names(cls, programs: list[str]) -> list[str]:
        check_programs(programs)
        return programs

    def check(self) -> None:
        """Warn of secrets that are too short to be masked."""
        warn_of_short(self._secrets())

    def check_command(self, command: str) -> None:
        """Refuse a command whose program is not allowed here. See `WorkerAdapter`."""
        if self.programs:
            require_allowed(split_command(command)[0], self.programs)

    def execute(self, job: WorkerJob) -> WorkerResult:
        """Run a command as a subprocess; its output goes to the run's log line by line.

        A program that does not exist ends with exit code 127, one that may not be executed with
        126, as in a POSIX shell.
        """
        arguments = split_command(job.command)
        program = self._program(arguments[0], job.name)
        started = time.monotonic()

        def ended(exit_code: int, stdout: str, stderr: str) -> WorkerResult:
            return WorkerResult(
                exit_code=exit_code,
                stdout=stdout,
                stderr=stderr,
                duration=time.monotonic() - started,
                worker=socket.gethostname(),
            )

        if program is None:
            return ended(127, "", f"{arguments[0]}: {os.strerror(errno.ENOENT)}")
        try:
            with _line_logger(job) as on_line:
                return ended(
                    *run_program(
                        [program, *arguments[1:]],
                        name=job.name,
                        cwd=job.cwd,
                        environment=self.child_environment(job),
                        on_line=on_line,
                        stop=job.stop,
                        timeout=job.timeout or self.timeout,
                        grace=self.grace,
                        mask=Mask(self._secrets().values()),
                    )
                )
        except FileNotFoundError as error:
            return ended(127, "", f"{error.filename}: {os.strerror(errno.ENOENT)}")
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.E2BIG):
                raise
            return ended(126, "", f"{error.filename}: {error.strerror}")

    def child_environment(self, job: WorkerJob) -> dict[str, str]:
        """Return all variables of a command's process."""
        environment = self._environment() | dict(job.environment)
        environment["PATH"] = path_with_ffmpeg(environment.get("PATH", os.defpath), self.ffmpeg)
        return environment

    def _program(self, word: str, name: str) -> str | None:
        """Return the path or name by which to start a command's program; None: it does not exist.

        Raises:
            CommandNotRunnable: It is not allowed.
        """
        if not self.programs:
            return word
        try:
            require_allowed(word, self.programs)
        except CommandNotRunnable as error:
            raise CommandNotRunnable(f"{name}: {error}") from None
        # The job's own PATH, if it has one, does not count.
        search_path = self._environment().get("PATH", os.defpath)
        return find_program(word, path_with_ffmpeg(search_path, self.ffmpeg))

    def _environment(self) -> dict[str, str]:
        names = (*PASSED_VARIABLES, *self.pass_variables)
        passed = {name: os.environ[name] for name in names if name in os.environ}
        return passed | self.environment | self._secrets()

    def _secrets(self) -> dict[str, str]:
        given = self.secret_environment.get_secret_value()
        return {name: str(value) for name, value in given.items()}

    def digest_inputs(self) -> dict[str, Any]:
        """Return the variables that are set or passed, and the FFmpeg that was chosen."""
        return {
            "set": self.environment,
            "passed": sorted(self.pass_variables),
            "secret": sorted(self.secret_environment.get_secret_value()),
            "ffmpeg": str(self.ffmpeg or ""),
        }

    def default_concurrency(self) -> int:
        """Return the number of processors that this process may use."""
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1


@contextmanager
def _line_logger(job: WorkerJob) -> Iterator[Callable[[str], None]]:
    """Yield a function that writes a line of output to the run's log, and to the job's file."""
    log = run_log()  # here: the threads that read the output have no run
    if job.log_file is None:
        yield lambda line: log.info("%s | %s", job.name, line)
        return
    file = job.log_file.open("w", encoding="utf-8")

    def on_line(line: str) -> None:
        log.info("%s | %s", job.name, line)
        file.write(f"{line}\n")

    try:
        yield on_line
    finally:
        with suppress(OSError):  # a disk that the command has filled; its end matters more
            file.close()
