"""What goes wrong: each kind waits for a random moment, then kills its victim."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random

import httpx
import psutil
from farm_client import FarmClient
from faulty_proxy import Answer, Fault, FaultyProxy
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.states import Suspended

from chaos.coordinator import Coordinator
from chaos.work import Work
from prefect_renderfarm.deployments.farm import POOLS, Farm, _answers

_BROKEN_ANSWERS = (
    Fault.DROP_BEFORE,
    Fault.CUT_OFF,
    Fault.DROP_AFTER,
    Answer(500, b"<Error><Code>InternalError</Code></Error>"),
    Answer(503, b"<Error><Code>SlowDown</Code></Error>"),
)
# Requests of an undisturbed job through the storage, about: the fault begins at one of them.
_REQUESTS = 80
_POLL_SECONDS, _LOOK_SECONDS = 0.3, 0.05
# So long after the begin of a chunk it is done or, of the last one, the film is being made.
_MOST_LATE_SECONDS = 2.0


class ChaosFarm(Farm):
    """A farm of which parts are killed and started again."""

    def kill_server(self, number: signal.Signals) -> None:
        """End the server: all of its processes at once."""
        server = self.process("server")
        processes = [*server.children(recursive=True), server]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        _, left = psutil.wait_procs(processes, timeout=10)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)

    def start_server(self) -> None:
        """Start the server on the database and the port that it had."""
        self._start_server(int(self.api_url.removesuffix("/api").rpartition(":")[2]))
        self._wait("server", lambda: _answers(self.api_url))

    def start_worker(self, pool: str) -> None:
        """Start the worker of a pool, if it does not run."""
        self._start_worker(pool)


@dataclass(frozen=True)
class Scene:
    """Where a fault happens.

    Attributes:
        api: The farm.
        run: The coordinator.
        work: The job.
        left: Number of its chunks that are not done yet.
        chance: Chooses the moment and the victim.
        proxy: Between the coordinator and its storage, or Prefect's server, if it has its own.
    """

    api: FarmClient
    run: Coordinator
    work: Work
    left: int
    chance: Random
    proxy: FaultyProxy | None = None

    def number(self) -> signal.Signals:
        """Return the signal with which to end a process: one time in five SIGTERM."""
        return self.chance.choices((signal.SIGKILL, signal.SIGTERM), (4, 1))[0]

    def wait(self, seconds: float) -> bool:
        """Wait, but no longer than the coordinator runs; return whether it still does."""
        self.run.wait(seconds)
        return self.run.running

    def wait_for_a_moment(self) -> bool:
        """Wait until some more chunks are begun, and then a little; return as `wait` does."""
        begun = self.work.rendered().total() + self.chance.randint(0, self.left)
        while self.work.rendered().total() < begun and self.wait(_LOOK_SECONDS):
            pass
        return self.wait(self.chance.uniform(0, _MOST_LATE_SECONDS))

    def victim(self, prefix: str) -> psutil.Process | None:
        """Wait for processes of the job's runs whose name begins so, and choose one."""
        while self.wait(_POLL_SECONDS):
            found = [process for run in self.runs(prefix) if (process := process_of(run))]
            if found:
                return self.chance.choice(found)
        return None

    def runs(self, prefix: str) -> list[FlowRun]:
        """Return the job's runs that are not final, and whose name begins so."""
        body = {"flow_runs": {"tags": {"all_": [f"job:{self.work.job.title}"]}}}
        found: list[FlowRun] = []
        with suppress(httpx.HTTPError):  # a busy server may be late
            answer = self.api._post("/flow_runs/filter", body)
            found = [FlowRun.model_validate(item) for item in answer]
        return [
            run for run in found
            if run.name.startswith(prefix) and run.state and not run.state.is_final()
        ]  # fmt: skip


def process_of(run: FlowRun) -> psutil.Process | None:
    """Return the process of a run that a worker has started; None: there is none now."""
    with suppress(psutil.NoSuchProcess, ValueError):
        process = psutil.Process(int(str(run.infrastructure_pid).rsplit(":", 1)[-1]))
        if process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def kill_coordinator(scene: Scene) -> bool:
    """Kill the process of `render-job`."""
    scene.wait_for_a_moment()
    return scene.run.kill(scene.number())


