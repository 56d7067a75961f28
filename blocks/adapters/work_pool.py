"""Chunks as flow runs on any Prefect work pool."""

from __future__ import annotations

from typing import Any, ClassVar

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from pydantic import Field

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.command import WorkerJob, WorkerResult
from prefect_renderfarm.blocks.errors import SetupError
from prefect_renderfarm.blocks.runtime.prefect_api import find_deployment

FLOW = "render-chunks"
# The fields of a saved adapter that determine the pictures of a command.
_DIGEST_FIELDS = ("environment", "pass_variables", "ffmpeg")
# A run is lost that finishes no chunk for this many times as long as the longest chunk took ...
_LOST_FACTOR = 10.0
# ... and at least this: machines take their time to start, and the first chunk to load.
_MIN_LOST_SECONDS = 600.0


class WorkPoolAdapter(WorkerAdapter):
    """Run a job's chunks in batches, as flow runs of `render-chunks` on any Prefect work pool.

    It runs no merge commands: a flow run elsewhere begins in an empty folder, and a merge command
    needs all chunks in one. Use a stitcher, or name a merge adapter.

    Example:
        Load a saved adapter and render with it:
        ```python
        from prefect_renderfarm.blocks import WorkPoolAdapter
        from prefect_renderfarm.flows import render_job

        adapter = WorkPoolAdapter.load("BLOCK_NAME")
        render_job("/renders/film.json", adapter=adapter, storage="s3-bucket/renders")
        ```
    """

    _block_type_name = "Work Pool Adapter"
    _block_type_slug = "work-pool-adapter"
    _description = (
        "Render chunks in batches, as flow runs on any Prefect work pool: "
        "Docker, Kubernetes, ECS, Cloud Run, or processes."
    )
    runs_commands: ClassVar[bool] = False

    deployment: str = Field(default=f"{FLOW}/cloud", title="Deployment")
    """The deployment of the flow render-chunks that renders the batches."""
    worker_adapter: str = Field(default="local-adapter/default", title="Adapter of the runs")
    """The saved adapter, type-slug/name, with which a run renders its chunks."""
    max_runs: int = Field(default=10, ge=1, title="Most runs at once")
    """Number of flow runs at once. A run that is about to end has its successor started beside it,
    so that the start of a machine is not waited for; a hard limit is that of the work pool."""
    chunks_at_once: int = Field(default=1, ge=1, title="Chunks at once in a run")
    """Number of chunks that a run renders at once on its machine."""
    chunks_per_run: int | None = Field(default=None, ge=1, title="Chunks in a run")
    """Number of chunks in a batch. Empty: as many as fit the length of a batch."""
    target_minutes: float = Field(default=5.0, gt=0, title="Length of a batch")
    """Planned minutes of a batch, estimated from finished chunks. The start of a machine should be
    a small part of it."""
    lost_after: float | None = Field(default=None, gt=0, title="Lost after")
    """Seconds without a finished chunk after which a run counts as lost: it is cancelled, and its
    unfinished chunks are rendered by another run. Empty: 10 times as long as the longest finished
    chunk took, at least 600 s. A machine has 600 s to start in any case."""
    job_variables: dict[str, Any] = Field(default={}, title="Job variables")
    """Job variables that differ from the deployment's: image, cpu, memory. Not for secrets: Prefect
    shows them with each run."""
    poll_seconds: float = Field(default=1.0, gt=0, title="Poll interval")
    """Seconds between two checks of the runs and of finished chunks."""

    def check(self) -> None:
        """Refuse a block whose deployment or adapter does not exist. See `WorkerAdapter`."""
        find_deployment(self.deployment, FLOW, "deployment", f"{FLOW}/cloud")
        slug, _, document = self.worker_adapter.partition("/")
        if slug == self.get_block_type_slug():
            raise SetupError(
                f"worker_adapter {self.worker_adapter!r} is a work pool adapter itself: name one "
                "that runs commands on the machines of the pool, such as 'local-adapter/default'"
            )
        try:
            with get_client(sync_client=True) as client:
                client.read_block_document_by_name(document, slug)
        except ObjectNotFound:
            raise SetupError(
                f"worker_adapter {self.worker_adapter!r}: no such block is saved on the server; "
                "see `prefect block ls`"
            ) from None

    def digest_inputs(self) -> dict[str, Any]:
        """Return the image and variables of the runs, and the digest inputs of their adapter."""
        slug, _, name = self.worker_adapter.partition("/")
        with get_client(sync_client=True) as client:
            deployed = client.read_deployment_by_name(self.deployment).job_variables or {}
            adapter = client.read_block_document_by_name(name, slug).data
        variables = deployed | self.job_variables
        return {
            "runs": {key: variables[key] for key in ("image", "env") if variables.get(key)},
            "adapter": {key: adapter[key] for key in _DIGEST_FIELDS if adapter.get(key)},
        }

    def default_concurrency(self) -> int:
        """Return how many chunks all runs render at once."""
        return self.max_runs * self.chunks_at_once

    def execute(self, job: WorkerJob) -> WorkerResult:
        """Refuse a single command: a flow run elsewhere would not see its folder."""
        raise SetupError(
            f"{job.name}: a work pool adapter runs chunks in batches, and no single commands: "
            "name a merge_adapter, such as 'local-adapter/default', or a stitcher"
        )

    def lost_seconds(self, longest_chunk: float | None, *, starting: bool) -> float | None:
        """Return the seconds without a finished chunk after which a run is lost; None: unknown.

        `starting`: a worker has taken the run, but its machine has not started yet.
        """
        if starting:
            return max(self.lost_after or 0.0, _MIN_LOST_SECONDS)
        if self.lost_after is not None or longest_chunk is None:
            return self.lost_after
        return max(_LOST_FACTOR * longest_chunk, _MIN_LOST_SECONDS)
