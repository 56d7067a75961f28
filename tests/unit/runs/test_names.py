"""Names of runs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from prefect.utilities.names import generate_slug

from prefect_renderfarm.flows.runs import names


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("", "render small"),
        ("hero shot 3", "hero shot 3"),
        ("shot-12", "shot-12"),
        (generate_slug(2), "render small"),
        ("zeta2-mekbuda", "render small"),
        ("omega831-vega-warp", "render small"),
        ("Awesome-Quokka", "render small"),
    ],
    ids=["none", "words", "dash", "made up", "by the UI", "by the UI, long", "by the second UI"],
)
def test_name_of_a_run(given: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that a person gave stays; one that Prefect made up gives way to the job's."""
    run = SimpleNamespace(name=given, parameters={"job": "/renders/small.json"})
    monkeypatch.setattr(names, "flow_run", run)
    assert names.job_run_name("render")() == shown
