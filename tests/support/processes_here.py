"""Programs to run on this machine in tests, and how to see that they have ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil


def python(code: str) -> str:
    """Return the command line that runs Python code."""
    return f"'{sys.executable}' -c \"{code}\""


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something is so; fail if it never is."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Return whether a process has ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def family(folder: Path) -> str:
    """Return a command that starts a child that ignores SIGTERM, and writes down both pids."""
    code = (
        "import os, signal, subprocess, sys, time\n"
        f"os.chdir({str(folder)!r})\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal, time\\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\\ntime.sleep(600)'])\n"
        "time.sleep(0.3)\n"
        "open('pids.part', 'w').write(f'{os.getpid()} {child.pid}')\n"
        "os.rename('pids.part', 'pids')\n"
        "time.sleep(600)\n"
    )
    (folder / "family.py").write_text(code)
    return f"'{sys.executable}' '{folder / 'family.py'}'"


def assert_all_gone(folder: Path) -> None:
    """Check that no process of `family` is left."""
    for pid in map(int, (folder / "pids").read_text().split()):
        wait_for(lambda pid=pid: gone(pid), 10)  # type: ignore[misc]
