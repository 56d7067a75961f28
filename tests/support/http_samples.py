"""A real HTTP worker for the tests, in a process of its own, and adapters that point at it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import httpx
from pydantic import SecretStr
from repository import ROOT

from prefect_renderfarm.blocks import HttpAdapter, WorkerJob, WorkerResult

SERVER = ROOT / "deployments" / "http" / "server.py"
TOKEN = "t0ken-of-the-worker"  # noqa: S105


@dataclass(frozen=True)
class HttpWorker:
    """A worker's process and where it listens."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        """The address of the worker."""
        return f"http://127.0.0.1:{self.port}"

    def adapter(self, **fields: Any) -> HttpAdapter:
        """Return an adapter that it lets in."""
        given: dict[str, Any] = {"url": self.url, "token": SecretStr(TOKEN)}
        return HttpAdapter(**(given | fields))

    def health(self) -> dict[str, Any]:
        """Return what it says of itself; `running` is the number of its commands."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answer: dict[str, Any] = httpx.get(f"{self.url}/health", headers=headers).json()
        return answer

    def wait_until_ready(self) -> HttpWorker:
        """Wait until it answers, and return it."""
        deadline = time.monotonic() + 60
        while True:
            assert self.process.poll() is None, "the worker ended"
            try:
                httpx.get(f"{self.url}/live").raise_for_status()
            except httpx.TransportError:
                assert time.monotonic() < deadline, "the worker does not answer"
                time.sleep(0.1)
            else:
                return self


@contextmanager
def working(
    environment: Mapping[str, str] | None = None, log: IO[bytes] | None = None
) -> Iterator[HttpWorker]:
    """Start a worker, which is ready some seconds later; kill it afterwards.

    Args:
        environment: Its variables, on top of the usual ones.
        log: Takes its output; None: it goes where this process' output goes.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    given = {
        "RENDERFARM_TOKEN": TOKEN,
        "RENDERFARM_GRACE": "1",
        "RENDERFARM_BODY_LIMIT": "20000",
        "HOST": "127.0.0.1",
        "PORT": str(port),
    } | dict(environment or {})
    process = subprocess.Popen(
        [sys.executable, SERVER], env=os.environ | given, stdout=log, stderr=log
    )
    try:
        yield HttpWorker(process, int(given["PORT"]))
    finally:
        process.kill()
        process.wait()


class Running:
    """A command that an adapter executes in a thread."""

    def __init__(self, adapter: HttpAdapter, job: WorkerJob) -> None:
        self.job = job
        self.outcome: WorkerResult | Exception | None = None
        self._adapter = adapter
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.outcome = self._adapter.execute(self.job)
        except Exception as error:
            self.outcome = error

    def end(self, seconds: float) -> WorkerResult | Exception | None:
        """Return how it ended; fail if it does not within a time."""
        self._thread.join(seconds)
        assert not self._thread.is_alive()
        return self.outcome
