"""Programs of commands: their words, which programs are allowed, and which one `ffmpeg` is."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath

import imageio_ffmpeg

from prefect_renderfarm.blocks.errors import CommandNotRunnable, JobError, SetupError
from prefect_renderfarm.blocks.runtime.text import excerpt

# The kernel takes no longer word: 32 pages of 4,096 bytes with the NUL at the end (Linux,
# MAX_ARG_STRLEN, see execve(2)). A whole command that is no longer has no such word either.
MAX_COMMAND_BYTES = 131_071
# The variable of the workers in `deployments/` that lists allowed programs, separated by commas.
PROGRAMS_VARIABLE = "RENDERFARM_PROGRAMS"
_SHOWN_PROGRAMS = 8

_LINE_END = re.compile(r"(\\[^\n])|\\\n")
# A word as it is written. `shlex` gets only the quoted ones: it takes 0.2 ms for a whole command,
# which is 20 s for a job of 100,000 chunks.
_WORD = re.compile(
    r"""(?:[^ \t\r\n'"\\]++ | '[^']*+' | "(?:[^"\\]++|\\.)*+" | \\.)+""", re.VERBOSE | re.DOTALL
)

_links_lock = threading.Lock()


def split_command(command: str) -> list[str]:
    """Split a command line into words as `shlex` does in its POSIX mode, or raise JobError.

    No shell ever sees it. A backslash at the end of a line joins it with the next one.
    """
    name, size = f"command {excerpt(command)}", len(command.encode(errors="replace"))
    if size > MAX_COMMAND_BYTES:
        raise JobError(
            f"{name} has {size:,} bytes, and {MAX_COMMAND_BYTES:,} are the most that can be run: "
            "put arguments into a file or a script"
        )
    if "\0" in command:
        raise JobError(f"{name} has a NUL character: remove it")
    joined = _LINE_END.sub(lambda found: found[1] or "", command)
    try:
        if _WORD.sub("", joined).strip():  # the quoting is not closed
            shlex.split(joined)
        written = _WORD.findall(joined)
        words = [shlex.split(word)[0] if re.search(r"['\"\\]", word) else word for word in written]
    except ValueError as error:
        raise JobError(f"{name} cannot be split: {error}") from None
    if not words or not words[0]:
        raise JobError(f"{name} is empty: begin it with a program")
    return words


def listed_programs(text: str) -> list[str]:
    """Return the programs of a list such as `ffmpeg,/opt/blender/blender`. Raises: ValueError."""
    return check_programs([entry.strip() for entry in text.split(",")] if text.strip() else [])


def check_programs(programs: list[str]) -> list[str]:
    """Return allowed programs if each is a plain name or an absolute path. Raises: ValueError."""
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
    return programs


def require_allowed(program: str, programs: Sequence[str], prefix: str = "") -> None:
    """Raise CommandNotRunnable if a program is not listed, word for word; empty allows all."""
    if not programs or program in programs:
        return
    shown = ", ".join(excerpt(listed) for listed in programs[:_SHOWN_PROGRAMS])
    more = len(programs) - _SHOWN_PROGRAMS
    raise CommandNotRunnable(
        f"{prefix}program {excerpt(program)} is none of those that are allowed here "
        f"({shown}{f' and {more} more' if more > 0 else ''}), as they are written: begin the "
        "command with one of them, or have it allowed (the adapter's field 'programs', or "
        f"{PROGRAMS_VARIABLE} of the worker)"
    )


def find_program(program: str, search_path: str) -> str | None:
    """Return the path by which to start a program; None if no absolute folder of PATH has it.

    Others would be looked up in the job folder, where a job may have put such a program.
    """
    if "/" in program:
        return program
    folders = [folder for folder in search_path.split(os.pathsep) if folder.startswith("/")]
    return shutil.which(program, path=os.pathsep.join(folders))


def find_ffmpeg(named: Path | None = None) -> Path:
    """Return the absolute path of an ffmpeg program: the named one, or imageio-ffmpeg's.

    That is of the release that this package is tested with. Raises SetupError if it cannot be run.
    """
    try:
        found = shutil.which(named or imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:  # no wheel of imageio-ffmpeg for this machine, and no other program
        found = None
    if found is None:
        raise SetupError(
            f"ffmpeg {str(named or '')!r} does not exist or is not executable: name another in the "
            "block's 'ffmpeg' field, or leave the field empty"
        )
    return Path(found).absolute()


def is_carried(program: Path) -> bool:
    """Return whether an ffmpeg program is the one in the imageio-ffmpeg package."""
    return program.is_relative_to(Path(imageio_ffmpeg.__file__).absolute().parent)


def path_with_ffmpeg(search_path: str, named: Path | None = None) -> str:
    """Return a PATH for commands: `ffmpeg` is the named one, else the first, else the carried."""
    if named is None and find_program("ffmpeg", search_path):
        return search_path
    program = find_ffmpeg(named)
    with _links_lock:
        folder = program.parent if program.name == "ffmpeg" else _folder_with_link(program).name
    return os.pathsep.join(filter(None, [str(folder), search_path]))


@cache
def _folder_with_link(program: Path) -> tempfile.TemporaryDirectory[str]:
    """Make a folder, for as long as this process lasts, with a link `ffmpeg` to `program`."""
    folder = tempfile.TemporaryDirectory(prefix="renderfarm-ffmpeg-")
    (Path(folder.name) / "ffmpeg").symlink_to(program)
    return folder
