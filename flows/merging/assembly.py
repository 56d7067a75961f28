"""Who puts a job's chunks together."""

from __future__ import annotations

from pathlib import Path

from prefect_renderfarm.blocks.errors import JobError
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.stitchers.base import VideoStitcher
from prefect_renderfarm.flows.results import Assembly


def plan_assembly(
    merge_command: str | None,
    stitcher: VideoStitcher | None,
    film: Path | None,
    merge: bool = True,
) -> Assembly:
    """Decide who assembles the chunks.

    Raises:
        JobError: A stitcher is chosen, but no output file, and there is no merge command either.
    """
    log = run_log()
    if not merge:
        return Assembly.OFF
    if stitcher is not None and film is not None:
        return Assembly.STITCHED
    if stitcher is not None:
        if merge_command is None:
            raise JobError(
                "a stitcher is chosen, but no output_file, and the job has no merge command: "
                "give output_file, the path of the film"
            )
        log.warning("a stitcher is chosen, but no output_file: the job's merge command assembles")
    if merge_command is not None:
        return Assembly.MERGED
    if film is not None:
        log.warning(
            "output_file is given, but no stitcher, and the job has no merge command: "
            "nothing will write %s", film,
        )  # fmt: skip
    return Assembly.SKIPPED
