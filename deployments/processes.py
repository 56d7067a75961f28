"""Processes that outlive the command that started them, recorded in a file.

A process is known by its id and its start time: a stale record never ends another process that has
the same id now.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

_KILL_AFTER_SECONDS = 15.0


class ProcessFile:
    """A file that records running processes: `{name: [pid, start time]}`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self, name: str) -> psutil.Process | None:
        """Return the process that was started under this name, if it still runs."""
        pid, started = self._read().get(name, (-1, 0.0))
        with suppress(psutil.NoSuchProcess, ValueError):
            process = psutil.Process(pid)
            if process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        cwd: Path,
        log: Path,
        environment: Mapping[str, str],
    ) -> None:
        """Start a process in a session of its own; its output is appended to a log file."""
        cwd.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                arguments,
                cwd=cwd,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started = psutil.Process(process.pid).create_time()
        self._path.write_text(json.dumps(self._read() | {name: (process.pid, started)}, indent=1))

    def stop_all(self) -> list[str]:
        """End all processes and their children; return the names of those that were running.

        The processes get SIGTERM, the last that was started first, and SIGKILL after 15 s.
        """
        found = {name: self.find(name) for name in reversed(self._read())}
        running = {name: process for name, process in found.items() if process is not None}
        roots = list(running.values())
        trees = [*roots, *_children(roots)]
        for root in roots:
            with suppress(psutil.NoSuchProcess):
                root.terminate()
        psutil.wait_procs(roots, timeout=_KILL_AFTER_SECONDS)
        trees += _children(roots)
        for process in trees:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(trees, timeout=_KILL_AFTER_SECONDS)
        self._path.unlink(missing_ok=True)
        return list(running)

    def _read(self) -> dict[str, tuple[int, float]]:
        try:
            data = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        return {name: (pid, started) for name, (pid, started) in data.items()}


def _children(roots: Sequence[psutil.Process]) -> list[psutil.Process]:
    found = []
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            found += root.children(recursive=True)
    return found
