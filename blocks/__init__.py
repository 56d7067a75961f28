"""Prefect blocks of the render farm: where chunks run, and how a film is assembled."""

from prefect_renderfarm.blocks.adapters.aws_lambda import AwsLambdaAdapter
from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.adapters.http import HttpAdapter
from prefect_renderfarm.blocks.adapters.local import LocalAdapter
from prefect_renderfarm.blocks.adapters.work_pool import WorkPoolAdapter
from prefect_renderfarm.blocks.command import WorkerJob, WorkerResult
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
from prefect_renderfarm.blocks.stitchers.base import StitchReport, VideoStitcher
from prefect_renderfarm.blocks.stitchers.ffmpeg import FfmpegStitcher
from prefect_renderfarm.blocks.stitchers.remux import RemuxStitcher

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
