"""Commands as subprocesses of this machine."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from prefect.types import SecretDict
from pydantic import AfterValidator, Field

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.command import WorkerJob, WorkerResult
from prefect_renderfarm.blocks.errors import CommandNotRunnable
from prefect_renderfarm.blocks.processes.masking import Mask, warn_of_short
from prefect_renderfarm.blocks.processes.process_group import run_program
from prefect_renderfarm.blocks.processes.programs import (
    check_programs,
    find_program,
    path_with_ffmpeg,
    require_allowed,
    split_command,
)
from prefect_renderfarm.blocks.runtime.prefect_api import run_log, this_worker

# What programs need to find themselves, their libraries, their language and their scratch space.
PASSED_VARIABLES = (
    "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "SHELL", "TERM",
    "TMPDIR", "TZ", "USER", "XDG_RUNTIME_DIR",
)  # fmt: skip
# Exit codes of programs that cannot be started, as in a POSIX shell.
_EXIT_CODES = {errno.ENOENT: 127} | dict.fromkeys(
    (errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.E2BIG), 126
)


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

    _block_type_name = "Local Adapter"
    _block_type_slug = "local-adapter"
    _description = (
        "Run render and merge commands as subprocesses of the machine that runs the flow."
    )

    timeout: float | None = Field(default=None, gt=0, title="Timeout")
    """Longest time a command may run, in seconds. Empty: no limit."""
    grace: float = Field(default=5.0, ge=0, title="Grace period")
    """Seconds a command gets to end itself after SIGTERM, before SIGKILL."""
    pass_variables: list[str] = Field(default=[], title="Variables to pass on")
    """Names of further environment variables of the worker to pass to commands. Always passed:
    HOME, LANG, LC_ALL, LC_CTYPE, LD_LIBRARY_PATH, LOGNAME, PATH, SHELL, TERM, TMPDIR, TZ, USER,
    XDG_RUNTIME_DIR."""
    environment: dict[str, str] = Field(default={}, title="Environment")
    """Environment variables to set for commands."""
    secret_environment: SecretDict = Field(
        default_factory=lambda: SecretDict({}), title="Secret environment"
    )
    """Environment variables to set for commands whose values are kept secret. Logs, errors and kept
    output show *** in their place, unless they have fewer than 4 characters. Files that a command
    writes are not searched."""
    ffmpeg: Path | None = Field(default=None, title="FFmpeg")
    """The program that `ffmpeg` means inside commands. Empty: the one on PATH, else the one that
    imageio-ffmpeg carries."""
    programs: Annotated[list[str], AfterValidator(check_programs)] = Field(
        default=[], title="Allowed programs"
    )
    """What commands may begin with, word for word: a name such as ffmpeg, which is looked up on
    PATH, or an absolute path. Empty: any program. A program that starts others, such as env, sh,
    xargs or python, lets a job run anything."""

    def check(self) -> None:
        """Warn of secrets that are too short to be masked."""
        warn_of_short(self._secrets())

    def check_command(self, command: str) -> None:
        """Refuse a command whose program is not allowed here, or not on the PATH.

        One that is named by its path may be among the job's input files. See `WorkerAdapter`.
        """
        program = split_command(command)[0]
        require_allowed(program, self.programs)
        search_path = self._environment().get("PATH", os.defpath)
        # In the folder of a chunk a relative one may have the program.
        known = self.programs or all(map(os.path.isabs, search_path.split(os.pathsep)))
        plain = "/" not in program and program != "ffmpeg"  # one is always there
        if plain and known and not find_program(program, search_path):
            raise CommandNotRunnable(
                f"program {program!r} is not on the PATH of worker {this_worker()}: correct the "
                "command, or install the program there"
            )

    def execute(self, job: WorkerJob) -> WorkerResult:
        """Run a command as a subprocess; its output goes to the run's log line by line.

        A program that is not there ends with exit code 127, one that cannot be executed with 126.
        """
        started = time.monotonic()
        try:
            exit_code, stdout, stderr = self._run(job)
        except OSError as error:
            if error.errno not in _EXIT_CODES:
                raise
            exit_code, stdout = _EXIT_CODES[error.errno], ""
            stderr = f"{error.filename}: {error.strerror}"
            if error.errno == errno.ENOENT and "/" not in str(error.filename):
                stderr = f"program {error.filename!r} is not on the PATH"
        return WorkerResult(
            exit_code=exit_code, stdout=stdout, stderr=stderr,
            duration=time.monotonic() - started, worker=this_worker(),
        )  # fmt: skip

    def _run(self, job: WorkerJob) -> tuple[int, str, str]:
        program, *arguments = split_command(job.command)
        if self.programs:
            require_allowed(program, self.programs, f"{job.name}: ")
            # The job's own PATH, if it has one, does not count.
            search_path = path_with_ffmpeg(self._environment().get("PATH", os.defpath), self.ffmpeg)
            found = find_program(program, search_path)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), program)
            program = found
        log = run_log()  # here: the threads that read the output have no run
        file = (job.log_file or Path(os.devnull)).open("w", encoding="utf-8")

        def on_line(line: str) -> None:
            log.info("%s | %s", job.name, line)
            file.write(f"{line}\n")

        try:
            return run_program(
                [program, *arguments], name=job.name, cwd=job.cwd,
                environment=self.child_environment(job), on_line=on_line, stop=job.stop,
                timeout=job.timeout or self.timeout, grace=self.grace,
                mask=Mask(self._secrets().values()),
            )  # fmt: skip
        finally:
            with suppress(OSError):  # a disk that the command has filled; its end matters more
                file.close()

    def child_environment(self, job: WorkerJob) -> dict[str, str]:
        """Return all variables of a command's process."""
        environment = self._environment() | dict(job.environment)
        environment["PATH"] = path_with_ffmpeg(environment.get("PATH", os.defpath), self.ffmpeg)
        return environment

    def _environment(self) -> dict[str, str]:
        names = (*PASSED_VARIABLES, *self.pass_variables)
        passed = {name: os.environ[name] for name in names if name in os.environ}
        return passed | self.environment | self._secrets()

    def _secrets(self) -> dict[str, str]:
        secrets = self.secret_environment.get_secret_value()
        return {name: str(value) for name, value in secrets.items()}

    def digest_inputs(self) -> dict[str, Any]:
        """Return the variables that are set or passed, and the FFmpeg that was chosen."""
        return {
            "set": self.environment,
            "passed": sorted(self.pass_variables),
            "secret": sorted(self._secrets()),
            "ffmpeg": str(self.ffmpeg or ""),
        }

    def default_concurrency(self) -> int:
        """Return the number of processors that this process may use."""
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
