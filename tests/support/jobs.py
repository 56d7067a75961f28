"""Small jobs for the tests, rendered for real by `render_clip.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from prefect_renderfarm.flows import RenderJob, plan_job

RENDERER = Path(__file__).with_name("render_clip.py")


def clip_command(extra: str = "") -> str:
    """Return a command template for `plan_job` that renders with `render_clip.py`."""
    return (
        f"'{sys.executable}' '{RENDERER}' --start {{start}} --count {{count}} "
        f"--output {{output}} {extra}"
    ).strip()


def small_job(extra: str = "", **options: Any) -> RenderJob:
    """Return a job of 18 frames in three chunks; `extra` goes to the renderer."""
    options = {"total_frames": 18, "fps": 24, "chunks": 3, "id": "small"} | options
    return plan_job(command_template=clip_command(extra), **options)


def with_commands(job: RenderJob, commands: dict[int, str]) -> RenderJob:
    """Return a job with other commands for some chunks."""
    data = json.loads(job.to_json())
    for chunk in data["chunks"]:
        chunk["command"] = commands.get(chunk["id"], chunk["command"])
    return RenderJob.model_validate(data)


def save_job(folder: Path, job: RenderJob, name: str = "job.json") -> Path:
    """Write a job's file into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(job.to_json())
    return path
