"""Make a job from a command template."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from prefect_renderfarm.blocks.errors import JobError
from prefect_renderfarm.blocks.media.frame_grid import parse_fps
from prefect_renderfarm.flows.jobs.spec import RenderJob


def plan_job(
    total_frames: int,
    fps: float | str | Fraction,
    *,
    command_template: str,
    chunk_frames: int | None = None,
    chunks: int | None = None,
    start_frame: int = 0,
    output_template: str = "chunks/{id:05d}.mp4",
    id: str | None = None,  # noqa: A002 -- the job's id
    width: int | None = None,
    height: int | None = None,
    merge_command: str | None = None,
) -> RenderJob:
    """Cut a film into chunks and write the command of each.

    Args:
        total_frames: Number of frames of the film.
        fps: Frames a second, a number or a fraction such as `"30000/1001"`.
        command_template: The command of a chunk, with `{start}` (first frame), `{end}` (the frame
            after the last), `{last}` (the last frame), `{count}` (number of frames), `{id}` and
            `{output}` (quoted where it must be). Python's format options work: `{start:04d}`. A
            brace is written twice.
        chunk_frames: Frames in a chunk; the last may have fewer. This, or `chunks`.
        chunks: Number of chunks, as equal as they can be.
        start_frame: Number of the film's first frame, for renderers that begin to count at 1.
        output_template: A chunk's file, relative to the job folder, with the same fields but
            `{output}`.
        id: Name of the job.
        width: Width in pixels, for information.
        height: Height in pixels, for information.
        merge_command: Command that assembles the film, if no stitcher does.

    Returns:
        A checked job.

    Raises:
        JobError: A number is out of range, or a template has a field that is not known.
    """
    if total_frames < 1:
        raise JobError(f"total_frames is {total_frames}: a film has at least 1 frame")
    try:
        rate = parse_fps(fps)
    except ValueError as error:
        raise JobError(str(error)) from None
    ends = _ends(total_frames, chunk_frames, chunks)
    specs = []
    for number, (first, end) in enumerate(itertools.pairwise([0, *ends])):
        start, count = start_frame + first, end - first
        fields: dict[str, Any] = {"id": number, "start": start, "count": count}
        fields |= {"end": start + count, "last": start + count - 1}
        output = _fill(output_template, fields, "output_template")
        fields["output"] = shlex.quote(output)
        command = _fill(command_template, fields, "command_template")
        frames = {"startFrame": start, "frameCount": count}
        specs.append({"id": number, **frames, "outputFile": output, "command": command})
    metadata = {
        "totalFrames": total_frames,
        "fps": str(rate) if rate.denominator > 1 else rate.numerator,
        "width": width,
        "height": height,
        "duration": float(total_frames / rate),
    }
    return RenderJob.model_validate(
        {"id": id, "metadata": metadata, "chunks": specs, "mergeCommand": merge_command}
    )


def _ends(total_frames: int, chunk_frames: int | None, chunks: int | None) -> list[int]:
    """Return the frame after the last one of each chunk."""
    if chunk_frames is not None and chunks is None:
        if chunk_frames < 1:
            raise JobError(f"chunk_frames is {chunk_frames}: a chunk has at least 1 frame")
        return [*range(chunk_frames, total_frames, chunk_frames), total_frames]
    if chunks is None or chunk_frames is not None:
        raise JobError("give either chunk_frames or chunks")
    if not 1 <= chunks <= total_frames:
        raise JobError(f"chunks is {chunks}: it must be from 1 to total_frames, {total_frames}")
    return [total_frames * number // chunks for number in range(1, chunks + 1)]


def _fill(template: str, fields: Mapping[str, Any], name: str) -> str:
    try:
        return template.format(**fields)
    except KeyError as error:
        known = ", ".join(f"{{{field}}}" for field in sorted(fields))
        raise JobError(
            f"{name} {template!r} has the unknown field {{{error.args[0]}}}: the fields are {known}"
        ) from None
    except (ValueError, IndexError, AttributeError) as error:
        raise JobError(f"{name} {template!r} cannot be filled in: {error}") from None
