"""What is asked of the chunks of a job together: files, commands, ranges."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from prefect_renderfarm.blocks.errors import JobError
from prefect_renderfarm.blocks.runtime.text import excerpt
from prefect_renderfarm.flows.jobs.fields import MOST_NUMBER, Chunk, require_command, require_plain

# The folder in the job folder where it is written what is done.
RECORDS = ".renderfarm"
# File systems take names of 255 bytes (NAME_MAX); `atomic_file` adds up to 39 while it writes one.
_MOST_NAME_BYTES = 200
# Amazon S3 takes keys of 1,024 bytes, 65 of which are the job's folder; systems take paths of 4,096
# (PATH_MAX) with the job folder's.
_MOST_PATH_BYTES = 900
_JOINERS = str.maketrans("", "", "\u200c\u200d")


class _Claim(NamedTuple):
    owner: str
    field: str
    file: str

    def __str__(self) -> str:
        return f"{self.owner} has {self.field} {excerpt(self.file)}"


class JobFiles:
    """The files of one job, each of which is another one on any file system.

    Some file systems take capital and small letters, or composed and decomposed ones, for the same,
    or leave out dots and spaces at the end of a name (Windows' and macOS').
    """

    def __init__(self) -> None:
        self._files: dict[str, _Claim] = {}
        self._folders: dict[str, _Claim] = {}

    def add(self, owner: str, file: str, field: str = "outputFile") -> None:
        """Take note of a file.

        Args:
            owner: Whose it is, in errors, such as `chunk 3`.
            file: Its path, as the job spec names it.
            field: The field that names it.

        Raises:
            JobError: It is not in the job folder, cannot be written everywhere, or is in the way of
                another one.
        """
        claim = _Claim(owner, field, file)
        key = _key(claim)
        if (other := self._files.get(key)) is not None:
            raise JobError(_same(claim, other))
        if (inner := self._folders.get(key)) is not None:
            raise JobError(_in_the_way(claim, inner))
        self._files[key] = claim
        folder = key.rpartition("/")[0]
        while folder and folder not in self._folders:
            if (other := self._files.get(folder)) is not None:
                raise JobError(_in_the_way(other, claim))
            self._folders[folder] = claim
            folder = folder.rpartition("/")[0]


def _key(claim: _Claim) -> str:
    """Return what is the same for all paths that some file system takes for the same.

    Raises:
        JobError: The path leads out of the job folder, or cannot be written everywhere.
    """
    file = claim.file
    parts = _parts(file)
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
    if len(file) * 4 > _MOST_NAME_BYTES:  # else it cannot be too long
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
        key = unicodedata.normalize("NFC", key.translate(_JOINERS).casefold())
    if "./" in key or " /" in key or key.endswith((".", " ")):
        key = "/".join(part.rstrip(". ") or part for part in key.split("/"))
    if key == RECORDS or key.startswith(f"{RECORDS}/"):
        raise JobError(f"{claim}: {RECORDS} is where the job's records are, use another folder")
    return key


def _parts(file: str) -> list[str]:
    return [part for part in file.split("/") if part not in ("", ".")]


def _same(claim: _Claim, other: _Claim) -> str:
    if _parts(claim.file) != _parts(other.file):
        return f"{claim}, and {other}, which some file systems take for the same: give each its own"
    if claim.field == other.field:
        return (
            f"{claim.owner} and {other.owner} write the same {claim.field} {excerpt(claim.file)}: "
            "give each its own"
        )
    return f"{claim}, and {other}, which is the same file: give each its own"


def _in_the_way(claim: _Claim, inner: _Claim) -> str:
    return (
        f"{claim}, which is also a folder, because {inner}: a file cannot be in another one, name "
        "another file"
    )


def check_each(chunks: Sequence[Chunk], audio_track: str | None) -> None:
    """Check every chunk for itself, and that none is in the way of another.

    Args:
        chunks: The chunks, in order of id.
        audio_track: The job's file of sound.

    Raises:
        JobError: Naming the first chunk that is wrong.
    """
    files = JobFiles()
    before: Chunk | None = None
    for chunk in chunks:
        name = f"chunk {chunk.id}"
        if before is not None and chunk.id == before.id:
            raise JobError(f"{name} is there twice: give every chunk an id of its own")
        before = chunk
        if chunk.id < 0:
            raise JobError(f"{name} has a negative id: ids count from 0")
        if chunk.frame_count < 1:
            raise JobError(f"{name} has frameCount {chunk.frame_count}: it must be 1 or more")
        if not chunk.command.strip():
            raise JobError(f"{name} has an empty command: give the command that renders it")
        try:
            require_command(chunk.command)
        except JobError as error:
            raise JobError(f"{name}: {error}") from None
        files.add(name, chunk.output_file)
    if audio_track is not None:
        files.add("the job", audio_track, "audioTrack")


def check_ranges(chunks: Sequence[Chunk], total_frames: int) -> None:
    """Check that the ranges of chunks follow each other, and make up the film.

    Raises:
        JobError: Naming the chunk where they do not.
    """
    expected = chunks[0].start_frame
    for before, chunk in zip((None, *chunks), chunks, strict=False):
        if chunk.start_frame == expected:
            expected = chunk.end_frame
            continue
        what = "leaves a gap after" if chunk.start_frame > expected else "overlaps"
        raise JobError(
            f"chunk {chunk.id} {what} chunk {before.id if before else chunk.id}: it starts at "
            f"frame {chunk.start_frame}, not {expected}; make the ranges follow each other by id"
        )
    frames = expected - chunks[0].start_frame
    if frames != total_frames:
        raise JobError(
            f"the chunks have {frames} frames, but totalFrames is {total_frames}: the last, chunk "
            f"{chunks[-1].id}, must end at frame {chunks[0].start_frame + total_frames}"
        )
    if expected > MOST_NUMBER:
        raise JobError(f"chunk {chunks[-1].id} ends at frame {expected}: {MOST_NUMBER} is the last")
