"""Command lines: how they are split into words, and which programs they may start."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import PurePosixPath

from prefect_renderfarm.blocks.errors import CommandNotRunnable, JobError
from prefect_renderfarm.blocks.runtime.text import excerpt

# The kernel takes no longer word: 32 pages of 4,096 bytes with the NUL at the end (Linux,
# MAX_ARG_STRLEN, see execve(2)). A whole command that is no longer has no such word either.
MAX_COMMAND_BYTES = 131_071
# The variable of the workers in `deployments/` that lists allowed programs, separated by commas.
PROGRAMS_VARIABLE = "RENDERFARM_PROGRAMS"
_SHOWN_PROGRAMS = 8

_QUOTING = re.compile(r"['\"\\]")
_LINE_END = re.compile(r"(\\[^\n])|\\\n")
# A word as it is written. `shlex` gets only the quoted ones: it takes 0.2 ms for a whole command,
# which is 20 s for a job of 100,000 chunks.
_WORD = re.compile(
    r"""(?:[^ \t\r\n'"\\]++ | '[^']*+' | "(?:[^"\\]++|\\.)*+" | \\.)+""", re.VERBOSE | re.DOTALL
)


def split_command(command: str) -> list[str]:
    r"""Split a command line into words with `shlex`, in its POSIX mode.

    Variables, patterns, pipes and comments are plain text: no shell ever sees the command. A
    backslash at the end of a line joins it with the next one.

    Raises:
        JobError: The quoting is not closed, there is no program, there is a NUL character, or the
            command is longer than an operating system takes.
    """
    size = len(command.encode(errors="replace"))
    if size > MAX_COMMAND_BYTES:
        raise JobError(
            f"command {excerpt(command)} has {size:,} bytes, and {MAX_COMMAND_BYTES:,} are "
            "the most that can be run: put arguments into a file or a script"
        )
    if "\0" in command:
        raise JobError(f"command {excerpt(command)} has a NUL character: remove it")
    joined = _LINE_END.sub(lambda found: found[1] or "", command)
    try:
        if _WORD.sub("", joined).strip():  # the quoting is not closed
            shlex.split(joined)
        written = _WORD.findall(joined)
        words = [shlex.split(word)[0] if _QUOTING.search(word) else word for word in written]
    except ValueError as error:
        raise JobError(f"command {excerpt(command)} cannot be split: {error}") from None
    if not words or not words[0]:
        raise JobError(f"command {excerpt(command)} is empty: begin it with a program")
    return words


def check_programs(programs: Sequence[str]) -> None:
    """Raise ValueError if an allowed program is neither a plain name nor an absolute path."""
    for program in programs:
        plain = "/" not in program and program not in ("", ".", "..")
        path = PurePosixPath(program)
        # Compared as text: a path that could be written in another way would not be found.
        absolute = path.is_absolute() and str(path) == program and ".." not in path.parts
        if not (plain or absolute) or program != program.strip() or not program.isprintable():
            raise ValueError(
                f"allowed program {excerpt(program)}: give a name, such as 'ffmpeg', or an "
                "absolute path, such as '/usr/bin/ffmpeg'"
            )


def listed_programs(text: str) -> list[str]:
    """Return the programs of a list such as `ffmpeg,/opt/blender/blender`. Raises: ValueError."""
    programs = [entry.strip() for entry in text.split(",")] if text.strip() else []
    check_programs(programs)
    return programs


def require_allowed(program: str, programs: Sequence[str]) -> None:
    """Raise CommandNotRunnable if a program is not listed, word for word; empty allows all."""
    if not programs or program in programs:
        return
    shown = ", ".join(excerpt(listed) for listed in programs[:_SHOWN_PROGRAMS])
    more = len(programs) - _SHOWN_PROGRAMS
    raise CommandNotRunnable(
        f"program {excerpt(program)} is none of those that are allowed here "
        f"({shown}{f' and {more} more' if more > 0 else ''}), as they are written: begin the "
        "command with one of them, or have it allowed (the adapter's field 'programs', or "
        f"{PROGRAMS_VARIABLE} of the worker)"
    )


def find_program(program: str, search_path: str) -> str | None:
    """Return the path by which to start a program; None if no folder has it.

    Only absolute folders of PATH are searched: an empty or relative one would be looked up in the
    job folder, where a job may have put a program of the same name.
    """
    if "/" in program:
        return program
    folders = [folder for folder in search_path.split(os.pathsep) if folder.startswith("/")]
    return shutil.which(program, path=os.pathsep.join(folders))
