"""A run of `render-job` in a process of its own, which can be killed: a fork of one that is warm.

It is a real flow run, called from Python as a user may. A deployed one would spend seconds on its
imports before there is anything to kill.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_aws.s3 import S3Bucket
from storage_samples import S3Server

from prefect_renderfarm.flows import render_job

_FORKS = multiprocessing.get_context("forkserver")


def _in_fork(
    parameters: dict[str, Any], storage: tuple[S3Server, str] | None, api_url: str, log: Path
) -> None:
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 1
    try:
        if storage is not None:
            server, bucket = storage
            block = S3Bucket(bucket_name=bucket, credentials=server.credentials())
            parameters = parameters | {"storage": block}
        with temporary_settings({PREFECT_API_URL: api_url}):
            render_job(**parameters)
        code = 0
    except BaseException:  # a signal's too; the log says what it was
        traceback.print_exc()
    os._exit(code)


class Coordinator:
    """One run of `render-job`.

    Args:
        parameters: Its parameters.
        storage: The server and the bucket of its storage, if that is no saved block.
        api_url: The address of Prefect's API.
        log: The file to which its output is appended.

    Attributes:
        children: Processes that it was seen to have.
    """

    def __init__(
        self,
        parameters: dict[str, Any],
        storage: tuple[S3Server, str] | None,
        api_url: str,
        log: Path,
    ) -> None:
        self.children: set[psutil.Process] = set()
        self._process: BaseProcess = _FORKS.Process(
            target=_in_fork, args=(parameters, storage, api_url, log), daemon=False
        )
        self._process.start()

    @staticmethod
    def prepare() -> None:
        """Start the process from which coordinators are forked, once they are all imported."""
        _FORKS.set_forkserver_preload([__name__])
        before = os.environ.get("PYTHONPATH")
        # Python 3.11 does not tell it the path, and ignores what cannot be imported.
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
        forkserver.ensure_running()
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    def kill(self, number: signal.Signals) -> bool:
        """Send it a signal; return whether it was still running."""
        running = self.running
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            process = psutil.Process(self._process.pid)
            self.children.update(process.children(recursive=True))
            process.send_signal(number)
        return running

    def wait(self, seconds: float) -> int | None:
        """Return its exit code when it has ended; None: it has not, after so many seconds."""
        self._process.join(seconds)
        return self._process.exitcode
