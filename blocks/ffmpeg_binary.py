"""Which ffmpeg is used: a named one, else the one on PATH, else the one inside imageio-ffmpeg."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from pathlib import Path

import imageio_ffmpeg

from prefect_renderfarm.blocks.errors import SetupError


def find_ffmpeg(named: Path | None = None) -> Path:
    """Return the absolute path of the ffmpeg program to use.

    Args:
        named: A program chosen by the user. None: the first `ffmpeg` on PATH, and on a machine
            that has none, the program that the imageio-ffmpeg package carries.

    Raises:
        SetupError: The named program does not exist or is not executable.
    """
    if named is not None:
        found = shutil.which(named)
        if found is None:
            raise SetupError(
                f"ffmpeg {str(named)!r} does not exist or is not executable: name another in the "
                "block's 'ffmpeg' field, or leave the field empty"
            )
        return Path(found).absolute()
    on_path = shutil.which("ffmpeg")
    return Path(on_path or imageio_ffmpeg.get_ffmpeg_exe()).absolute()


def path_with_ffmpeg(search_path: str, named: Path | None = None) -> str:
    """Return a PATH value on which `ffmpeg` is the program that `find_ffmpeg` chooses.

    Args:
        search_path: The PATH value to start from.
        named: As for `find_ffmpeg`.
    """
    if named is None and shutil.which("ffmpeg", path=search_path):
        return search_path
    program = find_ffmpeg(named)
    folder = program.parent if program.name == "ffmpeg" else Path(_folder_with_link(program).name)
    return os.pathsep.join(filter(None, [str(folder), search_path]))


_links: dict[Path, tempfile.TemporaryDirectory[str]] = {}
_links_lock = threading.Lock()


def _folder_with_link(program: Path) -> tempfile.TemporaryDirectory[str]:
    """Make a folder, for as long as this process lasts, with a link `ffmpeg` to `program`."""
    with _links_lock:
        if program not in _links:
            folder = tempfile.TemporaryDirectory(prefix="renderfarm-ffmpeg-")
            (Path(folder.name) / "ffmpeg").symlink_to(program)
            _links[program] = folder
        return _links[program]
