"""A PostgreSQL server of the tests' own: a private cluster on the loopback interface."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from farm_client import free_port

_DEBIANS = Path("/usr/lib/postgresql")
# `postgres` refuses to run as root; the tests may have to, in a container.
_ORDINARY_USER = "nobody"


def find_program(name: str) -> Path | None:
    """Return a program of the newest PostgreSQL of this machine; None: there is none."""
    versions = sorted(_DEBIANS.glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    if versions:
        return versions[-1]
    found = shutil.which(name)
    return Path(found) if found else None


@dataclass(frozen=True)
class Postgres:
    """A cluster in a folder, with one user who has a password.

    Attributes:
        folder: Where its data are.
        port: Where it listens.
        password: Of the user `renderfarm`.
    """

    folder: Path
    port: int
    password: str

    @property
    def url(self) -> str:
        """The address of its database for Prefect, with the password."""
        host = f"127.0.0.1:{self.port}"
        return f"postgresql+asyncpg://renderfarm:{self.password}@{host}/postgres"

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        options = f"-c listen_addresses=127.0.0.1 -c unix_socket_directories= -p {self.port}"
        log = self.folder / "log"
        self._run("pg_ctl", "start", "--wait", "--log", str(log), "--options", options)

    def stop(self) -> None:
        """Stop it as a crash does: at once, without a word to those who are connected."""
        self._run("pg_ctl", "stop", "--mode=immediate")

    def make(self) -> None:
        """Make the cluster."""
        file = self.folder / "password"
        file.write_text(self.password)
        words = ("--username=renderfarm", "--auth=scram-sha-256", "--no-sync")
        self._run("initdb", *words, f"--pwfile={file}")
        file.unlink()

    def _run(self, name: str, *words: str) -> None:
        program = find_program(name)
        assert program is not None, f"{name} is not installed"
        # Its output is no pipe, which the server would inherit and keep open.
        subprocess.run(
            [program, "--pgdata", self.folder / "data", *words],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            check=True,
            user=_ORDINARY_USER if os.geteuid() == 0 else None,
        )


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Start a cluster in a temporary folder; stop it at the end."""
    with tempfile.TemporaryDirectory(prefix="renderfarm-postgres-") as name:
        if os.geteuid() == 0:
            shutil.chown(name, _ORDINARY_USER)
        server = Postgres(Path(name), free_port(), secrets.token_hex(12))
        server.make()
        try:
            server.start()
            yield server
        finally:
            server.stop()
