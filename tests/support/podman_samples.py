"""Real containers for the tests: podman serves Docker's API, and no image comes from a registry."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repository import ROOT

BASE = "localhost/renderfarm-tests-base:bookworm"
IMAGES = {
    "chunks": "renderfarm-chunks",
    "http": "renderfarm-worker",
    "lambda": "renderfarm-function",
}
DOCKERFILE = ROOT / "deployments/docker/Dockerfile"
RUNS = "label=io.prefect.flow-run-id"
PACKAGES = "python3,python3-venv,ca-certificates"


def missing() -> str:
    """Return why containers cannot run here; empty if they can."""
    needed = [name for name in ("podman", "debootstrap", "apt-get") if shutil.which(name) is None]
    if needed:
        return f"needs {' and '.join(needed)}: apt-get install podman runc catatonit debootstrap"
    return "" if os.geteuid() == 0 else "needs root, for debootstrap"


@dataclass(frozen=True)
class Podman:
    """Podman with a configuration of its own, and its API of Docker."""

    folder: Path

    def __post_init__(self) -> None:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        runtime = 'runtime = "runc"' if shutil.which("runc") else ""  # crun knows no mixed cgroups
        (self.folder / "containers.conf").write_text(
            # Below what the machine allows, which may be less than podman asks for.
            f'[containers]\ndefault_ulimits = ["nofile={files}:{files}", "nproc=4096:4096"]\n'
            f'[engine]\n{runtime}\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        )

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which podman, and Docker's clients, find it."""
        return {
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "DOCKER_HOST": f"unix://{self.folder}/podman.sock",
        }

    def run(self, *words: str | Path, **options: Any) -> str:
        """Run a podman command; return what it printed."""
        command = ["podman", *map(str, words)]
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True,
            check=False, **options,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
        return done.stdout.strip()

    def make_base(self) -> None:
        """Make an image of Debian with Python, once a machine."""
        if self.run("images", "-q", BASE):
            return
        sources = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"]
        mirror = subprocess.run(sources, capture_output=True, text=True, check=True).stdout.split()[
            0
        ]
        root = self.folder / "root"
        install = [
            "debootstrap",
            "--variant=minbase",
            f"--include={PACKAGES}",
            "bookworm",
            str(root),
        ]
        subprocess.run([*install, mirror], check=True, stdout=subprocess.DEVNULL)
        with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as archive:
            self.run("import", "-", BASE, stdin=archive.stdout)

    def build(self, kind: str) -> None:
        """Build an image of the Dockerfile, with pip's configuration of this machine."""
        listed = [sys.executable, "-m", "pip", "config", "list"]
        lines = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
        options = dict(re.findall(r"^[\w:]+\.([\w-]+)='(.*)'$", lines, re.MULTILINE))
        configuration = self.folder / "pip.conf"
        values = "".join(f"{name} = {value}\n" for name, value in options.items())
        configuration.write_text(f"[global]\n{values}")
        named = {Path(path) for path in re.findall(r"(?<![\w:/])/[^\s']+", values)}
        mounts = [f"{path}:{path}:ro" for path in named if path.exists()]
        volumes = [word for each in [f"{configuration}:/etc/pip.conf:ro", *mounts]
                   for word in ("-v", each)]  # fmt: skip
        self.run(
            "build", "--network", "host", "--build-arg", f"BASE={BASE}", *volumes,
            "-f", DOCKERFILE, "--target", kind, "-t", IMAGES[kind], ROOT,
        )  # fmt: skip

    def running(self, part: str = "") -> list[str]:
        """Return the names of the running containers of Prefect's runs that have a part in them."""
        names = self.run("ps", "--filter", RUNS, "--format", "{{.Names}}").splitlines()
        return [name for name in names if part in name]

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serve Docker's API; in the end remove the containers of Prefect's runs."""
        address = self.environment["DOCKER_HOST"]
        command = ["podman", "system", "service", "-t", "0", address]
        environment = os.environ | self.environment
        # conmon leaves a file `oom` in the folder that it was started in.
        with subprocess.Popen(command, env=environment, cwd=self.folder) as service:
            try:
                while not Path(address.removeprefix("unix://")).exists():
                    time.sleep(0.1)
                yield
            finally:
                for name in self.run("ps", "-aq", "--filter", RUNS).split():
                    self.run("rm", "-f", name)
                service.terminate()
