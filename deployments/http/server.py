"""A worker of the HTTP adapter: runs commands and chunks on this machine, one at a time.

    POST /          a payload (see `blocks/adapters/remote.py`): its answer
    GET /health     whether the caller may send payloads, and how many commands run
    GET /live       whether the worker runs; for the platform's probes, needs no token

Environment variables, besides those of the storage:

    RENDERFARM_TOKEN         the bearer token that callers must send
    RENDERFARM_TOKEN_HEADER  the header that holds the bare token instead
    RENDERFARM_ALLOW_ANYONE  1: no token; the platform checks callers
    RENDERFARM_CONCURRENCY   commands at once; default 1. Further requests get 429
    RENDERFARM_BODY_LIMIT    largest payload in bytes; default 1000000
    RENDERFARM_TIMEOUT       longest time a command may run, in seconds; default none
    RENDERFARM_GRACE         seconds between SIGTERM and SIGKILL of a command; default 5
    RENDERFARM_PROGRAMS      what commands may begin with, separated by commas: names, such as
                             ffmpeg, or absolute paths; default any program
    RENDERFARM_URL_HOSTS, RENDERFARM_URL_SCHEMES
                             which URLs of jobs are fetched; see `blocks/http/url_rules.py`
    PORT, HOST               where to listen; default 8080 on all addresses
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Annotated, Any, Self
from uuid import uuid4

import uvicorn
from prefect.plugins import load_prefect_collections
from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prefect_renderfarm.blocks import LocalAdapter, SetupError
from prefect_renderfarm.blocks.adapters.remote import WorkerAnswer, WorkerFailure, answer_payload
from prefect_renderfarm.blocks.http.url_rules import UrlRules
from prefect_renderfarm.blocks.processes.programs import listed_programs

LOG = logging.getLogger("renderfarm.http")
_POLL_SECONDS = 0.2
# After these seconds, a caller who got 429 asks again.
_RETRY_SECONDS = "1"
# Platforms kill 10 s after SIGTERM: Cloud Run's container contract, Kubernetes after 30.
_MARGIN_SECONDS = 4.0


class Settings(BaseSettings):
    """The environment variables; see above."""

    model_config = SettingsConfigDict(
        env_prefix="RENDERFARM_", env_ignore_empty=True, str_strip_whitespace=True,
        validate_default=False, hide_input_in_errors=True,
    )  # fmt: skip

    token: str = ""
    token_header: str | None = None
    allow_anyone: bool = False
    concurrency: int = Field(default=1, ge=1)
    body_limit: int = 1_000_000
    timeout: float | None = None
    grace: float = 5.0
    programs: Annotated[list[str], NoDecode, BeforeValidator(listed_programs)] = []
    host: str = Field(default="0.0.0.0", alias="HOST")  # noqa: S104 -- a container's only address
    port: int = Field(default=8080, alias="PORT")

    @model_validator(mode="after")
    def _is_protected(self) -> Self:
        if not self.token and not self.allow_anyone:
            raise ValueError(
                "RENDERFARM_TOKEN is not set: whoever reaches this worker could run commands on "
                "it. Set it, or RENDERFARM_ALLOW_ANYONE=1 if the platform checks callers"
            )
        return self


def worker_name(environment: Mapping[str, str]) -> str:
    """Return this worker's name in reports: revision on Cloud Run, else host name; and instance."""
    return f"{environment.get('K_REVISION') or socket.gethostname()}/{uuid4().hex[:8]}"


