"""What is left over of jobs that have ended: processes, and flow runs that are not final."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import psutil
from farm_client import FarmClient

from prefect_renderfarm.deployments.farm import POOLS

_OPEN = ["SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING"]


class Remains:
    """Tells what is left over of all that began since this object was made.

    Args:
        api: The farm.
        folder: The folder of all jobs.
    """

    def __init__(self, api: FarmClient, folder: Path) -> None:
        self._api = api
        self._folder = folder
        self._processes = self._find_processes()
        self._runs = self._find_runs().keys()

    def processes(self, seconds: float) -> list[str]:
        """Return the command lines of processes that are left after so many seconds."""
        deadline = time.monotonic() + seconds
        while (left := self._find_processes() - self._processes) and time.monotonic() < deadline:
            time.sleep(1)
        return [words(process) for process in left]

    def runs(self, seconds: float) -> list[str]:
        """Return the names and states of runs that are not final after so many seconds."""
        deadline = time.monotonic() + seconds
        while (left := self._left_runs()) and time.monotonic() < deadline:
            time.sleep(1)
        return left

    def _left_runs(self) -> list[str]:
        return [text for run, text in self._find_runs().items() if run not in self._runs]

    def _find_runs(self) -> dict[str, str]:
        body = {"flow_runs": {"state": {"type": {"any_": _OPEN}}}}
        found = self._api._post("/flow_runs/filter", body)
        return {item["id"]: f"{item['name']} ({item['state_name']})" for item in found}

    def _find_processes(self) -> set[psutil.Process]:
        """Find what works for the farm, but the farm itself and this process."""
        server = self._api.farm.process("server")
        known = {server, *server.children(recursive=True), psutil.Process()}
        known |= {self._api.farm.process(f"worker-{pool}") for pool in POOLS}
        return {
            process
            for process in psutil.process_iter()
            if process not in known and self._is_ours(process)
        }

    def _is_ours(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            url = process.environ().get("PREFECT_API_URL")
            return str(self._folder) in words(process) or url == self._api.farm.api_url
        return False


def is_part_of(process: psutil.Process, folder: Path) -> bool:
    """Return whether a process, a child of a job's, works in its folder, or guards what does."""
    line = words(process)
    return str(folder) in line or "reaper.py" in line


def words(process: psutil.Process) -> str:
    """Return a process' command line; empty if it has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""
