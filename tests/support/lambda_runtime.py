"""Warm instances of Lambda functions: each invocation is a fork in which awslambdaric runs.

    python lambda_runtime.py SOCKET

The bootstrap of a function connects, sends one line of JSON (`environment`, `folder`, `log`), and
waits. Ending the bootstrap ends the instance, as ministack does after each answer and at a time
limit. An instance that ends by itself is reported to the runtime API as AWS does, which ministack
leaves to the runtime. It prints `ready` when it listens.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import boto3  # noqa: F401 -- loaded once, before the forks
from prefect.plugins import load_prefect_collections

import prefect_renderfarm.blocks.adapters.remote  # noqa: F401


def run_function(order: dict[str, Any]) -> None:
    """Be the function's process: what `python -m awslambdaric $_HANDLER` does."""
    os.setsid()
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.ftruncate(log, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.path.insert(0, order["folder"])
    # Only now: it takes the runtime API's address from the environment when it is imported.
    import awslambdaric.__main__ as client
    from awslambdaric.lambda_runtime_client import LambdaRuntimeClient

    freeze_after_one_invocation(LambdaRuntimeClient)
    client.main(["awslambdaric", os.environ["_HANDLER"]])


def freeze_after_one_invocation(client_type: Any) -> None:
    """Let the instance sleep when it asks again: ministack would give it the same invocation."""
    ask = client_type.wait_next_invocation
    asked = threading.Event()

    def ask_once(client: Any) -> Any:
        if asked.is_set():
            signal.pause()
        asked.set()
        return ask(client)

    client_type.wait_next_invocation = ask_once


def watch(connection: socket.socket, order: dict[str, Any]) -> None:
    """Start the instance, and end it with its bootstrap."""
    pid = os.fork()
    if pid == 0:
        connection.close()
        try:
            run_function(order)
        except SystemExit as error:
            os._exit(error.code if isinstance(error.code, int) else 1)
        finally:
            os._exit(1)
    ended = os.pidfd_open(pid)
    gone, _, _ = select.select([connection, ended], [], [])
    if ended not in gone:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    how = "signal: killed" if status == -signal.SIGKILL else f"exit status {status}"
    error = {
        "errorType": "Runtime.ExitError",
        "errorMessage": f"RequestId: unknown Error: Runtime exited with error: {how}",
    }
    api = http.client.HTTPConnection(order["environment"]["AWS_LAMBDA_RUNTIME_API"])
    api.request("POST", "/2018-06-01/runtime/init/error", json.dumps(error))
    api.getresponse().read()
    connection.recv(1)


def serve(path: Path) -> None:
    """Serve until the process is ended."""
    load_prefect_collections()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    assert threading.active_count() == 1, threading.enumerate()
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            try:
                with connection.makefile("rb") as lines:
                    watch(connection, json.loads(lines.readline()))
            finally:
                os._exit(0)
        connection.close()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
