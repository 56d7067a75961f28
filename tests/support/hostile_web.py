"""A web server that means no good, and a proxy, both on loopback."""

from __future__ import annotations

import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from certificates import write_certificate


class Asked(BaseHTTPRequestHandler):
    """One request, answered by the function that the server has for its path."""

    protocol_version = "HTTP/1.1"
    web: HostileWeb

    def do_GET(self) -> None:
        """Answer, and take note of it."""
        self.close_connection = True
        path = self.path.partition("?")[0]
        self.web.asked.append((str(self.headers["Host"]), path))
        answer = self.web.answers.get(path)
        with suppress(OSError):  # the other side has had enough
            if answer is None:
                self.send(404)
            elif callable(answer):
                answer(self)
            else:
                self.send(200, answer)

    def send(self, status: int, body: bytes = b"", length: int | None = None, **more: str) -> None:
        """Send an answer, whose length may be another than it says."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in more.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.push(body)

    def push(self, data: bytes) -> None:
        """Send bytes and count them."""
        self.wfile.write(data)
        self.wfile.flush()
        self.web.sent += len(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@dataclass
class HostileWeb:
    """What it answers by path, and what it was asked and has sent."""

    answers: dict[str, bytes | Callable[[Asked], None]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0
    port: int = 0

    def url(self, path: str = "", host: str = "localhost") -> str:
        """Return the address of a path."""
        return f"https://{host}:{self.port}{path}"


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False


@contextmanager
def hostile_web(folder: Path) -> Iterator[HostileWeb]:
    """Run a server with a certificate for `localhost`, which is in `certificate.pem`."""
    certificate = write_certificate(folder / "certificate.pem")
    web = HostileWeb()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    class Handler(Asked):
        """Asks for TLS in its own thread, so that nobody can hold up the others."""

        def setup(self) -> None:
            self.request = context.wrap_socket(self.request, server_side=True)
            super().setup()

        def handle(self) -> None:
            with suppress(OSError):
                super().handle()

    Handler.web = web
    with _serving(Handler) as web.port:
        yield web


@contextmanager
def forwarding_proxy(names: list[str]) -> Iterator[str]:
    """Run a proxy (RFC 9110, section 9.3.6: CONNECT) that notes the names it is asked for."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            target = self.rfile.readline().split()[1].decode()
            while self.rfile.readline().strip():
                pass
            names.append(target)
            with socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2]))) as other:
                self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=copy, args=(other, self.request), daemon=True)
                back.start()
                copy(self.request, other)
                back.join(5)

    def copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    with _serving(Handler) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _serving(handler: type[socketserver.BaseRequestHandler]) -> Iterator[int]:
    with _Server(("127.0.0.1", 0), handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()
