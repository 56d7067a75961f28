"""From the typed command to the first chunk, and from the last chunk to the prompt."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from farm_client import PORT
from jobs import save_job, small_job

from prefect_renderfarm.deployments.farm import PREFECT, Farm
from prefect_renderfarm.flows import RenderReport

TIMES = 4
SUBMITS = 20
RENDERFARM = [sys.executable, "-m", "prefect_renderfarm.deployments.cli"]
# Commands that leave their machine no time for anything else.
BUSY = [sys.executable, "-c", "while True: pass"]


def bench_front_door(folder: Path) -> None:
    """Compare `renderfarm render` with `prefect deployment run --watch`; submit under full load."""
    farm = Farm(folder / "farm")
    try:
        farm.up(port=PORT)
        _compare(farm, folder)
        _submit_under_load(farm, folder)
    finally:
        farm.down()


def _compare(farm: Farm, folder: Path) -> None:
    def command(path: Path) -> dict[str, list[str]]:
        named = ["-p", f"job={path}", "-p", "output_file=film.mp4"]
        return {
            "prefect deployment run --watch": [
                *PREFECT, "deployment", "run", "render-job/cloud", *named, "--watch",
            ],
            "renderfarm render": [*RENDERFARM, "render", str(path), "-o", f"{path.parent}/f.mp4"],
        }  # fmt: skip

    found: dict[str, list[tuple[float, float]]] = {}
    for number in range(TIMES):
        for name in command(folder):
            path = save_job(folder / f"job-{number}-{len(name)}", small_job())
            typed = datetime.now(UTC)
            subprocess.run(
                command(path)[name], env=farm.environment(), check=True, capture_output=True
            )
            ended = datetime.now(UTC)
            [file] = path.parent.glob(".renderfarm/*/report.json")
            report = RenderReport.model_validate_json(file.read_text())
            chunks = [chunk for chunk in report.chunks if chunk.published_at is not None]
            starts = [
                chunk.published_at - timedelta(seconds=chunk.seconds)
                for chunk in chunks
                if chunk.published_at
            ]
            last = max(chunk.published_at for chunk in chunks if chunk.published_at)
            found.setdefault(name, []).append(
                ((min(starts) - typed).total_seconds(), (ended - last).total_seconds())
            )
    print(f"a job of 3 short chunks, two pools, {TIMES} times in turn, medians without the first")
    for name, times in found.items():
        first, last = (statistics.median(part) for part in zip(*times[1:], strict=True))
        print(f"  {name:34}{first:6.1f} s to the first chunk, {last:5.1f} s from the last one")


def _submit_under_load(farm: Farm, folder: Path) -> None:
    """Submit runs as the UI's form does, while as many commands as processors do not rest."""
    path = save_job(folder / "busy", small_job())
    deployment = httpx.get(f"{farm.api_url}/deployments/name/render-job/cloud").json()["id"]
    url = f"{farm.api_url}/deployments/{deployment}/create_flow_run"
    answers: list[tuple[int, float]] = []
    busy = [
        subprocess.Popen(["nice", "-n", "5", *BUSY], start_new_session=True)
        for _ in range(2 * (os.cpu_count() or 1))
    ]
    try:
        body = {"parameters": {"job": str(path), "output_file": "film.mp4"}}
        for _ in range(SUBMITS):
            asked = datetime.now(UTC)
            status = httpx.post(url, json=body, timeout=60).status_code
            answers.append((status, (datetime.now(UTC) - asked).total_seconds()))
            threading.Event().wait(0.5)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    good = sum(status == 201 for status, _ in answers)
    seconds = [taken for _, taken in answers]
    print(f"{SUBMITS} runs submitted as the form does, each processor with two busy commands")
    print(f"  taken {good} of {SUBMITS}, median {statistics.median(seconds):.2f} s, "
          f"longest {max(seconds):.2f} s")  # fmt: skip


BENCHES: dict[str, Callable[[Path], None]] = {"front-door": bench_front_door}
