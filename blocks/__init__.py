"""Prefect blocks of the render farm: where chunks run, and how a film is put together."""

from prefect_renderfarm.blocks.aws_lambda_adapter import AwsLambdaAdapter
from prefect_renderfarm.blocks.errors import (
    AssemblyError,
    ChunkFileError,
    CommandFailed,
    CommandNotRunnable,
    CommandTimeout,
    FatalWorkerError,
    JobError,
    RenderFarmError,
    SetupError,
    StitchInputError,
    StorageError,
    StorageRefused,
    WorkerError,
    WorkerLost,
    WorkerRefused,
    WorkStopped,
)
from prefect_renderfarm.blocks.ffmpeg_stitcher import FfmpegStitcher
from prefect_renderfarm.blocks.http_adapter import HttpAdapter
from prefect_renderfarm.blocks.local_adapter import LocalAdapter
from prefect_renderfarm.blocks.remux_stitcher import RemuxStitcher
from prefect_renderfarm.blocks.video_stitcher import StitchReport, VideoStitcher
from prefect_renderfarm.blocks.work_pool_adapter import WorkPoolAdapter
from prefect_renderfarm.blocks.worker_adapter import WorkerAdapter
from prefect_renderfarm.blocks.worker_job import WorkerJob, WorkerResult

__all__ = [
    "AssemblyError",
    "AwsLambdaAdapter",
    "ChunkFileError",
    "CommandFailed",
    "CommandNotRunnable",
    "CommandTimeout",
    "FatalWorkerError",
    "FfmpegStitcher",
    "HttpAdapter",
    "JobError",
    "LocalAdapter",
    "RemuxStitcher",
    "RenderFarmError",
    "SetupError",
    "StitchInputError",
    "StitchReport",
    "StorageError",
    "StorageRefused",
    "VideoStitcher",
    "WorkPoolAdapter",
    "WorkStopped",
    "WorkerAdapter",
    "WorkerError",
    "WorkerJob",
    "WorkerLost",
    "WorkerRefused",
    "WorkerResult",
]
