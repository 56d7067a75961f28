"""The planner: ranges, and every field of a command template."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_renderfarm.blocks import JobError
from prefect_renderfarm.flows import plan_job


def test_command_template_has_all_fields() -> None:
    """Each field means what the documentation says."""
    job = plan_job(
        10,
        24,
        command_template="r {id} {start} {end} {last} {count} {start:04d} {{}} {output}",
        chunk_frames=4,
        start_frame=1,
        output_template="c/{id}-{start}.mkv",
    )
    assert [chunk.command for chunk in job.chunks] == [
        "r 0 1 5 4 4 0001 {} c/0-1.mkv",
        "r 1 5 9 8 4 0005 {} c/1-5.mkv",
        "r 2 9 11 10 2 0009 {} c/2-9.mkv",
    ]
    assert [chunk.frame_count for chunk in job.chunks] == [4, 4, 2]
    assert job.metadata.duration == pytest.approx(10 / 24)


def test_number_of_chunks() -> None:
    """With `chunks`, the ranges are as equal as they can be and add up."""
    job = plan_job(100, "30000/1001", command_template="r {output}", chunks=7)
    counts = [chunk.frame_count for chunk in job.chunks]
    assert sum(counts) == 100
    assert max(counts) - min(counts) == 1
    assert job.metadata.fps == "30000/1001"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "either chunk_frames or chunks"),
        ({"chunks": 2, "chunk_frames": 2}, "either chunk_frames or chunks"),
        ({"chunks": 0}, "chunks is 0"),
        ({"chunks": 11}, "from 1 to total_frames"),
        ({"chunk_frames": 0}, "chunk_frames is 0"),
        ({"chunks": 1, "total_frames": 0}, "at least 1 frame"),
        ({"chunks": 1, "fps": -1}, "fps -1"),
        ({"chunks": 1, "command_template": "r {stop}"}, "{stop}"),
        ({"chunks": 1, "command_template": "r {start"}, "cannot be filled in"),
        ({"chunks": 2, "output_template": "same.mp4"}, "same outputFile"),
        ({"chunks": 2, "output_template": "{output}.mp4"}, "{output}"),
    ],
)
def test_bad_plans_are_refused(options: dict[str, Any], words: str) -> None:
    """Each fault is told with the value that is wrong."""
    options = {"total_frames": 10, "fps": 24, "command_template": "r {output}"} | options
    with pytest.raises(JobError) as caught:
        plan_job(**options)
    assert words in str(caught.value)