class Worker:
    """Answers requests until SIGTERM; its methods but `serve` run in one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._name = worker_name(os.environ)
        self._adapter = LocalAdapter(
            timeout=settings.timeout, grace=settings.grace, programs=settings.programs
        )
        self._running = 0
        routes = [
            Route("/", self._work, methods=["POST"]),
            Route("/health", self._health),
            Route("/live", self._live),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes), host=settings.host, port=settings.port, log_level="info",
            server_header=False, timeout_graceful_shutdown=int(settings.grace + _MARGIN_SECONDS),
        )  # fmt: skip
        self._server = uvicorn.Server(config)

    def serve(self) -> None:
        """Serve until SIGTERM; end what runs, and send its answer."""
        LOG.info("worker %s listens on port %d", self._name, self._settings.port)
        self._server.run()

    async def _work(self, request: Request) -> Response:
        """Do what a payload asks for."""
        self._authorize(request)
        payload = await self._payload(request)
        if self._server.should_exit:
            raise HTTPException(503, "this worker is ending")
        if self._running >= self._settings.concurrency:
            raise HTTPException(429, "this worker is busy", {"Retry-After": _RETRY_SECONDS})
        self._running += 1
        try:
            answer = await self._answer(request, payload)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        finally:
            self._running -= 1
        return JSONResponse(answer.model_dump(mode="json"))

    async def _health(self, request: Request) -> Response:
        """Confirm that the caller may send payloads."""
        self._authorize(request)
        return JSONResponse({"worker": self._name, "running": self._running})

    async def _live(self, _request: Request) -> Response:
        """Confirm that the worker runs."""
        return JSONResponse({"live": True}, status_code=503 if self._server.should_exit else 200)

    async def _answer(self, request: Request, payload: Mapping[str, Any]) -> WorkerAnswer:
        """Run a payload in a thread; end it when this worker ends, or the caller has hung up."""
        stop = threading.Event()
        work = asyncio.create_task(
            asyncio.to_thread(answer_payload, payload, self._adapter, self._name, stop)
        )
        try:
            while not (await asyncio.wait({work}, timeout=_POLL_SECONDS))[0]:
                if self._server.should_exit:
                    stop.set()
                elif not stop.is_set() and await request.is_disconnected():
                    LOG.warning("the caller hung up: its command is ended")
                    stop.set()
            answer = work.result()
        finally:
            stop.set()
        if answer.failure is not None and answer.failure.kind == "WorkStopped":
            # Only this worker stops; the job goes on with another attempt.
            failure = WorkerFailure(
                kind="WorkerLost", message=f"worker {self._name} was stopped, or lost its caller"
            )
            return answer.model_copy(update={"failure": failure})
        return answer

    def _authorize(self, request: Request) -> None:
        """Refuse callers without the token, in constant time."""
        if not self._settings.token:
            return
        header = self._settings.token_header
        given = request.headers.get(header or "Authorization", "")
        if header is None:
            scheme, _, given = given.partition(" ")
            given = given.strip() if scheme.lower() == "bearer" else ""
        if not hmac.compare_digest(given.encode(), self._settings.token.encode()):
            raise HTTPException(401, "wrong token", {"WWW-Authenticate": "Bearer"})

    async def _payload(self, request: Request) -> dict[str, Any]:
        """Read a payload, up to the limit."""
        body, limit = bytearray(), self._settings.body_limit
        payload = None
        try:
            async for part in request.stream():
                body += part
                if len(body) > limit:
                    raise HTTPException(413, f"more than {limit} bytes")
            payload = json.loads(body)
        except ClientDisconnect:
            raise HTTPException(400, "the payload is cut off") from None
        except ValueError:
            pass
        if not isinstance(payload, dict):
            raise HTTPException(400, "the payload is no JSON object")
        return payload


def without_query(record: logging.LogRecord) -> bool:
    """Remove a request's query, in which callers may send a key, from uvicorn's access log.

    The arguments of such a record are the client, the method, the path with its query, and more.
    """
    if isinstance(record.args, tuple):
        record.args = tuple(
            value.partition("?")[0] if isinstance(value, str) else value for value in record.args
        )
    return True


def main() -> None:
    """Serve until SIGTERM."""
    try:
        settings = Settings()
        UrlRules()  # which each job would refuse
    except (ValidationError, SetupError) as error:
        raise SystemExit(str(error)) from None
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    load_prefect_collections()  # takes seconds: now, and not in the first chunk
    logging.getLogger("uvicorn.access").addFilter(without_query)
    Worker(settings).serve()


if __name__ == "__main__":
    main()
