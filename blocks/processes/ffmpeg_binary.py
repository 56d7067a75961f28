"""Which ffmpeg is used: for assembly the carried one, in commands the first one on PATH."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from pathlib import Path

import imageio_ffmpeg

from prefect_renderfarm.blocks.errors import SetupError
from prefect_renderfarm.blocks.processes.command_line import find_program

_links: dict[Path, tempfile.TemporaryDirectory[str]] = {}
_links_lock = threading.Lock()


def find_ffmpeg(named: Path | None = None) -> Path:
    """Return the absolute path of an ffmpeg program.

    Args:
        named: A program chosen by the user. None means the one that the imageio-ffmpeg package
            carries, whose release this package is tested with, whatever is on PATH.

    Raises:
        SetupError: The program does not exist or is not executable.
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
    """Return a PATH value for commands, on which `ffmpeg` is the named program.

    Args:
        search_path: The PATH value to start from.
        named: A program chosen by the user. None means the first on PATH, else the carried one.
    """
    if named is None and find_program("ffmpeg", search_path):
        return search_path
    program = find_ffmpeg(named)
    folder = program.parent if program.name == "ffmpeg" else _folder_with_link(program)
    return os.pathsep.join(filter(None, [str(folder), search_path]))


def _folder_with_link(program: Path) -> Path:
    """Make a folder, for as long as this process lasts, with a link `ffmpeg` to `program`."""
    with _links_lock:
        if program not in _links:
            folder = tempfile.TemporaryDirectory(prefix="renderfarm-ffmpeg-")
            (Path(folder.name) / "ffmpeg").symlink_to(program)
            _links[program] = folder
        return Path(_links[program].name)
