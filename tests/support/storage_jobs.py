"""Jobs whose chunks travel through a storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs import small_job
from prefect_aws.s3 import S3Bucket

from prefect_renderfarm.blocks import (
    LocalAdapter,
    RemuxStitcher,
)
from prefect_renderfarm.flows import RenderReport, render_job


def render(block: S3Bucket, folder: Path, extra: str = "", **options: Any) -> RenderReport:
    """Render and stitch a small job through a storage."""
    given = {"adapter": LocalAdapter(), "stitcher": RemuxStitcher(), "output_file": "film.mp4"}
    return render_job(small_job(extra), storage=block, job_dir=folder, **(given | options))
