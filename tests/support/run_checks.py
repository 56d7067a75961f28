"""What came of a flow run, and of its film."""

from __future__ import annotations

from pathlib import Path

from farm_client import FarmClient
from media_samples import frame_hashes
from prefect.client.schemas.objects import FlowRun

from prefect_renderfarm.flows import RenderJob

STITCH = {"stitcher": "remux-stitcher/default", "output_file": "film.mp4"}


def assert_failed(run: FlowRun, *words: str) -> None:
    """Check that a run failed with one line that holds the words."""
    assert run.state is not None
    assert run.state.is_failed()
    message = run.state.message or ""
    assert "\n" not in message
    for word in words:
        assert word in message


def assert_film(folder: Path, job: RenderJob, film: str = "film.mp4") -> None:
    """Check that the film has exactly the chunks' frames, in order."""
    chunks = [folder / chunk.output_file for chunk in job.chunks]
    assert frame_hashes(folder / film) == [
        digest for path in chunks for digest in frame_hashes(path)
    ]


def is_final(api: FarmClient, run: FlowRun) -> bool:
    """Return whether a run has come to its end."""
    state = api.flow_run(run.id).state
    return state is not None and state.is_final()
