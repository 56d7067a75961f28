"""A render farm on this machine: a Prefect server, the pools `cloud` and `local`, their workers.

All state is in the state folder, by default `.farm` in the current folder; nothing is written to
the user's home or Prefect profile. The server's database is SQLite in that folder, or the one of
PREFECT_SERVER_DATABASE_CONNECTION_URL, which is read from the environment because it holds a
password.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
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

POOLS = ("cloud", "local")
PREFECT = [sys.executable, "-m", "prefect"]
_SERVER = [sys.executable, "-m", "prefect_renderfarm.deployments.server"]
_KEY, _USER = "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"
_SERVER_USER = "PREFECT_SERVER_API_AUTH_STRING"
_CERTIFICATES = "PREFECT_API_SSL_CERT_FILE"
# How a server is reached; all other PREFECT_ variables of the caller belong to another farm.
_REACHING = (_USER, _CERTIFICATES, "PREFECT_API_TLS_INSECURE_SKIP_VERIFY",
             "PREFECT_CLIENT_CUSTOM_HEADERS")  # fmt: skip
_LEASES = "prefect.server.concurrency.lease_storage.filesystem"
_DEFAULT_PORT = 4200
_START_SECONDS = 180.0
_KILL_AFTER_SECONDS = 15.0
_TELL_SECONDS = 4.0  # between two lines of a long wait
_LAST_LINES = 15
# So that the server answers while all processors render; their programs inherit it.
_WORKER_NICENESS = 5


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
        reaching = _REACHING if own_server else (*_REACHING, _KEY)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("PREFECT_") or name in reaching
        }
        if own_server and (user := os.environ.get(_SERVER_USER)):
            kept[_USER] = user
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
        """Start what is not running, save blocks and deployments, and print what is awaited."""
        self.state.mkdir(parents=True, exist_ok=True)
        if api_url:
            try:
                # A cheap question that asks for the user, as a health check does not.
                _request(f"{api_url}/flows/count", "POST")
            except (httpx.HTTPError, OSError) as error:
                raise SystemExit(no_answer(api_url, error)) from None
            self._write_address(api_url)
        elif not self._processes.find("server"):
            self._start_server(_free_port(port))
        # In a process of its own, which imports Prefect while the server starts.
        command = [sys.executable, "-m", "prefect_renderfarm.deployments.deploy", str(self.state)]
        with (self.state / "deploy.log").open("wb") as output, subprocess.Popen(
            command, cwd=self.state, env=self.environment(), stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT,
        ) as deploying:  # fmt: skip
            try:
                if not api_url:
                    self._wait("server", lambda: _answers(self.api_url))
                for pool in POOLS:
                    self._wait(f"work pool {pool}", partial(self._has_pool, pool), deploying)
                    self._start_worker(pool)
                self._wait("deployments", lambda: deploying.poll() == 0, deploying)
            finally:
                deploying.kill()  # it would wait for ever for a server that did not start
        for pool in POOLS:
            self._wait(f"worker-{pool}", partial(self._has_pool, pool, "READY"))

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
            # By default in memory: a server that is started again never frees the slots of a limit.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": _LEASES,
        }
        # Only the server has these: the database's address holds a password.
        variables |= {
            name: value for name, value in os.environ.items() if name.startswith("PREFECT_SERVER_")
        }
        command = [*_SERVER, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        self._processes.start("server", command, self.state, self.environment() | variables)

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
        environment = self.environment() | variables
        worker = self._processes.start(name, command, self.state / pool, environment)
        worker.nice(_WORKER_NICENESS)

    def _has_pool(self, pool: str, status: str | None = None) -> bool:
        """Return whether a pool is there, in a status if one is named."""
        found = _ask(f"{self.api_url}/work_pools/{pool}")
        return found is not None and status in (None, found["status"])

    def _wait(
        self, what: str, ready: Callable[[], bool], deploying: subprocess.Popen[bytes] | None = None
    ) -> None:
        """Wait until something is there, as long as the process runs that makes it."""
        began = told = time.monotonic()
        while not ready():
            now = time.monotonic()
            lost = self._processes.find(what) is None if deploying is None else deploying.poll()
            if now - began > _START_SECONDS or lost:
                log = self.state / f"{'deploy' if deploying else what}.log"
                last = "\n".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:])
                raise SystemExit(f"{what} did not start; the end of {log}:\n{last}")
            if now - told > _TELL_SECONDS:
                told = now
                print(f"waiting for {what}: {now - began:.0f} s", flush=True)
            time.sleep(0.2)
        print(f"{what}: ready", flush=True)


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
        self, name: str, arguments: list[str], cwd: Path, environment: dict[str, str]
    ) -> psutil.Process:
        """Start a process in a session of its own; its output is appended to `NAME.log`."""
        cwd.mkdir(parents=True, exist_ok=True)
        with self._path.with_name(f"{name}.log").open("ab") as output:
            process = psutil.Popen(
                arguments, cwd=cwd, env=environment, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        started = process.create_time()
        self._path.write_text(json.dumps(self._read() | {name: (process.pid, started)}, indent=1))
        return process

    def stop_all(self) -> list[str]:
        """End all processes and their children; return the names of those that were running.

        The processes get SIGTERM, the last that was started first, and SIGKILL after 15 s.
        """
        running = {name: process for name in reversed(self._read()) if (process := self.find(name))}
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
        return json.loads(self._path.read_text()) if self._path.exists() else {}


def _children(roots: Sequence[psutil.Process]) -> list[psutil.Process]:
    found = []
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            found += root.children(recursive=True)
    return found


def _free_port(wanted: int | None) -> int:
    """Return the wanted port; if none is wanted, Prefect's usual one, or else any free one."""
    for port in (_DEFAULT_PORT, 0) if wanted is None else (wanted,):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)) as probe:
            return int(probe.getsockname()[1])
    raise SystemExit(f"port {wanted} is in use: name another, or none")


def _request(url: str, method: str = "GET") -> httpx.Response:
    """Return the API's answer. Raises httpx.HTTPError, OSError."""
    key, user = os.environ.get(_KEY, ""), os.environ.get(_SERVER_USER) or os.environ.get(_USER, "")
    auth = None if key or not user else httpx.BasicAuth(*user.split(":", 1))
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    known = ssl.create_default_context(cafile=os.environ.get(_CERTIFICATES))
    answer = httpx.request(method, url, headers=headers, auth=auth, timeout=5, verify=known)
    return answer.raise_for_status()


def no_answer(api_url: str, error: Exception) -> str:
    """Say why a server does not answer, and what to do."""
    why = str(error) or type(error).__name__
    if isinstance(error, httpx.HTTPStatusError):
        why = f"it answers {error.response.status_code}"
        if error.response.status_code in (401, 403):
            why += f": give {_USER} (user:password), or {_KEY}"
        elif error.response.status_code == 404:
            why += ": the address ends with /api, behind the server's path if it has one"
    elif "CERTIFICATE_VERIFY_FAILED" in why:
        why = f"its certificate is of no known authority: give {_CERTIFICATES}"
    return f"the Prefect server at {api_url} cannot be used: {why}"


def _ask(url: str) -> Any:
    """Return the API's answer to a GET; None: there is no such answer."""
    try:
        return _request(url).json()
    except (httpx.HTTPError, OSError, ValueError):
        return None


def _answers(api_url: str) -> bool:
    return _ask(f"{api_url}/health") is True
