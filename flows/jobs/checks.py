"""Which texts, commands and file names a job spec may have: it may come from anybody."""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from prefect_renderfarm.blocks.errors import JobError
from prefect_renderfarm.blocks.processes.programs import split_command
from prefect_renderfarm.blocks.runtime.text import excerpt

# The folder of records in the job folder.
RECORDS = ".renderfarm"
# ZERO WIDTH NON-JOINER and JOINER: Persian, Hindi and other scripts need them.
_JOINERS = "\u200c\u200d"
_WITHOUT_JOINERS = str.maketrans("", "", _JOINERS)
# Control characters, surrogates, line and paragraph ends, and invisible characters that change how
# others look (Unicode Standard, table 4-4).
_INVISIBLE = frozenset({"Cc", "Cs", "Zl", "Zp", "Cf"})
# File systems take names of 255 bytes (NAME_MAX); a temporary file's name is up to 39 bytes longer.
_MOST_NAME_BYTES = 200
# Amazon S3 takes keys of 1,024 bytes, 65 of which are the job's folder; systems take paths of 4,096
# (PATH_MAX) with the job folder's.
_MOST_PATH_BYTES = 900


def require_plain(text: str) -> None:
    """Refuse a text that a log or a list of files would not show as it is. Raises: ValueError."""
    if text.isascii() and text.isprintable():
        return
    for character in text:
        if unicodedata.category(character) in _INVISIBLE and character not in _JOINERS:
            name = unicodedata.name(character, "a control character")
            raise ValueError(f"it has {name}, U+{ord(character):04X}: remove it")


def require_command(command: str, name: str) -> None:
    """Refuse a command, called so in the error, that no machine can run. Raises: JobError."""
    try:
        split_command(command)
        command.encode()
    except JobError as error:
        raise JobError(f"{name}: {error}") from None
    except UnicodeEncodeError:  # a lone surrogate
        raise JobError(
            f"{name}: {excerpt(command)} has half a character, which is no text: remove it"
        ) from None


class _File(NamedTuple):
    owner: str
    field: str
    name: str

    def __str__(self) -> str:
        return f"{self.owner} has {self.field} {excerpt(self.name)}"

    @property
    def parts(self) -> list[str]:
        return [part for part in self.name.split("/") if part not in ("", ".")]


def require_apart(named: Iterable[tuple[str, str, str]]) -> None:
    """Refuse a file that is invalid, or that some file system takes for another or its folder.

    Each is given by who has it, in which field, and its name. Raises: JobError.
    """
    files = [_File(*each) for each in named]
    # A file whose name is a folder's, too, is right before the first file in that folder.
    keys = sorted((_key(file).replace("/", "\0"), place) for place, file in enumerate(files))
    for (key, place), (next_key, next_place) in itertools.pairwise(keys):
        file, after = files[place], files[next_place]
        if next_key.startswith(f"{key}\0"):
            raise JobError(
                f"{file}, which is also a folder, because {after}: a file cannot be in another "
                "one, name another file"
            )
        if next_key == key:
            same = f"{after}, and {file}, which some file systems take for the same"
            if (file.field, file.parts) == (after.field, after.parts):
                what = f"{after.field} {excerpt(after.name)}"
                same = f"{after.owner} and {file.owner} write the same {what}"
            raise JobError(f"{same}: give each its own")


def _key(file: _File) -> str:
    """Return the form of a path that is equal for paths that some file system takes for the same.

    Some file systems ignore case, or the difference between composed and decomposed letters, or
    dots and spaces at the end of a name (Windows' and macOS').
    """
    name, parts = file.name, file.parts
    if not parts or "\0" in name:
        raise JobError(f"{file}: name a file in the job folder")
    if name.startswith("/") or ".." in parts:
        raise JobError(
            f"{file}, which is outside the job folder: use a path relative to the job folder, "
            "without '..'"
        )
    try:
        require_plain(name)
    except ValueError as error:
        raise JobError(f"{file}: {error}") from None
    if len(name) * 4 > _MOST_NAME_BYTES:  # shorter ones cannot be too long
        if len(name.encode()) > _MOST_PATH_BYTES:
            raise JobError(f"{file}: the longest path has {_MOST_PATH_BYTES} bytes, shorten it")
        if max(len(part.encode()) for part in parts) > _MOST_NAME_BYTES:
            raise JobError(
                f"{file}: the longest name of a file or folder has {_MOST_NAME_BYTES} bytes, "
                "shorten it"
            )
    key = "/".join(parts)
    key = unicodedata.normalize("NFC", key.translate(_WITHOUT_JOINERS).casefold())
    if "./" in key or " /" in key or key.endswith((".", " ")):
        key = "/".join(part.rstrip(". ") or part for part in key.split("/"))
    if key == RECORDS or key.startswith(f"{RECORDS}/"):
        raise JobError(f"{file}: {RECORDS} is where the job's records are, use another folder")
    return key


def relative_path_message(parameter: str, value: str) -> str:
    """Say why a relative path is refused in a deployed run."""
    return (
        f"{parameter} {excerpt(value)} is a relative path: in a deployed run it would mean the "
        "worker's folder, not yours; give an absolute path"
    )


def require_inside(folder: Path, owner: str, name: str) -> None:
    """Refuse a path, relative to the job folder, that a symbolic link leads out of it.

    The `owner` of the path is named in the error. Raises: JobError.
    """
    path = str(folder)
    for part in name.split("/"):
        path = f"{path}/{part}"
        if part in ("", "..") or os.path.islink(path):  # noqa: PTH114 -- asked for each chunk, thrice
            break
    else:
        return
    root = os.path.realpath(folder).rstrip("/")
    if not os.path.realpath(folder / name).startswith(f"{root}/"):
        raise JobError(
            f"{owner} {excerpt(name)}, which a symbolic link leads out of the job folder "
            f"{excerpt(str(folder), 200)}: remove the link"
        )
