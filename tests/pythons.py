"""Check, test and demonstrate with several versions of Python, each in a clean environment.

make test-pythons                    each CPython from 3.11 on, on PATH or among pyenv's
make test-pythons PYTHONS="python3.12 /opt/python3.13/bin/python3"
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_TARGETS = ("check", "unit", "demo")
_ASK = "import sys; print(*sys.version_info[:3], sep='.')"


def version_of(python: str) -> tuple[int, ...] | None:
    """Return the version of a Python, such as (3, 12, 1); None if it does not run."""
    asked = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, check=False)
    return tuple(map(int, asked.stdout.split("."))) if asked.returncode == 0 else None


def find_pythons() -> dict[str, str]:
    """Return the Pythons of this machine that will do, by their version."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    names = [f"python3.{minor}" for minor in range(11, 20)]
    found = [shutil.which(name) for name in ("python3", *names)]
    found += ["/usr/bin/python3", *map(str, sorted(versions.glob("*/bin/python3")))]
    pythons: dict[str, str] = {}
    for python in found:
        version = version_of(python) if python and Path(python).exists() else None
        if python and version and version >= (3, 11):
            pythons.setdefault(".".join(map(str, version)), python)
    return pythons


def main() -> None:
    """Run the targets with each Python, print what came of it, and fail if one failed."""
    named = sys.argv[1:]
    pythons = {name: name for name in named} if named else find_pythons()
    results = []
    for name, python in pythons.items():
        environment = ROOT / ".venv-pythons" / Path(name).name
        shutil.rmtree(environment, ignore_errors=True)
        for target in _TARGETS:
            print(f"== {name}: make {target}", flush=True)
            started = time.monotonic()
            variables = [f"PYTHON={python}", f"VENV={environment.relative_to(ROOT)}"]
            done = subprocess.run(["make", target, *variables], cwd=ROOT, check=False)
            seconds = time.monotonic() - started
            results.append((name, target, done.returncode, seconds))
    print("Python           target        result   seconds")
    for name, target, code, seconds in results:
        print(f"{name:16} {target:12} {'failed' if code else 'passed':8} {seconds:7.0f}")
    sys.exit(any(code for _, _, code, _ in results) or not results)


if __name__ == "__main__":
    main()
