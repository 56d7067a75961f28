"""Chaos in short: a few jobs of which parts are killed, or fail, at random moments."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from chaos.suite import run_suite
from chaos.trial import Stage
from conftest import FarmClient
from storage_samples import S3Server

# `make chaos` does 200, and kills workers and the server, too.
COUNTS = {"coordinator": 3, "merge": 1, "storage": 2}


def test_every_job_is_done_in_spite_of_faults(
    own_farm: FarmClient, s3: S3Server, tmp_path: Path
) -> None:
    """All films are exact, no published chunk is rendered again, and nothing runs on."""
    result = run_suite(Stage(own_farm, s3, tmp_path / "jobs", seed=5), COUNTS, lanes=2)
    print(result.table())
    assert result.faults() == []
    struck = Counter(dict.fromkeys(COUNTS, 0))
    for outcome in result.outcomes:
        struck[outcome.kind] += outcome.faults
    assert all(struck.values()), struck
