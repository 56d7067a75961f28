"""What is asked of the chunks of a job together: files, commands, ranges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefect_renderfarm.blocks import JobError
from prefect_renderfarm.flows.job_fields import MOST_NUMBER, require_command
from prefect_renderfarm.flows.job_files import JobFiles

if TYPE_CHECKING:
    from prefect_renderfarm.flows.job import Chunk


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