def kill_batch(scene: Scene) -> bool:
    """Kill the process of one run of `render-chunks`."""
    return _kill(scene, scene.victim("chunk"))


def kill_merge(scene: Scene) -> bool:
    """Kill the process of the run of `merge-job`."""
    return _kill(scene, scene.victim("merge"))


def _kill(scene: Scene, victim: psutil.Process | None) -> bool:
    if victim is None or not scene.wait(scene.chance.uniform(0, _MOST_LATE_SECONDS)):
        return False
    with suppress(psutil.NoSuchProcess):
        scene.run.children.update(victim.children(recursive=True))
        victim.send_signal(scene.number())
        return True
    return False


def kill_worker(scene: Scene) -> bool:
    """Kill a Prefect worker, and start it again."""
    farm = scene.api.farm
    assert isinstance(farm, ChaosFarm)
    running = scene.wait_for_a_moment()
    pool = scene.chance.choice(POOLS)
    worker = farm.process(f"worker-{pool}")
    scene.run.children.update(worker.children(recursive=True))
    worker.send_signal(scene.number())
    psutil.wait_procs([worker], timeout=30)
    with suppress(psutil.NoSuchProcess):
        worker.kill()
    time.sleep(scene.chance.uniform(0, 2))
    farm.start_worker(pool)
    return running


def kill_server(scene: Scene) -> bool:
    """Kill Prefect's server, and start it again on the same database."""
    farm = scene.api.farm
    assert isinstance(farm, ChaosFarm)
    running = scene.wait_for_a_moment()
    farm.kill_server(scene.number())
    time.sleep(scene.chance.uniform(0, 2))
    farm.start_server()
    return running


def fail_storage(scene: Scene) -> bool:
    """Have some requests to the storage fail, one after the other."""
    assert scene.proxy is not None
    before = scene.chance.randrange(_REQUESTS)
    faults = scene.chance.choices(_BROKEN_ANSWERS, k=scene.chance.randint(1, 10))
    scene.proxy.fail(*[None] * before, *faults)
    while scene.wait(_POLL_SECONDS):
        pass
    hit = len(scene.proxy.requests) > before
    scene.proxy.fail()
    return hit


def refuse_requests(scene: Scene) -> bool:
    """Have Prefect's server refuse the coordinator's requests for a while: it makes too many."""
    assert scene.proxy is not None
    running = scene.wait_for_a_moment()
    refused = Answer(429, b"{}", (("Retry-After", "2"), ("Content-Type", "application/json")))
    scene.proxy.gate = lambda _: refused
    scene.wait(scene.chance.uniform(5, 40))
    scene.proxy.gate = None
    return running


def suspend_batch(scene: Scene) -> bool:
    """Suspend a run of `render-chunks`, as a person does, and resume it later."""
    while scene.wait(_POLL_SECONDS):
        running = [run for run in scene.runs("chunk") if run.state and run.state.is_running()]
        if running:
            break
    else:
        return False
    run = scene.chance.choice(running)
    with SyncPrefectClient(scene.api.farm.api_url) as client:
        client.set_flow_run_state(run.id, Suspended(timeout_seconds=3600))
        scene.wait(scene.chance.uniform(0, 20))
        client.resume_flow_run(run.id)  # refused if it has ended all the same
    return True


def lose_slot(scene: Scene) -> bool:
    """Kill the coordinator and Prefect's server at once: nobody gives the limit's slot back."""
    farm = scene.api.farm
    assert isinstance(farm, ChaosFarm)
    scene.wait_for_a_moment()
    running = scene.run.kill(signal.SIGKILL)
    farm.kill_server(signal.SIGKILL)
    farm.start_server()
    return running


KINDS: dict[str, Callable[[Scene], bool]] = {
    "coordinator": kill_coordinator,
    "batch": kill_batch,
    "merge": kill_merge,
    "worker": kill_worker,
    "storage": fail_storage,
    "server": kill_server,
    "requests": refuse_requests,
    "suspended": suspend_batch,
    "slot": lose_slot,
}
