"""A coordinator in a process of its own, as a person runs one from Python; to be killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from prefect_renderfarm.blocks import LocalAdapter, RemuxStitcher
from prefect_renderfarm.flows import RenderJob, render_job


def start_coordinator(job: RenderJob, folder: Path, **options: Any) -> subprocess.Popen[bytes]:
    """Render a job in another process; options are those of `main`."""
    given = {"job": json.loads(job.to_json()), "folder": str(folder)} | options
    return subprocess.Popen([sys.executable, __file__, json.dumps(given)], start_new_session=True)


def main(job: dict[str, Any], folder: str, film: str | None = None, concurrency: int = 2) -> None:
    """Render a job through its folder, and make a film if one is named."""
    render_job(
        job,
        adapter=LocalAdapter(),
        job_dir=Path(folder),
        concurrency=concurrency,
        merge=film is not None,
        stitcher=RemuxStitcher() if film else None,
        output_file=Path(film) if film else None,
    )


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
