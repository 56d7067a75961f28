"""An HTTP proxy on loopback that forwards to a server, and fails some requests on purpose."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

# Of one connection, not of what it carries (RFC 9110, section 7.6.1); the proxy sends its own.
_OWN_HEADERS = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "expect", "date", "server"}
)


@dataclass(frozen=True)
class Request:
    """A request that came to the proxy."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str:
        """Return a header's value; empty if there is none."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")


@dataclass(frozen=True)
class Answer:
    """An answer: the server's, or one that the proxy gives in its place."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


class Fault(Enum):
    """Connections that break."""

    DROP_BEFORE = "the server never sees the request"
    CUT_OFF = "the server sees half of the request's body"
    DROP_AFTER = "the server has done its work, its answer is lost"


@dataclass
class FaultyProxy:
    """Where the proxy is, what came, and what goes wrong next.

    Attributes:
        target: The server's address, such as http://127.0.0.1:8000.
        requests: All requests that came, and how each went: the status, or the fault.
        gate: Looks at each request before it is forwarded, and may answer it itself.
        finish: Looks at each answer of the server, and may change it.
        matching: Only requests whose path has this in it fail.
    """

    target: str
    port: int = 0
    requests: list[tuple[Request, int | Fault]] = field(default_factory=list)
    gate: Callable[[Request], Answer | None] | None = None
    finish: Callable[[Request, Answer, float], Answer] | None = None
    matching: str = ""
    _next: deque[Answer | Fault | None] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        """The proxy's address."""
        return f"http://127.0.0.1:{self.port}"

    def fail(self, *faults: Answer | Fault | None, matching: str = "") -> None:
        """Do this to the next requests, one each; None: nothing. What was asked before is off."""
        with self._lock:
            self._next = deque(faults)
            self.matching = matching
            self.requests = []

    def take(self, path: str) -> Answer | Fault | None:
        """Return what to do to a request."""
        with self._lock:
            if self._next and self.matching in path:
                return self._next.popleft()
        return None

    def forward(self, request: Request) -> Answer:
        """Have the server answer a request, as it came: signatures hold, the host's name too."""
        with closing(self._send(request)) as connection:
            response = connection.getresponse()
            return Answer(response.status, response.read(), tuple(response.getheaders()))

    def cut_off(self, request: Request) -> None:
        """Send the server what there is of a request, and hang up."""
        self._send(request).close()

    def _send(self, request: Request) -> HTTPConnection:
        address = urlsplit(self.target)
        connection = HTTPConnection(str(address.hostname), address.port, timeout=120)
        connection.putrequest(
            request.method, request.path, skip_host=True, skip_accept_encoding=True
        )
        for name, value in request.headers:
            connection.putheader(name, value)
        connection.endheaders(request.body)
        return connection


@contextmanager
def faulty_proxy(target: str) -> Iterator[FaultyProxy]:
    """Run a proxy in front of a server, in threads of this process."""
    proxy = FaultyProxy(target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            return

        def handle_request(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            headers = tuple(
                (name, value)
                for name, value in self.headers.items()
                if name.lower() not in _OWN_HEADERS
            )
            requests = proxy.requests  # of the test that asked, should another begin meanwhile
            fault = proxy.take(self.path)
            body = self.rfile.read(size // 2 if fault is Fault.CUT_OFF else size)
            request = Request(self.command, self.path, headers, body)
            if fault is Fault.CUT_OFF:
                proxy.cut_off(request)
            if fault in (Fault.DROP_BEFORE, Fault.CUT_OFF):
                requests.append((request, fault))
                self.close_connection = True
                return
            answer = fault if isinstance(fault, Answer) else None
            if answer is None and proxy.gate is not None:
                answer = proxy.gate(request)
            if answer is None:
                started = time.monotonic()
                answer = proxy.forward(request)
                if proxy.finish is not None:
                    answer = proxy.finish(request, answer, time.monotonic() - started)
            if isinstance(fault, Fault):
                requests.append((request, fault))
                self.close_connection = True
                return
            requests.append((request, answer.status))
            self.answer(answer)

        def answer(self, answer: Answer) -> None:
            self.send_response(answer.status)
            # The answer to HEAD tells the size of what it does not carry.
            own = _OWN_HEADERS if self.command == "HEAD" else _OWN_HEADERS | {"content-length"}
            for name, value in answer.headers:
                if name.lower() not in own:
                    self.send_header(name, value)
            if self.command != "HEAD" and answer.status != 204:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.handle_request)

    class Server(ThreadingHTTPServer):
        """A server that is silent about clients that were killed."""

        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(request, client_address)

    server = Server(("127.0.0.1", 0), Handler)
    proxy.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
