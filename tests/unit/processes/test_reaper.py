"""The reaper: the process that ends this process's children if this process is killed."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from processes_here import gone, wait_for

from prefect_renderfarm.blocks.processes import reaper

IGNORES = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print(flush=True); time.sleep(60)"
)
TIDIES = (
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), open('tidy', 'w'), sys.exit()))\n"
    "print(flush=True); time.sleep(60)"
)


def sleeper(folder: Path, code: str = IGNORES) -> int:
    """Start a process in a group of its own, which nobody waits for; return its pid."""
    parent = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {code!r}], start_new_session=True,"
        " stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", parent], cwd=folder, stdout=subprocess.PIPE, text=True, check=True
    )
    return int(done.stdout)


def test_groups_on_the_list_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the list ends, its groups are: by SIGTERM, and by SIGKILL after the grace."""
    monkeypatch.setattr(reaper, "_GRACE_SECONDS", 1.0)
    stubborn, tidy, other = sleeper(tmp_path), sleeper(tmp_path, TIDIES), sleeper(tmp_path)
    try:
        reaper.reap(io.StringIO(f"+{stubborn}\n+{tidy}\n+{other}\n-{other}\n"))
        wait_for(lambda: gone(stubborn) and gone(tidy))
        assert (tmp_path / "tidy").exists()
        assert not gone(other)
    finally:
        psutil.Process(other).kill()


def test_groups_that_are_gone_are_not_waited_for(tmp_path: Path) -> None:
    """The reaper ends at once if no group is left, or none was on its list."""
    process = subprocess.Popen(["true"], start_new_session=True)
    process.wait()
    started = time.monotonic()
    reaper.reap(io.StringIO(f"+{process.pid}\n"))
    reaper.reap(io.StringIO(""))
    assert time.monotonic() - started < 2


def test_grace_ends_with_the_last_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that ends by itself is not waited for to the end of the grace."""
    monkeypatch.setattr(reaper, "_GRACE_SECONDS", 30.0)
    pid = sleeper(tmp_path, TIDIES)
    started = time.monotonic()
    reaper.reap(io.StringIO(f"+{pid}\n"))
    assert time.monotonic() - started < 10
    assert (tmp_path / "tidy").exists()


PARENT = """
import subprocess, sys, time
from prefect_renderfarm.blocks.processes import reaper
reaper.begin()
first = reaper._reaper
reaper.begin()
assert reaper._reaper is first  # one for all children
for code in sys.argv[1:]:
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                             start_new_session=True)
    child.stdout.readline()
    reaper.watch(child.pid)
    print(child.pid, flush=True)
reaper.forget(child.pid)
print(first.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.long
def test_reaper_outlives_a_killed_process(tmp_path: Path) -> None:
    """SIGKILL ends neither the reaper nor what is off its list; then the reaper ends, too."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, TIDIES, IGNORES],
        stdout=subprocess.PIPE, text=True, cwd=tmp_path,
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        watched, forgotten, own = (int(parent.stdout.readline()) for _ in range(3))
        own_process = psutil.Process(own)
        try:
            assert own_process.cmdline()[-1].endswith("reaper.py")
            assert own_process.cwd() == "/"
            assert own_process.environ() == {}
            parent.kill()
            wait_for(lambda: gone(watched) and gone(own))
            assert (tmp_path / "tidy").exists()
            assert not gone(forgotten)
        finally:
            psutil.Process(forgotten).kill()


def test_reaper_that_was_killed_is_replaced() -> None:
    """Without its reaper, a process starts another one before the next child."""
    reaper.begin()
    first = reaper._reaper
    assert first is not None
    first.kill()
    first.wait()
    reaper.begin()
    assert reaper._reaper is not first
    assert reaper._reaper is not None
    assert reaper._reaper.poll() is None
