"""Make a job from a command template."""

from __future__ import annotations

import itertools
import shlex
from fractions import Fraction
from string import Formatter

from prefect_renderfarm.blocks.errors import JobError
from prefect_renderfarm.blocks.media.frame_rate import parse_fps
from prefect_renderfarm.flows.jobs.spec import RenderJob

_FIELDS = frozenset({"start", "end", "last", "count", "id", "output"})


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
    ranges = _ranges(total_frames, chunk_frames, chunks)
    try:
        rate = parse_fps(fps)
    except ValueError as error:
        raise JobError(str(error)) from None
    specs = []
    for number, (first, count) in enumerate(ranges):
        start = start_frame + first
        fields: dict[str, object] = {
            "start": start,
            "end": start + count,
            "last": start + count - 1,
            "count": count,
            "id": number,
        }
        output = _fill(output_template, fields, "output_template")
        specs.append(
            {
                "id": number,
                "startFrame": start,
                "frameCount": count,
                "outputFile": output,
                "command": _fill(
                    command_template, fields | {"output": shlex.quote(output)}, "command_template"
                ),
            }
        )
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


def _ranges(
    total_frames: int, chunk_frames: int | None, chunks: int | None
) -> list[tuple[int, int]]:
    if (chunk_frames is None) == (chunks is None):
        raise JobError("give either chunk_frames or chunks")
    if chunk_frames is not None:
        if chunk_frames < 1:
            raise JobError(f"chunk_frames is {chunk_frames}: a chunk has at least 1 frame")
        return [
            (first, min(chunk_frames, total_frames - first))
            for first in range(0, total_frames, chunk_frames)
        ]
    assert chunks is not None  # noqa: S101
    if not 1 <= chunks <= total_frames:
        raise JobError(f"chunks is {chunks}: it must be from 1 to total_frames, {total_frames}")
    ends = [total_frames * number // chunks for number in range(chunks + 1)]
    return [(first, end - first) for first, end in itertools.pairwise(ends)]


def _fill(template: str, fields: dict[str, object], name: str) -> str:
    try:
        names = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
        unknown = names - fields.keys()
        if unknown or (name == "output_template" and "output" in names):
            raise JobError(
                f"{name} {template!r} has the unknown field {{{min(unknown)}}}: the fields are "
                + ", ".join(f"{{{field}}}" for field in sorted(_FIELDS & fields.keys()))
            )
        return template.format(**fields)
    except (ValueError, IndexError, KeyError) as error:
        raise JobError(f"{name} {template!r} cannot be filled in: {error}") from None
