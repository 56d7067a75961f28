"""Run a program in a process group of its own, and leave nothing of it behind."""

from __future__ import annotations

import fcntl
import io
import os
import select
import subprocess
import sys
import termios
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import psutil
from humanize import naturalsize

from prefect_renderfarm.blocks.errors import CommandTimeout, WorkStopped
from prefect_renderfarm.blocks.processes import reaper
from prefect_renderfarm.blocks.processes.masking import NO_SECRETS, Mask
from prefect_renderfarm.blocks.runtime.text import printable

_POLL_SECONDS = 0.05
_CGROUP = Path("/sys/fs/cgroup")  # in a container, its own group
# How long a reader waits for output before it looks whether the program has ended.
_SILENT_SECONDS = 0.5
_TAIL_LINES = 400
_LINE_CHARACTERS = 8192


class _Pipe(io.RawIOBase):
    """A program's output: ends with its end, also if another process still holds the pipe open.

    Once the program's group has ended, all that it wrote is in the pipe. That is read, however
    long its reader takes. What a process outside of the group writes later is not.
    """

    def __init__(self, pipe: IO[bytes], ended: threading.Event) -> None:
        self._pipe, self._ended = pipe, ended
        self._left: int | None = None  # bytes that are to be read after the program's end
        self._poll = select.poll()
        self._poll.register(pipe, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._left is None:
            if self._ended.is_set():
                waiting = fcntl.ioctl(self._pipe, termios.FIONREAD, bytes(4))
                self._left = int.from_bytes(waiting, sys.byteorder)
            elif self._poll.poll(_SILENT_SECONDS * 1000):
                break
        count = os.readv(self._pipe.fileno(), [memoryview(buffer)[: self._left]])
        if self._left is not None:
            self._left -= count
        return count


def _read(
    pipe: IO[bytes], ended: threading.Event, on_line: Callable[[str], None], mask: Mask,
    tail: deque[str],
) -> None:  # fmt: skip
    """Pass each line of a program's output to `on_line` as it comes, and keep the last ones."""
    buffer = io.BufferedReader(_Pipe(pipe, ended))
    with pipe, io.TextIOWrapper(buffer, encoding="utf-8", errors="replace") as stream:
        for text in map(printable, _masked(stream, mask)):
            tail.append(text)
            if text.strip():
                # rich, which prints Prefect's log, raises SystemExit at a broken pipe; a program
                # whose output is no longer read would wait for ever.
                with suppress(Exception, SystemExit):
                    on_line(text)


def _masked(stream: IO[str], mask: Mask) -> Iterator[str]:
    """Yield the lines without secrets; long lines in parts."""
    held = ""
    while line := stream.readline(_LINE_CHARACTERS):
        text, held = mask(held + line.rstrip("\n")), ""
        if len(line) == _LINE_CHARACTERS and not line.endswith("\n"):
            # A secret may begin in this part and end in the next one.
            end = max(len(text) - mask.longest, 0)
            text, held = text[:end], text[end:]
        if text or not held:
            yield text
    if held:
        yield held


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

    Whatever ends the call, no process of the program's group is alive afterwards: it gets SIGTERM,
    and SIGKILL after `grace` seconds. If this process is killed, the reaper ends the group. Each
    line of output goes to `on_line`, from other threads, without the secrets of `mask`.

    Returns the exit code (128 + N if signal N ended the program), and the last lines of standard
    output and standard error; the very last one says that the container was out of memory, if it
    was. Raises OSError if the program could not be started; CommandTimeout or
    WorkStopped if it was ended.
    """
    if stop.is_set():
        raise WorkStopped(f"{name}: not started, because its job was stopped")
    killed = _memory_kills()
    starting: Future[subprocess.Popen[bytes]] = Future()
    ended = threading.Event()

    def start() -> None:
        try:
            reaper.begin()
            process = subprocess.Popen(
                arguments, bufsize=0, cwd=cwd, env=dict(environment), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
            reaper.watch(process.pid)
            starting.set_result(process)
        except Exception as error:
            starting.set_exception(error)

    # An exception that a signal handler raises, such as Prefect's for SIGTERM, comes in the main
    # thread only. There it could hit `Popen` after the start and lose the process.
    starter = threading.Thread(target=start)
    tails: list[deque[str]] = [deque(maxlen=_TAIL_LINES), deque(maxlen=_TAIL_LINES)]
    try:
        starter.start()
        process = starting.result()
        readers = [
            threading.Thread(target=_read, args=(pipe, ended, on_line, mask, tail), daemon=True)
            for pipe, tail in zip((process.stdout, process.stderr), tails, strict=True)
        ]
        for reader in readers:
            reader.start()
        _wait(process, name, stop, timeout)
    finally:
        if starter.ident is not None and starting.exception() is None:
            process = starting.result()
            reaper.end_groups({process.pid}, grace, process.poll)
            process.wait()
            ended.set()
            reaper.forget(process.pid)
    for reader in readers:
        reader.join()
    code = process.returncode
    if code != 0 and _memory_kills() > killed:
        tails[1].append(f"out of memory (limit {_memory_limit()})")
    stdout, stderr = map("\n".join, tails)
    return (code if code >= 0 else 128 - code), stdout, stderr


def _memory_kills() -> int:
    """Return how many processes of this container the kernel has killed for want of memory.

    0 where the machine does not say.
    """
    for name in ("memory.events", "memory/memory.oom_control"):  # cgroup v2, v1
        with suppress(OSError, ValueError):
            lines = (_CGROUP / name).read_text().splitlines()
            return int(dict(line.split() for line in lines).get("oom_kill", 0))
    return 0


def _memory_limit() -> str:
    limits = [psutil.virtual_memory().total]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            limits.append(int((_CGROUP / name).read_text()))
    return naturalsize(min(limits), binary=True, format="%.3g")


def _wait(
    process: subprocess.Popen[bytes], name: str, stop: threading.Event, timeout: float | None
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
