"""Prefect blocks of the render farm: where chunks run, and how a film is put together."""

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
from prefect_renderfarm.blocks.local_adapter import LocalAdapter
from prefect_renderfarm.blocks.remux_stitcher import RemuxStitcher
from prefect_renderfarm.blocks.video_stitcher import StitchReport, VideoStitcher
from prefect_renderfarm.blocks.worker_adapter import WorkerAdapter
from prefect_renderfarm.blocks.worker_job import WorkerJob, WorkerResult

__all__ = [
    "AssemblyError",
    "ChunkFileError",
    "CommandFailed",
    "CommandNotRunnable",
    "CommandTimeout",
    "FatalWorkerError",
    "FfmpegStitcher",
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
    "WorkStopped",
    "WorkerAdapter",
    "WorkerError",
    "WorkerJob",
    "WorkerLost",
    "WorkerRefused",
    "WorkerResult",
]
