"""A render farm on this machine: a Prefect server, the pools `cloud` and `local`, their workers.

    python -m prefect_renderfarm.deployments.farm up [--port PORT] [--api-url URL] [--state FOLDER]
    python -m prefect_renderfarm.deployments.farm down [--state FOLDER]

All state is in the state folder, by default `.farm` in the current folder; nothing is written to
the user's home or Prefect profile. The server's database is SQLite in that folder, or the one of
PREFECT_SERVER_DATABASE_CONNECTION_URL, which is read from the environment because it holds a
password.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from prefect_renderfarm.deployments import FILES

POOLS = ("cloud", "local")
PREFECT = [sys.executable, "-m", "prefect"]
_SERVER = [sys.executable, "-m", "prefect_renderfarm.deployments.server"]
_DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
_CREDENTIALS = ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING")
_DEFAULT_PORT = 4200
_START_SECONDS = 180.0
_KILL_AFTER_SECONDS = 15.0


class Farm:
    """The farm whose state is in one folder."""

    def __init__(self, state: Path) -> None:
        self.state = state.absolute()
        self._processes = ProcessFile(self.state / "processes.json")
        self._address = self.state / "address.json"

    @property
    def api_url(self) -> str:
        """The address of the server's API."""
        return str(json.loads(self._address.read_text(encoding="utf-8"))["api_url"])

    def process(self, name: str) -> psutil.Process:
        """Return the running process `server`, `worker-cloud` or `worker-local`."""
        process = self._processes.find(name)
        if process is None:
            raise SystemExit(f"{name} is not running: see {self.state}")
        return process

    def running(self) -> bool:
        """Return whether the server answers and the workers run."""
        return (
            self._address.exists()
            and all(self._processes.find(f"worker-{pool}") for pool in POOLS)
            and _answers(self.api_url)
        )

    def environment(self) -> dict[str, str]:
        """Return the environment in which `prefect` commands use this farm."""
        own_server = self._processes.find("server") is not None
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("PREFECT_") or (name in _CREDENTIALS and not own_server)
        }
        path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
        return kept | {
            "PATH": path,
            "PREFECT_API_URL": self.api_url,
            "PREFECT_HOME": str(self.state / "prefect"),
            "PREFECT_CLI_PROMPT": "false",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # Labels for traces that nobody collects cost each run a request.
            "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
        }

    def up(self, *, port: int | None = None, api_url: str | None = None) -> None:
        """Start what is not running, then save the blocks and the deployments."""
        self.state.mkdir(parents=True, exist_ok=True)
        if api_url:
            if not _answers(api_url):
                raise SystemExit(f"no Prefect server answers at {api_url}")
            self._write_address(api_url)
        else:
            if not self._processes.find("server"):
                self._start_server(_free_port(port))
            self._wait("server", lambda: _answers(self.api_url))
        for pool in POOLS:
            self._create_pool(pool)
            self._start_worker(pool)
        self._create_automations()
        self._deploy()
        for pool in POOLS:
            self._wait(f"worker-{pool}", partial(self._is_ready, pool))

    def down(self) -> list[str]:
        """Stop exactly what `up` started; return the names of what was running."""
        return self._processes.stop_all()

    def _write_address(self, api_url: str) -> None:
        self._address.write_text(json.dumps({"api_url": api_url}), encoding="utf-8")

    def _start_server(self, port: int) -> None:
        self._write_address(f"http://127.0.0.1:{port}/api")
        variables = {
            "PREFECT_SERVER_UI_API_URL": self.api_url,
            # By default the server needs 41 s of CPU time to record 1,000 task runs; so, 7 s.
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
        }
        if _DATABASE in os.environ:  # only the server's own environment has the password
            variables[_DATABASE] = os.environ[_DATABASE]
        command = [*_SERVER, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        self._start("server", self.state, command, variables)

    def _start_worker(self, pool: str) -> None:
        name = f"worker-{pool}"
        if self._processes.find(name):
            return
        variables = {
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
        }
        command = [*PREFECT, "worker", "start", "--pool", pool, "--type", "process",
                   "--name", f"{pool}-1", "--install-policy", "never"]  # fmt: skip
        self._start(name, self.state / pool, command, variables)

    def _start(
        self, name: str, folder: Path, command: list[str], variables: dict[str, str]
    ) -> None:
        log, environment = self.state / f"{name}.log", self.environment() | variables
        self._processes.start(name, command, cwd=folder, log=log, environment=environment)

    def _create_pool(self, pool: str) -> None:
        """Create a pool whose runs work in a folder of the farm that outlasts them."""
        if _ask(f"{self.api_url}/work_pools/{pool}") is not None:
            return
        template = json.loads((FILES / "pools" / "process.json").read_text(encoding="utf-8"))
        properties = template["variables"]["properties"]
        properties["working_dir"]["default"] = str(self.state / pool)
        properties["command"]["default"] = None  # each deployment has its own
        body = {"name": pool, "type": "process", "base_job_template": template}
        if _ask(f"{self.api_url}/work_pools/", body) is None:
            raise SystemExit(f"cannot create work pool {pool!r} at {self.api_url}")

    def _create_automations(self) -> None:
        """Create the automations of the file that are not there; others stay, on or off."""
        file = FILES / "automations.yaml"
        wanted = yaml.safe_load(file.read_text(encoding="utf-8"))["automations"]
        names = {"automations": {"name": {"any_": [item["name"] for item in wanted]}}}
        found = _ask(f"{self.api_url}/automations/filter", names)
        known = {item["name"] for item in found or []}
        for item in [item for item in wanted if item["name"] not in known]:
            if found is None or _ask(f"{self.api_url}/automations/", item) is None:
                raise SystemExit(f"cannot create automation {item['name']!r} at {self.api_url}")

    def _is_ready(self, pool: str) -> bool:
        found = _ask(f"{self.api_url}/work_pools/{pool}")
        return found is not None and found["status"] == "READY"

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        """Wait until a process does its work, as long as it runs."""
        deadline = time.monotonic() + _START_SECONDS
        while not ready():
            if time.monotonic() > deadline or not self._processes.find(name):
                log = self.state / f"{name}.log"
                raise SystemExit(f"the process {name!r} did not start: see {log}")
            time.sleep(0.2)

    def _deploy(self) -> None:
        """Save the sample blocks and the deployments, in one process: it spends 6 s on imports."""
        command = [
            *(sys.executable, "-m", "prefect_renderfarm.deployments.sample_blocks"),
            *("--no-prompt", "deploy", "--all", "--prefect-file", str(FILES / "prefect.yaml")),
        ]
        done = subprocess.run(
            command, cwd=self.state, env=self.environment(), text=True, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}")


class ProcessFile:
    """A file that records running processes: `{name: [pid, start time]}`.

    They outlive the command that started them. A process is known by its id and its start time: a
    stale record never ends another process that has the same id now.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self, name: str) -> psutil.Process | None:
        """Return the process that was started under this name, if it still runs."""
        pid, started = self._read().get(name, (-1, 0.0))
        with suppress(psutil.NoSuchProcess, ValueError):
            process = psutil.Process(pid)
            if process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def start(
        self, name: str, arguments: list[str], *, cwd: Path, log: Path, environment: dict[str, str]
    ) -> None:
        """Start a process in a session of its own; its output is appended to a log file."""
        cwd.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                arguments, cwd=cwd, env=environment, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        started = psutil.Process(process.pid).create_time()
        self._path.write_text(json.dumps(self._read() | {name: (process.pid, started)}, indent=1))

    def stop_all(self) -> list[str]:
        """End all processes and their children; return the names of those that were running.

        The processes get SIGTERM, the last that was started first, and SIGKILL after 15 s.
        """
        names = reversed(self._read())
        running = {name: process for name in names if (process := self.find(name))}
        roots = list(running.values())
        trees = [*roots, *_children(roots)]
        for root in roots:
            with suppress(psutil.NoSuchProcess):
                root.terminate()
        psutil.wait_procs(roots, timeout=_KILL_AFTER_SECONDS)
        trees += _children(roots)
        for process in trees:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(trees, timeout=_KILL_AFTER_SECONDS)
        self._path.unlink(missing_ok=True)
        return list(running)

    def _read(self) -> dict[str, tuple[int, float]]:
        try:
            data = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        return {name: (pid, started) for name, (pid, started) in data.items()}


def _children(roots: Sequence[psutil.Process]) -> list[psutil.Process]:
    found = []
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            found += root.children(recursive=True)
    return found


def _free_port(wanted: int | None) -> int:
    """Return the wanted port; if none is wanted, Prefect's usual one, or else any free one."""
    for port in (_DEFAULT_PORT, 0) if wanted is None else (wanted,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SystemExit(f"port {wanted} is in use: name another, or none")


def _ask(url: str, body: dict[str, Any] | None = None) -> Any:
    """Return the API's answer to a GET, or to a POST of a body; None: there is no such answer."""
    key, user = (os.environ.get(name, "") for name in _CREDENTIALS)
    auth = None if key or not user else httpx.BasicAuth(*user.split(":", 1))
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    method = "GET" if body is None else "POST"
    try:
        answer = httpx.request(method, url, json=body, headers=headers, auth=auth, timeout=5)
        return answer.json() if answer.is_success else None
    except (httpx.HTTPError, ValueError):
        return None


def _answers(api_url: str) -> bool:
    return _ask(f"{api_url}/health") is True


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("up", "down"))
    parser.add_argument("--state", type=Path, default=Path(".farm"), help="state folder")
    parser.add_argument("--port", type=int, help="the server's port; default: 4200, else any free")
    parser.add_argument("--api-url", help="use this Prefect server instead of starting one")
    options = parser.parse_args()
    farm = Farm(options.state)
    if options.command == "down":
        print("stopped:", ", ".join(farm.down()) or "nothing was running")
        return
    farm.up(port=options.port, api_url=options.api_url)
    print(f"UI:  {farm.api_url.removesuffix('/api')}")
    print("To use it from this shell:")
    print(f"  export PREFECT_API_URL={farm.api_url}")


if __name__ == "__main__":
    main()
