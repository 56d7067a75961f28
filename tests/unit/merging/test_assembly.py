"""Who assembles, and where the film goes: decided before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs import small_job

from prefect_renderfarm.blocks import JobError, RemuxStitcher
from prefect_renderfarm.flows.merge_job import film_path, plan_assembly
from prefect_renderfarm.flows.results import Assembly
from prefect_renderfarm.flows.state.job_state import JobState

FILM = Path("film.mp4")


@pytest.mark.parametrize(
    ("command", "stitched", "film", "who"),
    [
        ("merge", True, FILM, Assembly.STITCHED),
        (None, True, FILM, Assembly.STITCHED),
        ("merge", True, None, Assembly.MERGED),
        ("merge", False, FILM, Assembly.MERGED),
        ("merge", False, None, Assembly.MERGED),
        (None, False, None, Assembly.SKIPPED),
    ],
)
def test_who_assembles(
    command: str | None, stitched: bool, film: Path | None, who: Assembly
) -> None:
    """A stitcher with an output file, else the merge command, else nobody."""
    stitcher = RemuxStitcher() if stitched else None
    assert plan_assembly(command, stitcher, film) is who
    assert plan_assembly(command, stitcher, film, merge=False) is Assembly.OFF


def test_half_of_what_a_film_needs() -> None:
    """A stitcher without an output file is refused, and the other way round, each with the fix."""
    with pytest.raises(JobError, match="give output_file"):
        plan_assembly(None, RemuxStitcher(), None)
    with pytest.raises(JobError, match=r"output_file 'film.mp4' .*: choose a stitcher"):
        plan_assembly(None, None, FILM)


def test_paths_of_films(tmp_path: Path) -> None:
    """A film lies in the job folder or at its absolute path; a key needs a storage."""
    state = JobState(tmp_path, small_job())
    assert film_path(state, None) is None
    assert film_path(state, FILM) == tmp_path / "film.mp4"
    assert film_path(state, Path("/x/film.mp4")) == Path("/x/film.mp4")
    with pytest.raises(JobError, match="no storage is chosen"):
        film_path(state, Path("storage:film.mp4"))
