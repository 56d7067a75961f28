"""The job spec: what it accepts, and that each refusal names the chunk and the fix."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from job_samples import HELIOS, changed, set_chunk

from prefect_renderfarm.blocks import JobError, RenderFarmError
from prefect_renderfarm.flows import Chunk, RenderJob


def test_helios_job_is_taken_as_it_is() -> None:
    """The JSON that Helios emits is a job, and comes back unchanged but for empty fields."""
    job = RenderJob.model_validate(HELIOS)
    assert job.chunks[1] == Chunk(
        id=1,
        start_frame=30,
        frame_count=30,
        output_file="output_part_1.mp4",
        command=HELIOS["chunks"][1]["command"],  # type: ignore[index]
    )
    assert job.merge_command == HELIOS["mergeCommand"]
    assert json.loads(job.to_json()) == HELIOS


def test_snake_case_is_accepted() -> None:
    """A spec in snake_case is the same job."""
    chunk = {
        "id": 0,
        "start_frame": 0,
        "frame_count": 5,
        "output_file": "a.mp4",
        "command": "render",
    }
    job = RenderJob.model_validate(
        {"metadata": {"total_frames": 5, "fps": "30000/1001"}, "chunks": [chunk]}
    )
    assert job.metadata.rate.numerator == 30000
    assert job.chunks[0].output_file == "a.mp4"


def test_chunks_are_ordered_by_id() -> None:
    """The order of assembly is that of the ids, not of the list."""
    job = RenderJob.model_validate(changed(lambda data: data["chunks"].reverse()))
    assert [chunk.id for chunk in job.chunks] == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_chunk(1, startFrame=31), ["chunk 1", "gap", "30"]),
        (set_chunk(1, startFrame=29), ["chunk 1", "overlaps", "30"]),
        (set_chunk(2, frameCount=29), ["chunk 2", "totalFrames", "90"]),
        (lambda data: data["metadata"].update(totalFrames=91), ["chunk 2", "totalFrames is 91"]),
        (set_chunk(1, id=0), ["chunk 0", "twice"]),
        (lambda data: data["chunks"].append(data["chunks"][0]), ["chunk 0", "twice"]),
        (set_chunk(2, outputFile="output_part_0.mp4"), ["chunk 2", "chunk 0", "same outputFile"]),
        (set_chunk(2, outputFile="./output_part_0.mp4"), ["chunk 2", "same outputFile"]),
        (set_chunk(1, frameCount=0), ["chunk 1", "frameCount 0", "1 or more"]),
        (set_chunk(1, frameCount=-3), ["chunk 1", "frameCount -3"]),
        (set_chunk(1, outputFile="../x.mp4"), ["chunk 1", "'../x.mp4'", "outside"]),
        (set_chunk(1, outputFile="a/../../x.mp4"), ["chunk 1", "outside"]),
        (set_chunk(1, outputFile="/tmp/x.mp4"), ["chunk 1", "outside"]),  # noqa: S108
        (set_chunk(1, outputFile=""), ["chunk 1", "name a file"]),
        (set_chunk(1, outputFile="a\0b"), ["chunk 1", "name a file"]),
        (set_chunk(1, command="  "), ["chunk 1", "empty command"]),
        (set_chunk(1, command="render 'x"), ["chunk 1", "quotation"]),
        (set_chunk(1, startFrame="x"), ["chunk 1", "startFrame", "'x'"]),
        (lambda data: data["chunks"][1].pop("command"), ["chunk 1", "command is missing"]),
        (lambda data: data["chunks"].clear(), ["no chunks"]),
        (lambda data: data.update(mergeCommand="glue 'x"), ["merge command", "quotation"]),
        (lambda data: data.pop("chunks"), ["chunks is missing"]),
        (lambda data: data.pop("metadata"), ["metadata is missing"]),
        (lambda data: data["metadata"].update(fps="fast"), ["fps", "'fast'", "30000/1001"]),
        (lambda data: data["metadata"].update(fps=0), ["fps", "above 0"]),
        (lambda data: data["metadata"].update(fps=float("nan")), ["fps", "finite"]),
    ],
)
def test_refusal_names_the_chunk_and_the_fix(
    change: Callable[[dict[str, Any]], None], words: list[str]
) -> None:
    """Each fault is refused in one line, whichever way the job is made."""
    data = changed(change)
    ways: list[Callable[[], RenderJob]] = [
        lambda: RenderJob.model_validate(data),
        lambda: RenderJob(**data),
        lambda: RenderJob.model_validate_json(json.dumps(data)),
    ]
    for way in ways:
        with pytest.raises(JobError) as caught:
            way()
        message = str(caught.value)
        assert "\n" not in message
        for word in words:
            assert word in message
    assert issubclass(JobError, RenderFarmError)


def test_empty_merge_command_is_none() -> None:
    """A merge command of spaces is no merge command."""
    job = RenderJob.model_validate(changed(lambda data: data.update(mergeCommand="  ")))
    assert job.merge_command is None


def test_something_else_is_no_job() -> None:
    """Data of another shape is refused in one line, too."""
    for data in (None, 3, "x", [], {}):
        with pytest.raises(JobError):
            RenderJob.model_validate(data)


def test_key_follows_the_spec() -> None:
    """The same spec has the same key; another command, another key; odd ids make safe names."""
    job = RenderJob.model_validate(HELIOS)
    assert job.key == RenderJob.model_validate(HELIOS).key
    other = RenderJob.model_validate(changed(set_chunk(0, command="other")))
    assert other.key != job.key
    odd = RenderJob.model_validate(changed(lambda data: data.update(id="../Ünder /x")))
    assert "/" not in odd.key
    assert ".." not in odd.key
