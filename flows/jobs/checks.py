"""Checks of all chunks of a job together: ids, commands, output files, frame ranges."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from prefect_renderfarm.blocks.errors import JobError
from prefect_renderfarm.blocks.runtime.text import excerpt
from prefect_renderfarm.flows.jobs.fields import (
    JOINERS,
    MOST_NUMBER,
    Chunk,
    require_command,
    require_plain,
)

# The folder of records in the job folder.
RECORDS = ".renderfarm"
# File systems take names of 255 bytes (NAME_MAX); a temporary file's name is up to 39 bytes longer.
_MOST_NAME_BYTES = 200
# Amazon S3 takes keys of 1,024 bytes, 65 of which are the job's folder; systems take paths of 4,096
# (PATH_MAX) with the job folder's.
_MOST_PATH_BYTES = 900
_WITHOUT_JOINERS = str.maketrans("", "", JOINERS)


class _Claim(NamedTuple):
    owner: str
    field: str
    file: str

    def __str__(self) -> str:
        return f"{self.owner} has {self.field} {excerpt(self.file)}"

    @property
    def parts(self) -> list[str]:
        return [part for part in self.file.split("/") if part not in ("", ".")]


class _JobFiles:
    """The files of one job, each of which is a different file on any file system."""

    def __init__(self) -> None:
        self._files: dict[str, _Claim] = {}
        self._folders: dict[str, _Claim] = {}

    def add(self, claim: _Claim) -> None:
        """Add a file. Raises JobError if it is invalid, or conflicts with an earlier one."""
        key = _key(claim)
        if (other := self._files.get(key)) is not None:
            raise JobError(f"{_same(claim, other)}: give each its own")
        if (inner := self._folders.get(key)) is not None:
            raise _also_a_folder(claim, inner)
        self._files[key] = claim
        folder = key.rpartition("/")[0]
        while folder and folder not in self._folders:
            if (other := self._files.get(folder)) is not None:
                raise _also_a_folder(other, claim)
            self._folders[folder] = claim
            folder = folder.rpartition("/")[0]


def _key(claim: _Claim) -> str:
    """Return the form of a path that is equal for paths that some file system takes for the same.

    Some file systems ignore case, or the difference between composed and decomposed letters, or
    dots and spaces at the end of a name (Windows' and macOS').
    """
    file, parts = claim.file, claim.parts
    if not parts or "\0" in file:
        raise JobError(f"{claim}: name a file in the job folder")
    if file.startswith("/") or ".." in parts:
        raise JobError(
            f"{claim}, which is outside the job folder: use a path relative to the job folder, "
            "without '..'"
        )
    try:
        require_plain(file)
    except ValueError as error:
        raise JobError(f"{claim}: {error}") from None
    if len(file) * 4 > _MOST_NAME_BYTES:  # shorter ones cannot be too long
        if len(file.encode()) > _MOST_PATH_BYTES:
            raise JobError(f"{claim}: the longest path has {_MOST_PATH_BYTES} bytes, shorten it")
        if max(len(part.encode()) for part in parts) > _MOST_NAME_BYTES:
            raise JobError(
                f"{claim}: the longest name of a file or folder has {_MOST_NAME_BYTES} bytes, "
                "shorten it"
            )
    key = "/".join(parts)
    if key.isascii():
        key = key.lower()
    else:
        key = unicodedata.normalize("NFC", key.translate(_WITHOUT_JOINERS).casefold())
    if "./" in key or " /" in key or key.endswith((".", " ")):
        key = "/".join(part.rstrip(". ") or part for part in key.split("/"))
    if key == RECORDS or key.startswith(f"{RECORDS}/"):
        raise JobError(f"{claim}: {RECORDS} is where the job's records are, use another folder")
    return key


def _same(claim: _Claim, other: _Claim) -> str:
    if claim.parts != other.parts:
        return f"{claim}, and {other}, which some file systems take for the same"
    if claim.field == other.field:
        file = excerpt(claim.file)
        return f"{claim.owner} and {other.owner} write the same {claim.field} {file}"
    return f"{claim}, and {other}, which is the same file"


def _also_a_folder(claim: _Claim, inner: _Claim) -> JobError:
    return JobError(
        f"{claim}, which is also a folder, because {inner}: a file cannot be in another one, name "
        "another file"
    )


def check_each(chunks: Sequence[Chunk], audio_track: str | None) -> None:
    """Check every chunk, and that no file of the job conflicts with another.

    The chunks are in order of id. The JobError names the first chunk that is wrong.
    """
    files = _JobFiles()
    previous: int | None = None
    for chunk in chunks:
        name = f"chunk {chunk.id}"
        if chunk.id == previous:
            raise JobError(f"{name} is there twice: give every chunk an id of its own")
        previous = chunk.id
        if chunk.id < 0:
            raise JobError(f"{name} has a negative id: ids count from 0")
        if chunk.frame_count < 1:
            raise JobError(f"{name} has frameCount {chunk.frame_count}: it must be 1 or more")
        if not chunk.command.strip():
            raise JobError(f"{name} has an empty command: give the command that renders it")
        require_command(chunk.command, name)
        files.add(_Claim(name, "outputFile", chunk.output_file))
    if audio_track is not None:
        files.add(_Claim("the job", "audioTrack", audio_track))


def check_ranges(chunks: Sequence[Chunk], total_frames: int) -> None:
    """Check that frame ranges follow each other and make up the film. Raises: JobError."""
    first = expected = chunks[0].start_frame
    previous = chunks[0]
    for chunk in chunks:
        if chunk.start_frame != expected:
            what = "leaves a gap after" if chunk.start_frame > expected else "overlaps"
            raise JobError(
                f"chunk {chunk.id} {what} chunk {previous.id}: it starts at frame "
                f"{chunk.start_frame}, not {expected}; make the ranges follow each other by id"
            )
        expected = chunk.end_frame
        previous = chunk
    if expected - first != total_frames:
        raise JobError(
            f"the chunks have {expected - first} frames, but totalFrames is {total_frames}: the "
            f"last, chunk {previous.id}, must end at frame {first + total_frames}"
        )
    if expected > MOST_NUMBER:
        raise JobError(f"chunk {previous.id} ends at frame {expected}: {MOST_NUMBER} is the last")
