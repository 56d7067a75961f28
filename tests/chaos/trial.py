"""One trial: a job, a fault at a random moment, and runs of the job until it is done."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from signal import SIGKILL, SIGTERM
from typing import Any

import psutil
from farm_client import FarmClient
from faulty_proxy import FaultyProxy, faulty_proxy
from http_samples import HttpWorker
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from storage_samples import S3Server

from chaos.coordinator import Coordinator
from chaos.faults import KINDS, Scene
from chaos.remains import is_part_of, words
from chaos.watch import Watch
from chaos.work import CHUNKS, Clips, Work
from prefect_renderfarm.blocks import WorkPoolAdapter

_SAVED = "chaos"
# A run that takes longer than this is stuck: it is ended as a user would, and counted. A merge run
# that its worker took and never began is replaced after 300 s.
_MOST_SECONDS = 420.0
_MOST_RUNS = 6
_GRACE_SECONDS = 20.0


@dataclass
class Outcome:
    """What a trial came to.

    Attributes:
        kind: The kind of fault.
        title: The job's title.
        faults: How often it struck a job that was running.
        runs: How often the job was run until it was done.
        rendered_again: Chunks that were begun again before they were published.
        paid_twice: Chunks that were begun again after they had been published.
        lost: Chunks that are not done in the end.
        films: Number of files that were seen under the film's name.
        broken: Files under the film's name that were no whole film.
        stuck: Runs that did not end, and were ended.
        failed: Runs that failed though nothing was done to them.
        left: Processes that were left over.
        done: Whether the film is there, exact.
    """

    kind: str
    title: str
    faults: int = 0
    runs: int = 0
    rendered_again: int = 0
    paid_twice: list[int] = field(default_factory=list)
    lost: int = 0
    films: int = 0
    broken: list[str] = field(default_factory=list)
    stuck: int = 0
    failed: int = 0
    left: list[str] = field(default_factory=list)
    done: bool = False

    @property
    def wrong(self) -> bool:
        """Whether a promise was broken."""
        bad = self.paid_twice or self.lost or self.broken or self.failed or self.left
        return bool(bad) or not self.done


class Stage:
    """What all trials share: the farm, the storage, the clips, the folder.

    Args:
        api: The farm.
        s3: The S3 server.
        worker: An HTTP worker.
        folder: The folder for all jobs.
        seed: Decides what happens.
    """

    def __init__(
        self, api: FarmClient, s3: S3Server, worker: HttpWorker, folder: Path, seed: int
    ) -> None:
        self.api = api
        self.folder = folder
        self.seed = seed
        self._s3 = s3
        self._clips = Clips.make(folder / "clips")
        self._bucket = s3.new_bucket()
        self._bucket.save(_SAVED, overwrite=True)
        pool = WorkPoolAdapter(max_runs=2, chunks_per_run=3, poll_seconds=0.2)
        pool.save(_SAVED, overwrite=True)
        worker.adapter(concurrency_limit=_SAVED).save(_SAVED, overwrite=True)
        with SyncPrefectClient(api.farm.api_url) as client:
            limit = GlobalConcurrencyLimitCreate(name=_SAVED, limit=1)
            client.create_global_concurrency_limit(limit)
        Coordinator.prepare()

    def run(self, kind: str, number: int) -> Outcome:
        """Do one trial."""
        chance = Random(f"{self.seed} {kind} {number}")  # noqa: S311
        outcome = Outcome(kind, f"{kind}-{number:03d}")
        # A run on a work pool costs seconds of CPU time to start, so most jobs have none.
        share = {"worker": 0.5, "coordinator": 0.05}.get(kind, 0.0)
        deployed = chance.random()
        batches = kind in ("batch", "suspended") or deployed < share
        merge = kind == "merge" or deployed > 1 - share
        stored = kind in ("storage", "slot") or chance.random() < 0.3
        pause = 0.15 if not (batches or merge) else 0.4
        work = Work.make(self._clips, self.folder / outcome.title, pause)
        delivered = stored and chance.random() < 0.3
        film = f"storage:films/{outcome.title}.mp4" if delivered else "film.mp4"
        if not delivered and chance.random() < 0.5:
            (work.folder / film).write_bytes(self._clips.old)
        parameters: dict[str, Any] = {
            "job": work.job.to_json(),
            "job_dir": work.folder,
            "adapter": f"work-pool-adapter/{_SAVED}" if batches else "local-adapter/default",
            "stitcher": "remux-stitcher/default",
            "output_file": film,
            "merge_deployment": "merge-job/local" if merge else None,
            "merge_lead": 5,
            "concurrency": 2,
            "retries": chance.choice((0, 2)),
            "retry_delay": 0.2,
        }
        if kind == "slot":
            parameters["adapter"] = f"http-adapter/{_SAVED}"
        if stored and kind != "storage":
            parameters["storage"] = f"s3-bucket/{_SAVED}"
        watch = Watch(work, self._bucket if stored else None, film)
        with watch.watching(), ExitStack() as stack:
            server = self.api.farm.api_url.removesuffix("/api")
            target = {"storage": self._s3.url, "requests": server}.get(kind)
            proxy = stack.enter_context(faulty_proxy(target)) if target else None
            self._run_until_done(outcome, work, watch, parameters, proxy, chance)
            watch.look()
        outcome.rendered_again = sum(work.rendered().values()) - CHUNKS
        outcome.paid_twice = watch.rendered_again()
        outcome.rendered_again -= len(outcome.paid_twice)
        outcome.lost, outcome.films, outcome.broken = watch.lost(), watch.films, watch.broken
        outcome.done = watch.has_new_film()
        return outcome

    def _run_until_done(
        self,
        outcome: Outcome,
        work: Work,
        watch: Watch,
        parameters: dict[str, Any],
        proxy: FaultyProxy | None,
        chance: Random,
    ) -> None:
        storage, api_url = None, self.api.farm.api_url
        if proxy is not None and outcome.kind == "requests":
            api_url = f"{proxy.url}/api"
        elif proxy is not None:
            storage = replace(self._s3, port=proxy.port), self._bucket.bucket_name
        children: set[psutil.Process] = set()
        faults = chance.choices((1, 2), (3, 1))[0]
        while outcome.runs < _MOST_RUNS:
            outcome.runs += 1
            run = Coordinator(parameters, storage, api_url, work.folder / "log.txt")
            struck = False
            if outcome.runs <= faults:
                scene = Scene(self.api, run, work, watch.lost(), chance, proxy)
                struck = KINDS[outcome.kind](scene)
                outcome.faults += struck
            code = run.wait(_MOST_SECONDS)
            if code is None:
                outcome.stuck += 1
                run.kill(SIGTERM)
                run.wait(20)
                run.kill(SIGKILL)
                run.wait(20)
            children |= run.children
            if code == 0:
                break
            outcome.failed += not struck and code is not None
        # Flow runs on a work pool may outlast their job for a while; see `Remains`.
        ours = [child for child in children if is_part_of(child, self.folder)]
        _, left = psutil.wait_procs(ours, timeout=_GRACE_SECONDS)
        outcome.left += [words(process) for process in left]
