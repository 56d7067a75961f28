"""How many requests a chunk costs the storage, coordinator and workers together."""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_proxy import FaultyProxy, Request, faulty_proxy
from http_samples import working
from media_samples import Recipe, write_clip
from prefect_aws.s3 import S3Bucket
from storage_samples import S3Server

from prefect_renderfarm.blocks import LocalAdapter, WorkerAdapter, WorkPoolAdapter
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.flows import RenderJob, plan_job, render_job
from prefect_renderfarm.flows.rendering.attempts import Attempts, Failures
from prefect_renderfarm.flows.rendering.chunk_renderer import ChunkRenderer, plan_rendering
from prefect_renderfarm.flows.state.job_lock import job_lock
from prefect_renderfarm.flows.state.job_state import JobState

CHUNKS = 60
# Requests of which a job has a number that does not grow with its chunks.
OF_THE_JOB = ("/lock/", "lock%2F", "/report.json", "/thumbnail.jpg", "/assets")


@pytest.fixture
def counted(s3: S3Server) -> Iterator[FaultyProxy]:
    """Count the requests to the S3 server, of this process and of all workers."""
    with faulty_proxy(s3.url) as proxy:
        yield proxy


def copies(folder: Path) -> RenderJob:
    """Return a job whose commands copy a clip."""
    clip = write_clip(folder / "clip.mp4", 0, 1, Recipe())
    command = f"cp {shlex.quote(str(clip))} {{output}}"
    return plan_job(CHUNKS, 24, chunks=CHUNKS, id="counted", command_template=command)


def of_chunks(proxy: FaultyProxy) -> Counter[str]:
    """Return how many requests of each kind chunks have cost so far."""
    requests = [each for each, _ in proxy.requests if not any(n in each.path for n in OF_THE_JOB)]
    return Counter(_kind(request) for request in requests)


def _kind(request: Request) -> str:
    path, _, query = request.path.partition("?")
    for part in ("/known/", "/runs/", "/log.txt", "/job.json"):
        if part in path:
            return f"{request.method} {part.strip('/')}"
    if "prefix=" in query:
        return "LIST"
    return f"{request.method} {'manifest' if path.endswith('.json') else 'file'}"


@pytest.mark.parametrize("kind", ["local", pytest.param("http", marks=pytest.mark.long)])
def test_requests_of_an_adapter(
    kind: str, counted: FaultyProxy, s3: S3Server, bucket: S3Bucket, tmp_path: Path
) -> None:
    """A chunk costs five requests at most, its file, log and manifest included."""
    there = dataclasses.replace(s3, port=counted.port)
    block = S3Bucket(bucket_name=bucket.bucket_name, credentials=there.credentials())
    state = JobState(tmp_path / "job", copies(tmp_path), block)

    def render(adapter: WorkerAdapter) -> None:
        state.prepare()
        with job_lock(state) as lock:
            state.identify(adapter)
            rendering: Any = plan_rendering(
                state, state.job.chunks, adapter, ChunkRules(), Attempts(), width=1,
                failures=Failures(), lock=lock, force=False, fresh=lock.first,
            )  # fmt: skip
            assert isinstance(rendering, ChunkRenderer)
            for chunk in state.job.chunks:
                rendering.render(chunk)

    if kind == "local":
        render(LocalAdapter())
    else:
        with working(there.environment()) as worker:
            render(worker.wait_until_ready().adapter(max_in_flight=1))
    kinds = of_chunks(counted)
    print(f"\nREQ {kind}: {sum(kinds.values()) / CHUNKS:.2f} a chunk: {dict(kinds.most_common())}")
    assert sum(kinds.values()) <= 5 * CHUNKS


@pytest.mark.long
@pytest.mark.usefixtures("api")
def test_requests_of_a_work_pool(
    counted: FaultyProxy, s3: S3Server, bucket: S3Bucket, tmp_path: Path
) -> None:
    """A chunk of a batch costs no more, though its run and its job are two processes."""
    there = dataclasses.replace(s3, port=counted.port).credentials()
    S3Bucket(bucket_name=bucket.bucket_name, credentials=there).save("counted", overwrite=True)
    adapter = WorkPoolAdapter(chunks_per_run=20, max_runs=1)
    report = render_job(
        copies(tmp_path), adapter=adapter, job_dir=tmp_path / "job", merge=False,
        storage=S3Bucket.load("counted"),
    )  # fmt: skip
    assert len(report.chunks) == CHUNKS
    kinds = of_chunks(counted)
    print(f"\nREQ pool: {sum(kinds.values()) / CHUNKS:.2f} a chunk: {dict(kinds.most_common())}")
    assert sum(kinds.values()) <= 5 * CHUNKS
