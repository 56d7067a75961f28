"""Run a program in a process group of its own, and leave nothing of it behind."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import IO

from prefect_renderfarm.blocks.errors import CommandTimeout, WorkStopped
from prefect_renderfarm.blocks.processes import reaper
from prefect_renderfarm.blocks.processes.masking import NO_SECRETS, Mask
from prefect_renderfarm.blocks.runtime.text import printable

_POLL_SECONDS = 0.05
_TAIL_LINES = 400
# After a program's end, its output is read until nothing comes for so long; at most so long.
_SILENT_SECONDS = 10.0
_READ_SECONDS = 120.0
_LINE_CHARACTERS = 8192


class OutputTail:
    """The last lines of an output stream; each line is also passed to `on_line` as it comes."""

    def __init__(
        self, stream: IO[str], on_line: Callable[[str], None], mask: Mask = NO_SECRETS
    ) -> None:
        self._lines: deque[str] = deque(maxlen=_TAIL_LINES)
        self._mask = mask
        self._count = 0
        self._thread = threading.Thread(target=self._read, args=(stream, on_line), daemon=True)
        self._thread.start()

    def _read(self, stream: IO[str], on_line: Callable[[str], None]) -> None:
        with stream:
            for text in map(printable, self._masked(stream)):
                self._lines.append(text)
                self._count += 1
                if text.strip():
                    # rich, which prints Prefect's log, raises SystemExit at a broken pipe; a
                    # program whose output is no longer read would wait for ever.
                    with suppress(Exception, SystemExit):
                        on_line(text)

    def _masked(self, stream: IO[str]) -> Iterator[str]:
        """Yield the lines without secrets; long lines in parts."""
        held = ""
        while line := stream.readline(_LINE_CHARACTERS):
            text, held = self._mask(held + line.rstrip("\n")), ""
            if len(line) == _LINE_CHARACTERS and not line.endswith("\n"):
                # A secret may begin in this part and end in the next one.
                end = max(len(text) - self._mask.longest, 0)
                text, held = text[:end], text[end:]
            if text or not held:
                yield text
        if held:
            yield held

    def text(self) -> str:
        """Return the lines kept so far; call after the program has ended."""
        # The pipe ends, unless a process has left the program's group and still holds it.
        deadline, count = time.monotonic() + _READ_SECONDS, -1
        while self._thread.is_alive() and self._count > count and time.monotonic() < deadline:
            count = self._count
            self._thread.join(_SILENT_SECONDS)
        return "\n".join(self._lines.copy())


def run_program(
    arguments: Sequence[str],
    *,
    name: str,
    cwd: Path,
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
    stop: threading.Event,
    timeout: float | None,
    grace: float,
    mask: Mask = NO_SECRETS,
) -> tuple[int, str, str]:
    """Run a program to its end, with no shell and nothing on standard input.

    Whatever ends the call, no process of the program's group is alive afterwards; if this process
    is killed, the reaper ends the group.

    Args:
        arguments: The program and its arguments.
        name: What the program is for, in errors.
        cwd: Folder to run in.
        environment: The program's whole environment.
        on_line: Called with each line of standard output and standard error, from other threads.
        stop: Ends the program when set.
        timeout: Seconds after which the program is ended; None means unlimited.
        grace: Seconds between SIGTERM and SIGKILL.
        mask: Removes secrets from the output.

    Returns:
        The exit code (128 + N if signal N ended the program), and the last lines of standard
        output and standard error.

    Raises:
        OSError: The program could not be started.
        CommandTimeout: The timeout passed.
        WorkStopped: `stop` was set.
    """
    if stop.is_set():
        raise WorkStopped(f"{name}: not started, because its job was stopped")
    # An exception that a signal handler raises, such as Prefect's for SIGTERM, comes in the main
    # thread only. There it could hit `Popen` after the start and lose the process.
    starting: Future[subprocess.Popen[str]] = Future()
    starter = threading.Thread(target=_start, args=(starting, arguments, cwd, environment))
    try:
        starter.start()
        process = starting.result()
        assert process.stdout is not None and process.stderr is not None  # noqa: PT018, S101
        stdout = OutputTail(process.stdout, on_line, mask)
        stderr = OutputTail(process.stderr, on_line, mask)
        _wait(process, name, stop, timeout)
    finally:
        if starter.ident is not None and starting.exception() is None:
            end_group(starting.result(), grace)
            reaper.forget(starting.result().pid)
    code = process.returncode
    return (code if code >= 0 else 128 - code), stdout.text(), stderr.text()


def _start(
    starting: Future[subprocess.Popen[str]],
    arguments: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
) -> None:
    try:
        reaper.begin()
        process = subprocess.Popen(
            arguments,
            cwd=cwd,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        reaper.watch(process.pid)
        starting.set_result(process)
    except Exception as error:
        starting.set_exception(error)


def _wait(
    process: subprocess.Popen[str], name: str, stop: threading.Event, timeout: float | None
) -> None:
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_SECONDS)
            return
        if stop.is_set():
            raise WorkStopped(f"{name}: ended, because its job was stopped")
        if deadline is not None and time.monotonic() > deadline:
            raise CommandTimeout(f"{name}: ended after {timeout:g} s, the longest it may run")


def end_group(process: subprocess.Popen[str], grace: float) -> None:
    """End what is left of a program's process group: SIGTERM, then after `grace` s SIGKILL."""
    deadline = time.monotonic() + grace
    if _signal_group(process.pid, signal.SIGTERM):
        while time.monotonic() < deadline and _group_exists(process):
            time.sleep(_POLL_SECONDS)
        _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _group_exists(process: subprocess.Popen[str]) -> bool:
    process.poll()  # reap it: a group exists as long as a zombie is in it
    return _signal_group(process.pid, 0)


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
