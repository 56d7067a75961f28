"""Which programs the commands of a job may start: an allow-list, compared word for word."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import PurePosixPath

from prefect_renderfarm.blocks.errors import CommandNotRunnable
from prefect_renderfarm.blocks.processes.command_line import split_command
from prefect_renderfarm.blocks.runtime.text import excerpt

# The variable of the workers in `deployments/` that holds the list, with commas between.
PROGRAMS_VARIABLE = "RENDERFARM_PROGRAMS"
_SHOWN = 8


def check_programs(programs: Sequence[str]) -> None:
    """Refuse a list that would not say which programs are meant.

    Raises:
        ValueError: An entry is neither a plain name nor an absolute path.
    """
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
    """Return the programs of a list such as `ffmpeg,/opt/blender/blender`; empty: any program.

    Raises:
        ValueError: An entry is neither a plain name nor an absolute path.
    """
    if not text.strip():
        return []
    programs = [entry.strip() for entry in text.split(",")]
    check_programs(programs)
    return programs


def require_allowed(command: str, programs: Sequence[str]) -> None:
    """Refuse a command whose first word is none of the allowed programs; empty: all are.

    Raises:
        CommandNotRunnable: It is none of them.
        JobError: The command cannot be split into words.
    """
    if programs:
        allowed_word(split_command(command)[0], programs)


def allowed_word(word: str, programs: Sequence[str]) -> None:
    """Refuse a program that is none of those that are allowed. Raises: CommandNotRunnable."""
    if word in programs:
        return
    shown = ", ".join(excerpt(program) for program in programs[:_SHOWN])
    more = f" and {len(programs) - _SHOWN} more" if len(programs) > _SHOWN else ""
    raise CommandNotRunnable(
        f"program {excerpt(word)} is none of those that are allowed here ({shown}{more}), as they "
        "are written: begin the command with one of them, or have it allowed (the adapter's field "
        f"'programs', or {PROGRAMS_VARIABLE} of the worker)"
    )


def find_program(word: str, search_path: str) -> str | None:
    """Return the path by which to start an allowed program; None: no folder has it.

    Only absolute folders of `search_path` are searched: an empty or relative one would be looked up
    in the job folder, where a job may have put a program of the same name.

    Args:
        word: A name, or an absolute path.
        search_path: A value of PATH.
    """
    if "/" in word:
        return word
    folders = [folder for folder in search_path.split(os.pathsep) if os.path.isabs(folder)]  # noqa: PTH117
    return shutil.which(word, path=os.pathsep.join(folders) or os.devnull)
