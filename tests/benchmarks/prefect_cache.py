"""What it takes to find that all chunks of a job are done: by manifests, and by Prefect's cache."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from farm_client import PORT
from media_samples import Recipe, write_clip
from prefect import flow, task
from prefect.cache_policies import INPUTS
from prefect.filesystems import LocalFileSystem
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import unmapped

from prefect_renderfarm.blocks import LocalAdapter
from prefect_renderfarm.deployments.farm import Farm
from prefect_renderfarm.flows import plan_job, render_job

CHUNKS = 500


@task(cache_policy=INPUTS, persist_result=True)
def _copy(clip: str, chunk: str) -> str:
    """Stand for a chunk: make its file, and note that it was made."""
    shutil.copyfile(clip, chunk)
    with Path(chunk).with_name("note").open("a") as note:
        note.write(".")
    return chunk


def bench_prefect_cache(folder: Path) -> None:
    """Do a job, do it again, and once more with one file gone; print what each of them took."""
    farm = Farm(folder / "farm")
    try:
        farm.up(port=PORT)
        _compare(folder)
    finally:
        farm.down()


def _compare(folder: Path) -> None:
    clip = write_clip(folder / "clip.mp4", 0, 1, Recipe())
    (folder / "cached").mkdir()
    note = folder / "cached" / "note"
    files = [str(folder / "cached" / f"{number}.mp4") for number in range(CHUNKS)]
    results = LocalFileSystem(basepath=str(folder / "results"))
    results.save("bench-results", overwrite=True, _sync=True)

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=2), result_storage=results)
    def cached() -> None:
        _copy.map(unmapped(str(clip)), files).result()

    job = plan_job(
        CHUNKS, 24, chunks=CHUNKS, command_template=f"cp '{clip}' {{output}}", id="bench"
    )

    def by_cache() -> int:
        before = note.stat().st_size if note.exists() else 0
        cached()
        return note.stat().st_size - before

    def by_manifests() -> int:
        report = render_job(
            job, adapter=LocalAdapter(), job_dir=folder / "job", concurrency=2, merge=False
        )
        return CHUNKS - len(report.reused)

    ways = {
        "Prefect's cache": (by_cache, Path(files[7])),
        "manifests": (by_manifests, folder / "job" / job.chunks[7].output_file),
    }
    for name, (run, file) in ways.items():
        for what in ("first run", "all are done", "one file is gone"):
            if what == "one file is gone":
                file.unlink()
            before, started = _cpu(), time.monotonic()
            done = run()
            print(
                f"{name:16} {what:17} {done:4} rendered {time.monotonic() - started:6.1f} s "
                f"{1000 * (_cpu() - before) / CHUNKS:6.1f} ms of CPU a chunk"
            )


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


BENCHES: dict[str, Callable[[Path], None]] = {"prefect-cache": bench_prefect_cache}
