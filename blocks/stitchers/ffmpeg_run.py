"""A run of the ffmpeg program, with its progress told."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path

from prefect_renderfarm.blocks.errors import AssemblyError
from prefect_renderfarm.blocks.processes.process_group import run_program
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.blocks.stitchers.progress import watcher

GLOBAL_ARGUMENTS = (
    *("-nostdin", "-hide_banner", "-loglevel", "warning"),
    *("-nostats", "-progress", "pipe:1", "-stats_period", "0.5"),
)
_PASSED = ("PATH", "LD_LIBRARY_PATH")
_PROGRESS = re.compile(r"[a-z_0-9]+=")


def run_ffmpeg(command: Sequence[str], folder: Path, film: Path) -> None:
    """Run ffmpeg in `folder`, and tell its progress.

    Raises:
        AssemblyError: It failed; with its last words.
    """
    log, tell = run_log(), watcher()
    done = {"frame": 0, "total_size": 0}

    def on_line(line: str) -> None:
        name, _, value = line.partition("=")
        if name in done and value.strip().isdigit():
            done[name] = int(value)
        elif name == "progress":
            tell(done["frame"], done["total_size"])
        elif not _PROGRESS.match(line):
            log.debug("ffmpeg | %s", line)

    code, _, stderr = run_program(
        command,
        name="ffmpeg",
        cwd=folder,
        environment={key: os.environ[key] for key in _PASSED if key in os.environ},
        on_line=on_line,
        stop=threading.Event(),
        timeout=None,
        grace=5.0,
    )
    if code != 0:
        words = " / ".join(stderr.splitlines()[-4:])
        raise AssemblyError(f"ffmpeg could not assemble {film.name!r} (exit code {code}): {words}")
