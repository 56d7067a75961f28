"""nginx from the distribution, as a proxy in front of a Prefect server: TLS, a user, a sub-path."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from certificates import write_certificate
from farm_client import free_port

USER = "farm:correct horse"

_CONFIGURATION = """
user root; daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;
events {{}}
http {{
  access_log {folder}/access.log;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {folder}/own.pem; ssl_certificate_key {folder}/own.pem;
    location / {{ return 404; }}
    location /render/ {{
      auth_basic farm; auth_basic_user_file {folder}/users;
      proxy_pass {target}/;
      proxy_http_version 1.1;
    }}
    # Prefect's websockets send their user in the first message.
    location /render/api/events/ {{
      auth_basic off;
      proxy_pass {target}/api/events/;
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $http_connection;
      proxy_read_timeout 1h;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Proxy:
    """A running proxy."""

    folder: Path
    port: int

    @property
    def api_url(self) -> str:
        """The address of the Prefect API behind it."""
        return f"https://localhost:{self.port}/render/api"

    @property
    def authority(self) -> Path:
        """The certificate to trust."""
        return self.folder / "own.pem"

    def requests(self) -> list[str]:
        """Return the requests so far, `METHOD PATH`, without those of websockets."""
        lines = (self.folder / "access.log").read_text().splitlines()
        return [line.split('"')[1].rpartition(" ")[0] for line in lines if '" 101 ' not in line]


@contextmanager
def proxying(target: str, folder: Path) -> Iterator[Proxy]:
    """Run nginx in front of a server. Skips the test where nginx is not installed."""
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if program is None:
        pytest.skip("nginx is not installed")
    proxy = Proxy(folder, free_port())
    write_certificate(proxy.authority)
    name, _, word = USER.partition(":")
    (folder / "users").write_text(f"{name}:{{PLAIN}}{word}\n")
    text = _CONFIGURATION.format(folder=folder, port=proxy.port, target=target)
    (folder / "nginx.conf").write_text(text)
    command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 20
            while True:
                try:
                    httpx.get(f"https://localhost:{proxy.port}/", verify=False)  # noqa: S501
                    break
                except httpx.TransportError:
                    assert time.monotonic() < deadline, (folder / "error.log").read_text()
                    time.sleep(0.1)
            yield proxy
        finally:
            process.terminate()
