"""A real S3 server on loopback: OpenStack Swift with its s3api, all in one process.

    python s3_server.py FOLDER PORT ACCESS_KEY SECRET

It checks signatures, knows multipart uploads, and keeps everything in FOLDER. Ports PORT to
PORT + 3 are used. It prints `ready` when it answers.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore", "\nEventlet is deprecated")
import eventlet  # noqa: E402

eventlet.monkey_patch(thread=False)

import eventlet.wsgi  # noqa: E402
from swift.account.server import app_factory as account_app  # noqa: E402
from swift.common import storage_policy  # noqa: E402
from swift.common.ring import RingBuilder  # noqa: E402
from swift.container.server import app_factory as container_app  # noqa: E402
from swift.obj.server import app_factory as object_app  # noqa: E402
from swift.proxy.server import app_factory as proxy_app  # noqa: E402

CONFIGURATION = """[swift-hash]
swift_hash_path_suffix = farm
[storage-policy:0]
name = only
default = yes
"""
BACKENDS = {"account": account_app, "container": container_app, "object": object_app}


class ProcessCache:
    """Stands in for memcached: this server is one process."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._values: dict[str, Any] = {}

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        environ["swift.cache"] = self
        return self._app(environ, start)

    def get(self, key: str, **_: Any) -> Any:
        return self._values.get(key)

    def set(self, key: str, value: Any, **_: Any) -> None:
        self._values[key] = value

    def delete(self, key: str, **_: Any) -> None:
        self._values.pop(key, None)


def configure(folder: Path) -> None:
    """Point Swift at a configuration of its own instead of the system's."""
    file = folder / "swift.conf"
    file.write_text(CONFIGURATION)
    for module in list(sys.modules.values()):
        if getattr(module, "SWIFT_CONF_FILE", None):
            module.SWIFT_CONF_FILE = str(file)  # type: ignore[attr-defined]
        if hasattr(module, "HASH_PATH_SUFFIX"):
            module.HASH_PATH_SUFFIX = module.HASH_PATH_PREFIX = b"farm"  # type: ignore[attr-defined]
    storage_policy.reload_storage_policies()


def save_ring(folder: Path, name: str, port: int) -> None:
    """Write the ring of a service: one device, one copy."""
    builder = RingBuilder(4, 1, 0)
    device = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "disk"}
    builder.add_dev(device | {"weight": 1.0})
    builder.rebalance()
    builder.get_ring().save(str(folder / f"{name}.ring.gz"))


def through(name: str, app: Any, **options: str) -> Any:
    """Put one of Swift's middlewares in front of an application."""
    module = importlib.import_module(f"swift.common.middleware.{name}")
    return module.filter_factory({"log_level": "CRITICAL"} | options)(app)


def serve(folder: Path, port: int, access_key: str, secret: str) -> None:
    """Serve until the process is ended."""
    folder.mkdir(parents=True, exist_ok=True)
    configure(folder)
    (folder / "devices" / "disk").mkdir(parents=True, exist_ok=True)
    common = {
        "devices": str(folder / "devices"),
        "mount_check": "false",
        "swift_dir": str(folder),
        "log_level": "CRITICAL",
        "bind_ip": "127.0.0.1",
    }
    nowhere = Path(os.devnull).open("w")  # noqa: SIM115 -- for as long as the process lasts
    for number, (name, make) in enumerate(BACKENDS.items(), start=port + 1):
        save_ring(folder, name, number)
        listener = eventlet.listen(("127.0.0.1", number))
        app = make(common | {"bind_port": str(number)})
        eventlet.spawn(eventlet.wsgi.server, listener, app, log=nowhere)
    (folder / "proxy.conf").write_text("[DEFAULT]\n")
    named = {"__file__": str(folder / "proxy.conf"), "__name__": "proxy-server"}
    app = proxy_app(common | named, account_autocreate="true")
    account, user = access_key.split(":")
    for name in ("dlo", "slo", "copy", "bulk"):
        app = through(name, app)
    app = through("tempauth", app, **{f"user_{account}_{user}": f"{secret} .admin"})
    app = through("s3api.s3api", app, location="us-east-1", auth_pipeline_check="no")
    app = through("catch_errors", ProcessCache(app))
    listener = eventlet.listen(("127.0.0.1", port))
    print("ready", flush=True)
    eventlet.wsgi.server(listener, app, log=nowhere)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
