"""Benchmarks: ratios against a peer that is measured in the same run, side by side.

    make bench            all of them
    make bench NAME …     stitch, last-chunk, memory, storage, film-memory, work-pool, scale,
                          farm, prefect-cache, front-door or job

Machines are shared and noisy: all ways are measured several times, turn by turn, and the ratio is
that of the medians.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "support")]

from comparing import measure, show  # noqa: E402
from farm import BENCHES as FARM  # noqa: E402
from farm_client import PORT, FarmClient  # noqa: E402
from film_memory import BENCHES as FILM_MEMORY  # noqa: E402
from front_door import BENCHES as FRONT_DOOR  # noqa: E402
from jobs import clip_command  # noqa: E402
from prefect_cache import BENCHES as PREFECT_CACHE  # noqa: E402
from scale import BENCHES as SCALE  # noqa: E402
from stitching import BENCHES as STITCHING  # noqa: E402
from stitching import concat_copy  # noqa: E402
from storage import BENCHES as STORAGE  # noqa: E402
from work_pool import BENCHES as WORK_POOL  # noqa: E402

from prefect_renderfarm.blocks.adapters.local import split_command  # noqa: E402
from prefect_renderfarm.deployments.farm import Farm  # noqa: E402
from prefect_renderfarm.flows import RenderJob, RenderReport, plan_job  # noqa: E402


def bench_job(folder: Path) -> None:
    """Run a job through the farm, and its commands on a thread pool with a concat copy."""
    width = 2
    frames = 32 * 48
    template = clip_command().replace("{output}", "{output} --sleep 1")
    job: RenderJob = plan_job(frames, 24, chunks=32, command_template=template, id="bench")
    farm = Farm(folder / "farm")
    parts: list[dict[str, float]] = []
    try:
        farm.up(port=PORT)
        client = FarmClient(farm)

        def through_the_farm() -> None:
            path = folder / "farm-job" / "job.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(job.to_json())
            typed = datetime.now(UTC)
            # Forced: chunks that are there are not rendered again, but the peer renders all.
            run = client.type_and_watch(
                "render-job/cloud", job=path, stitcher="remux-stitcher/default",
                output_file="film.mp4", concurrency=width, force=True,
            )  # fmt: skip
            assert run.state is not None
            assert run.state.is_completed(), run.state.message
            [file] = path.parent.glob(".renderfarm/*/report.json")
            report = RenderReport.model_validate_json(file.read_text())
            assert not report.reused
            assert report.rendered_at is not None
            moments = {
                "": typed,
                "command line, until the run is on the server": run.created,
                "start of the run, until its first chunk": report.rendered_at
                - timedelta(seconds=report.render_seconds),
                "rendering": report.rendered_at,
                "assembly, from the last chunk to the film": report.assembled_at,
                "end of the run": run.end_time,
                "command line, until it returns": datetime.now(UTC),
            }
            parts.append(
                {
                    name: (then - before).total_seconds()
                    for (_, before), (name, then) in pairwise(moments.items())
                }
            )

        def by_hand() -> None:
            here = folder / "by-hand"
            (here / "chunks").mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(width) as pool:
                list(
                    pool.map(
                        lambda chunk: subprocess.run(
                            split_command(chunk.command), cwd=here, check=True, capture_output=True
                        ),
                        job.chunks,
                    )
                )
            concat_copy([here / chunk.output_file for chunk in job.chunks], here / "film.mp4")

        ways = {"thread pool + concat copy": by_hand, "render-job + merge-job": through_the_farm}
        found = measure(ways, 3)
        show(
            f"a job of 32 chunks, {width} at a time, two pools, from the command line to its end",
            found,
            "thread pool + concat copy",
        )
        for name in parts[0]:
            print(f"    {name:<50} {statistics.median(part[name] for part in parts[1:]):6.2f} s")
    finally:
        farm.down()


BENCHES = STITCHING | STORAGE | FILM_MEMORY | WORK_POOL | SCALE | PREFECT_CACHE | FRONT_DOOR
BENCHES |= FARM | {"job": bench_job}

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCHES:
        with tempfile.TemporaryDirectory(prefix="renderfarm-bench-") as scratch:
            BENCHES[name](Path(scratch))
