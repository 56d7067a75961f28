"""Marks that stand for secrets, a server that tells what it was sent, and places to search."""

from __future__ import annotations

import json
import logging
import secrets
import shlex
import sqlite3
import ssl
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from certificates import write_certificate
from jobs import RENDERER, small_job, with_commands
from prefect_aws.s3 import S3Bucket
from storage_samples import keys

from prefect_renderfarm.blocks import WorkerAdapter
from prefect_renderfarm.flows import RenderJob, render_job

# In every searched place, so that a search which finds nothing means something.
CONTROL = "c0ntrol-of-the-search"
# A command: tells its environment in every way that it can, then renders if it is asked to.
TELLER = """
import json, os, runpy, sys
name, code, rest = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
told = json.dumps(dict(os.environ))
with open(name, "w") as file:
    file.write(told)
print(told)
print(dict(os.environ))
for key, value in os.environ.items():
    print(f"{key}={value}", file=sys.stderr)
if code:
    sys.exit(code)
sys.argv = rest
sys.path.insert(0, os.path.dirname(rest[0]))
runpy.run_path(rest[0], run_name="__main__")
"""


class Marks(dict[str, str]):
    """A random text for each place that a secret is put into, made when it is first asked for."""

    def __missing__(self, name: str) -> str:
        self[name] = f"mark{secrets.token_hex(12)}"
        return self[name]

    def inside(self, text: str | bytes) -> set[str]:
        """Return the names of the marks that are in a text."""
        data = text.encode() if isinstance(text, str) else text
        return {name for name, mark in self.items() if mark.encode() in data}


class Telling(BaseHTTPRequestHandler):
    """Answers with all that it was sent; the first part of the path is the status."""

    def do_GET(self) -> None:
        """Answer."""
        size = int(self.headers.get("Content-Length", 0))
        told = f"{self.path}\n{self.headers}\n{self.rfile.read(size).decode()}".encode()
        self.send_response(int(self.path.split("/")[1]))
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    do_POST = do_GET  # noqa: N815 -- http.server's name

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def telling(certificate: Path | None = None) -> Iterator[str]:
    """Run a server that shows what it was sent; give its address, without the status.

    Args:
        certificate: For https: where to write a certificate for `localhost`.
    """
    with ThreadingHTTPServer(("127.0.0.1", 0), Telling) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(write_certificate(certificate))
            server.socket = context.wrap_socket(server.socket, server_side=True)
            address = f"https://localhost:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield address
        finally:
            server.shutdown()
            thread.join()


class LogKeeper(logging.Handler):
    """Keeps what is logged in this process, as people see it: all, but botocore's DEBUG level.

    There botocore writes down the whole of each request, and the payload with it.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        if record.name.startswith("botocore") and record.levelno == logging.DEBUG:
            return
        self.lines.append(self.format(record))


@contextmanager
def all_logs() -> Iterator[LogKeeper]:
    """Keep what is logged, at any level."""
    keeper, root = LogKeeper(), logging.getLogger()
    level = root.level
    root.addHandler(keeper)
    root.setLevel(logging.DEBUG)
    try:
        yield keeper
    finally:
        root.removeHandler(keeper)
        root.setLevel(level)


def failure(act: Callable[[], Any]) -> str:
    """Do what has to fail; return all that Python shows of its error."""
    try:
        act()
    except Exception as error:
        shown = "".join(traceback.format_exception(error))
        return f"{error}\n{error!r}\n{error.args}\n{shown}"
    raise AssertionError("it did not fail")


def files_below(folder: Path, *, but: str = "") -> bytes:
    """Return the names and bytes of all files in a folder, except those with one name."""
    parts = [
        str(path).encode() + b"\n" + path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != but
    ]
    return b"\n".join(parts)


def objects_of(bucket: S3Bucket, *, but: str = "") -> bytes:
    """Return the keys and bytes of all objects of a bucket, except those with one name."""
    client: Any = bucket.credentials.get_s3_client()
    return b"\n".join(
        key.encode() + b"\n" + client.get_object(Bucket=bucket.bucket_name, Key=key)["Body"].read()
        for key in keys(bucket)
        if key.rpartition("/")[2] != but
    )


def columns_with(database: Path, mark: str) -> set[str]:
    """Return in which columns of a SQLite database a text is, as `table.column`."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        tables = [
            name
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
        ]
        found = set()
        for table in tables:
            empty = connection.execute(f'SELECT * FROM "{table}" LIMIT 0')  # noqa: S608
            for row in empty.description:
                where = f'instr(CAST("{row[0]}" AS BLOB), CAST(? AS BLOB)) > 0'
                query = f'SELECT 1 FROM "{table}" WHERE {where} LIMIT 1'  # noqa: S608
                if connection.execute(query, [mark]).fetchone():
                    found.add(f"{table}.{row[0]}")
        return found


def environments(folder: Path) -> dict[str, dict[str, str]]:
    """Return the environments that commands have told, by the name of each one's file."""
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@dataclass
class Evidence:
    """What the jobs left behind.

    Attributes:
        marks: The secrets, by where they were put.
        folder: Where commands have told their environments.
        places: All that there is to read, by place.
        database: The server's SQLite file.
    """

    marks: Marks
    folder: Path
    places: dict[str, bytes] = field(default_factory=dict)
    database: Path = Path()
    errors: list[str] = field(default_factory=list)

    def job(self, name: str, code: int = 0, frames: int = 4, assets: str = "") -> RenderJob:
        """Return a job whose one chunk tells its environment, then fails or renders frames."""
        job = small_job(total_frames=4, chunks=1, id=f"{CONTROL}-{name}")
        job = job.model_copy(update={"assets_url": assets or None})
        told, teller = self.folder / "told" / f"{name}.json", self.folder / "teller.py"
        words = [sys.executable, teller, told, code, RENDERER, "--start", 0, "--count", frames]
        command = shlex.join([*map(str, words), "--output", job.chunks[0].output_file])
        return with_commands(job, {0: command})

    def fails(self, act: Callable[[], Any]) -> None:
        """Do what has to fail, and keep its error."""
        self.errors.append(failure(act))

    def render(self, job: Any, adapter: WorkerAdapter, fails: bool = False, **options: Any) -> None:
        """Render a job into a folder of its own."""
        name = job.title if isinstance(job, RenderJob) else "other"
        options = {"job_dir": self.folder / "jobs" / name, "merge": False} | options
        if fails:
            self.fails(lambda: render_job(job, adapter=adapter, **options))
        else:
            render_job(job, adapter=adapter, **options)
