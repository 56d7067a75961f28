"""Job specs for the tests, good and bad, and what is said of the bad ones."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefect_renderfarm.blocks import (
    FatalWorkerError,
    JobError,
)
from prefect_renderfarm.blocks.assets.archive import lay_out_archive
from prefect_renderfarm.blocks.assets.workspace import AssetCache
from prefect_renderfarm.flows import RenderJob
from prefect_renderfarm.flows.jobs.load import load_job

HELIOS = {
    "metadata": {"totalFrames": 90, "fps": 30, "width": 1280, "height": 720, "duration": 3},
    "chunks": [
        {
            "id": number,
            "startFrame": number * 30,
            "frameCount": 30,
            "outputFile": f"output_part_{number}.mp4",
            "command": "helios render composition.html -o output_part_"
            f"{number}.mp4 --start-frame {number * 30} --frame-count 30",
        }
        for number in range(3)
    ],
    "mergeCommand": "helios merge output.mp4 output_part_0.mp4 output_part_1.mp4 output_part_2.mp4",
}


def changed(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Return the Helios job with a change."""
    data: dict[str, Any] = json.loads(json.dumps(HELIOS))
    change(data)
    return data


def set_chunk(place: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change of one chunk."""
    return lambda data: data["chunks"][place].update(values)


# No message is longer, whatever the spec holds.
MOST_CHARACTERS = 700


def refusal(call: Callable[[], object]) -> str:
    """Return the message of the JobError that a call raises, which is one short printable line."""
    with pytest.raises(JobError) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable(), message
    assert len(message) <= MOST_CHARACTERS
    return message


def all_ways(data: dict[str, Any]) -> list[str]:
    """Return the refusals of a spec, given in each way in which a spec can be given."""
    text = json.dumps(data)
    return [
        refusal(lambda: RenderJob.model_validate(data)),
        refusal(lambda: RenderJob(**data)),
        refusal(lambda: RenderJob.model_validate_json(text)),
        refusal(lambda: load_job(text)),
    ]


SECRET = "s3cret"  # noqa: S105


def archive_refusal(url: str, folder: Path) -> str:
    """Return why an archive is not fetched."""
    cache = AssetCache(folder / "cache")
    with pytest.raises(FatalWorkerError) as caught:
        lay_out_archive(url, folder, cache, threading.Event())
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 700
    return message
