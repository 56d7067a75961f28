"""A small process that ends this process's children if this process is killed.

SIGKILL cannot be caught, so a killed flow run would leave its renderers running. The reaper is a
separate program, started before the first child. It reads the ids of process groups from a pipe
that only this process holds; when the pipe closes, this process is gone, and the reaper ends the
groups that are still on its list: SIGTERM, and SIGKILL a little later.

Run as a program, this file is the reaper. It then imports nothing outside the standard library.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO

_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.05
_lock = threading.Lock()
_reaper: subprocess.Popen[str] | None = None


def begin() -> None:
    """Start the reaper, unless it runs; call before a child is started."""
    _send("")


def watch(group: int) -> None:
    """Let the reaper end a process group if this process dies."""
    _send(f"+{group}\n")


def forget(group: int) -> None:
    """Take a process group that has ended off the reaper's list."""
    _send(f"-{group}\n")


def _send(line: str) -> None:
    global _reaper
    with _lock:
        if _reaper is None or _reaper.poll() is not None:
            _reaper = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__], text=True, cwd="/", env={},
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        assert _reaper.stdin is not None  # noqa: S101
        _reaper.stdin.write(line)
        _reaper.stdin.flush()


def reap(lines: IO[str]) -> None:
    """Keep the list that comes as lines; when they end, end the groups on it."""
    groups: set[int] = set()
    for line in lines:
        number = int(line)
        change = groups.add if number > 0 else groups.discard
        change(abs(number))
    end_groups(groups, _GRACE_SECONDS)


def end_groups(groups: set[int], grace: float, poll: Callable[[], object] = lambda: None) -> None:
    """End process groups: SIGTERM, then after `grace` seconds SIGKILL. `poll` reaps zombies."""
    deadline = time.monotonic() + grace
    left = _signal_all(groups, signal.SIGTERM)
    while left and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        poll()
        left = _signal_all(left, 0)
    _signal_all(left, signal.SIGKILL)


def _signal_all(groups: set[int], number: int) -> set[int]:
    """Send a signal to process groups; return those that exist, if only as a zombie."""
    reached = set()
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
            reached.add(group)
    return reached


if __name__ == "__main__":
    reap(sys.stdin)
