"""Chunks as flow runs on any Prefect work pool."""

from __future__ import annotations

from typing import Any, ClassVar

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from pydantic import Field

from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.command import WorkerJob, WorkerResult
from prefect_renderfarm.blocks.errors import SetupError
from prefect_renderfarm.blocks.runtime.prefect_api import find_deployment, start_run

FLOW = "render-chunks"
# The fields of a saved adapter that decide what a command makes.
_DECLARED = ("environment", "pass_variables", "ffmpeg")
# A run that is silent for this many times as long as the longest chunk took is lost ...
_LOST_FACTOR = 10.0
# ... but never before this: machines take their time to start, and the first chunk to load.
_LEAST_LOST_SECONDS = 600.0


class WorkPoolAdapter(WorkerAdapter):
    """Run a job's chunks in batches, as flow runs of `render-chunks` on any Prefect work pool.

    It does not run merge commands: a flow run elsewhere begins in an empty folder, and a merge
    command needs all chunks in one. Let a stitcher assemble, or name a merge adapter.

    Example:
        Load a saved adapter and render with it:
        ```python
        from prefect_renderfarm.blocks import WorkPoolAdapter
        from prefect_renderfarm.flows import render_job

        adapter = WorkPoolAdapter.load("BLOCK_NAME")
        render_job(
            "/renders/film.json",
            adapter=adapter,
            storage="s3-bucket/renders",
            stitcher="remux-stitcher/default",
            output_file="film.mp4",
        )
        ```
    """

    _block_type_name: ClassVar[str | None] = "Work Pool Adapter"
    _block_type_slug: ClassVar[str | None] = "work-pool-adapter"
    _description: ClassVar[str | None] = (
        "Render chunks in batches, as flow runs on any Prefect work pool: "
        "Docker, Kubernetes, ECS, Cloud Run, or processes."
    )
    runs_commands: ClassVar[bool] = False

    deployment: str = Field(
        default=f"{FLOW}/cloud",
        title="Deployment",
        description="The deployment of the flow render-chunks that renders the batches.",
    )
    worker_adapter: str = Field(
        default="local-adapter/default",
        title="Adapter of the machines",
        description="The saved adapter, type-slug/name, with which a run renders its chunks.",
    )
    max_runs: int = Field(
        default=10, ge=1, title="Most runs at once", description="Flow runs of a job at once."
    )
    chunks_at_once: int = Field(
        default=1,
        ge=1,
        title="Chunks at once in a run",
        description="Number of chunks that a run renders side by side on its machine.",
    )
    chunks_per_run: int | None = Field(
        default=None,
        ge=1,
        title="Chunks in a run",
        description="Number of chunks in a batch. Empty: learned, by the length of a batch.",
    )
    target_minutes: float = Field(
        default=5.0,
        gt=0,
        title="Length of a batch",
        description=(
            "Minutes that a batch is to take, by the time that finished chunks took. "
            "A machine's start should be a small part of it."
        ),
    )
    lost_after: float | None = Field(
        default=None,
        gt=0,
        title="Lost after",
        description=(
            "A run of which no chunk is done for so many seconds is taken for lost and ended; its "
            f"unfinished chunks are given out again. Empty: {_LOST_FACTOR:g} times as long as the "
            f"longest finished chunk took, at least {_LEAST_LOST_SECONDS:g} s. A machine has "
            f"at least {_LEAST_LOST_SECONDS:g} s to start, whatever is set here."
        ),
    )
    job_variables: dict[str, Any] = Field(
        default={},
        title="Job variables",
        description=(
            "What runs have other than their deployment: image, cpu, memory. No place for secrets: "
            "Prefect shows them with each run."
        ),
    )
    poll_seconds: float = Field(
        default=1.0,
        gt=0,
        title="Poll interval",
        description="Seconds between two looks at the runs and at what is done.",
    )

    def check(self) -> None:
        """Refuse a block whose deployment or adapter is not there.

        Raises:
            SetupError: Saying what is wrong and what to do.
        """
        find_deployment(self.deployment, FLOW, "deployment", f"{FLOW}/cloud")
        slug, _, document = self.worker_adapter.partition("/")
        if slug == self.get_block_type_slug():
            raise SetupError(
                f"worker_adapter {self.worker_adapter!r} is a work pool adapter itself: name what "
                "runs commands on the machines of the pool, such as 'local-adapter/default'"
            )
        try:
            with get_client(sync_client=True) as client:
                client.read_block_document_by_name(document, slug)
        except ObjectNotFound:
            raise SetupError(
                f"worker_adapter {self.worker_adapter!r}: no such block is saved on the server; "
                "see `prefect block ls`"
            ) from None

    def declared_environment(self) -> dict[str, Any]:
        """Return the image and variables of the runs, and what their adapter declares."""
        slug, _, name = self.worker_adapter.partition("/")
        with get_client(sync_client=True) as client:
            deployed = client.read_deployment_by_name(self.deployment).job_variables or {}
            adapter = client.read_block_document_by_name(name, slug).data
        variables = deployed | self.job_variables
        return {
            "runs": {key: variables[key] for key in ("image", "env") if variables.get(key)},
            "adapter": {key: adapter[key] for key in _DECLARED if adapter.get(key)},
        }

    def default_concurrency(self) -> int:
        """Return how many chunks all runs together render at once."""
        return self.max_runs * self.chunks_at_once

    def execute(self, job: WorkerJob) -> WorkerResult:
        """Refuse a single command.

        Raises:
            SetupError: Always; a flow run elsewhere would not see the command's folder.
        """
        raise SetupError(
            f"{job.name}: a work pool adapter runs chunks in batches, and no single commands: "
            "name a merge_adapter, such as 'local-adapter/default', or a stitcher"
        )

    def start(
        self, parameters: dict[str, Any], name: str, tags: list[str], key: str | None = None
    ) -> FlowRun:
        """Start a run of the deployment, as a child of the current flow run.

        Args:
            parameters: The parameters of `render_chunks` that tell of the job and its chunks.
            name: The run's name.
            tags: The run's tags.
            key: Asked with the same one again, the server starts no second run.

        Raises:
            SetupError: The server refuses the run.
        """
        given = parameters | {"adapter": self.worker_adapter, "concurrency": self.chunks_at_once}
        return start_run(
            self.deployment, given, name=name, tags=tags, job_variables=self.job_variables,
            idempotency_key=key,
        )  # fmt: skip

    def lost_seconds(self, longest_chunk: float | None, *, starting: bool) -> float | None:
        """Return after how many seconds of silence a run is lost; None: nobody can tell yet.

        Args:
            longest_chunk: Seconds that the longest finished chunk took, if one is finished.
            starting: Whether a worker has taken the run, but its machine is not up yet.
        """
        if starting:
            return max(self.lost_after or 0.0, _LEAST_LOST_SECONDS)
        if self.lost_after is not None or longest_chunk is None:
            return self.lost_after
        return max(_LOST_FACTOR * longest_chunk, _LEAST_LOST_SECONDS)
