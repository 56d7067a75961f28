"""One job through every adapter: no shared folder, chunks home through S3, the same film."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from farm_client import FarmClient
from http_samples import HttpWorker
from lambda_server import LambdaServer
from media_samples import Recipe, frame_hashes, write_clip
from prefect_aws.s3 import S3Bucket
from storage_samples import S3Server

from prefect_renderfarm.blocks import LocalAdapter, WorkerAdapter, WorkPoolAdapter
from prefect_renderfarm.blocks.storage.bucket import BucketStore
from prefect_renderfarm.blocks.storage.job_store import JobStore
from prefect_renderfarm.flows import RenderJob, RenderReport, plan_job

CHUNKS, FRAMES = 24, 60
# A renderer that cannot do without the job's input files, and takes no time of its own.
RENDERER = """test "$(cat "textures/it's wood.txt")" = oak && cp "frames/$1.mp4" "$2"
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> RenderJob:
    """Return a job of 24 chunks that needs its input files."""
    scene = tmp_path_factory.mktemp("scene")
    (scene / "textures").mkdir()
    (scene / "textures" / "it's wood.txt").write_text("oak")
    (scene / "render.sh").write_text(RENDERER)
    planned = plan_job(
        FRAMES, 24, chunks=CHUNKS, id="everywhere", command_template="sh render.sh {id} {output}"
    )
    for chunk in planned.chunks:
        clip = scene / "frames" / f"{chunk.id}.mp4"
        write_clip(clip, chunk.start_frame, chunk.frame_count, Recipe(fps=Fraction(24)))
    return RenderJob.model_validate(json.loads(planned.to_json()) | {"assetsUrl": str(scene)})


@pytest.fixture(scope="module")
def frames(job: RenderJob) -> list[str]:
    """Return the frames that every film of the job has."""
    clips = [Path(str(job.assets_url)) / "frames" / f"{chunk.id}.mp4" for chunk in job.chunks]
    return [digest for clip in clips for digest in frame_hashes(clip)]


# In smaller jobs: test_storage, test_http_jobs, test_lambda and test_work_pool_adapter.
@pytest.mark.long
@pytest.mark.parametrize("kind", ["local", "http", "lambda", "work-pool"])
def test_same_film_by_every_adapter(
    api: FarmClient, s3: S3Server, job: RenderJob, frames: list[str], kind: str,
    tmp_path: Path, request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """Chunks are rendered where the adapter says, the film is put together on the other pool."""
    bucket = s3.new_bucket(f"team/{kind}")
    bucket.credentials.save("farm", overwrite=True)
    bucket = S3Bucket(
        bucket_name=bucket.bucket_name,
        bucket_folder=bucket.bucket_folder,
        credentials=type(bucket.credentials).load("farm"),
    )
    bucket.save(f"everywhere-{kind}", overwrite=True)
    adapter = make_adapter(kind, request)
    adapter.save(f"everywhere-{kind}", overwrite=True)
    film = tmp_path / "film.mp4"
    run = api.submit(
        "render-job/cloud",
        job=json.loads(job.to_json()),
        adapter=f"{adapter.get_block_type_slug()}/everywhere-{kind}",
        storage=f"s3-bucket/everywhere-{kind}",
        stitcher="remux-stitcher/default",
        output_file=film,
        concurrency=2,
    )
    assert run.state is not None
    assert run.state.is_completed(), run.state.message
    pools = {child.work_pool_name for child in api.children(run) if child.name.startswith("merge")}
    assert (run.work_pool_name, pools) == ("cloud", {"local"})
    data = JobStore(BucketStore(bucket), job.key).read("report.json")
    assert data is not None
    report = RenderReport.model_validate_json(data)
    assert len(report.chunks) == CHUNKS
    assert all(chunk.worker for chunk in report.chunks)
    assert len(frames) == FRAMES
    assert frame_hashes(film) == frames


def make_adapter(kind: str, request: pytest.FixtureRequest) -> WorkerAdapter:
    """Return an adapter of a kind, whose workers are there."""
    if kind == "lambda":
        functions: LambdaServer = request.getfixturevalue("functions")
        return functions.adapter(request.getfixturevalue("worker_function"))
    if kind == "http":
        worker: HttpWorker = request.getfixturevalue("http_worker")
        return worker.adapter()
    makers: dict[str, Callable[[], WorkerAdapter]] = {
        "local": LocalAdapter,
        "work-pool": lambda: WorkPoolAdapter(chunks_per_run=12, max_runs=2),
    }
    return makers[kind]()
