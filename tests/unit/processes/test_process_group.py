"""Programs in process groups of their own: how they end, and that nothing of them is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from processes_here import gone, wait_for

from prefect_renderfarm.blocks import CommandTimeout, WorkStopped
from prefect_renderfarm.blocks.processes import process_group, reaper
from prefect_renderfarm.blocks.processes.masking import NO_SECRETS, Mask
from prefect_renderfarm.blocks.processes.process_group import run_program


def run(
    code: str,
    folder: Path,
    *,
    on_line: Callable[[str], None] = lambda line: None,
    stop: threading.Event | None = None,
    timeout: float | None = None,
    grace: float = 5.0,
    mask: Mask = NO_SECRETS,
) -> tuple[int, str, str]:
    """Run Python code as a program."""
    return run_program(
        [sys.executable, "-S", "-c", code], name="chunk 4", cwd=folder,
        environment={"SEEN": "1", "PATH": os.environ["PATH"]}, on_line=on_line,
        stop=stop or threading.Event(), timeout=timeout, grace=grace, mask=mask,
    )  # fmt: skip


# Writes its pid to `pid` and sleeps; with a handler for SIGTERM that is given first.
SLEEPER = (
    "import os, signal, sys, time\n{handler}\n"
    "open('pid.part', 'w').write(str(os.getpid()))\nos.rename('pid.part', 'pid')\n"
    "time.sleep(60)\n"
)
IGNORES = SLEEPER.format(handler="signal.signal(signal.SIGTERM, signal.SIG_IGN)")
TIDIES = SLEEPER.format(
    handler="def tidy(*_):\n    time.sleep(0.4)\n    open('tidy', 'w')\n    sys.exit(3)\n"
    "signal.signal(signal.SIGTERM, tidy)"
)


def pid_in(folder: Path) -> int:
    """Wait for the pid that a sleeper writes, and return it."""
    wait_for((folder / "pid").exists)
    return int((folder / "pid").read_text())


def test_how_a_program_ends(tmp_path: Path) -> None:
    """Exit code, output, folder and variables; a signal ends with 128 and its number."""
    code = (
        "import os, sys; print(os.getcwd(), os.environ['SEEN'], len(sys.stdin.read()))\n"
        "print('wrong', file=sys.stderr); sys.exit(7)"
    )
    assert run(code, tmp_path) == (7, f"{tmp_path} 1 0", "wrong")
    killed = run("import os; os.kill(os.getpid(), 9)", tmp_path)
    assert killed == (128 + signal.SIGKILL, "", "")
    own = run("import os; print(os.getpid() == os.getpgid(0) == os.getsid(0))", tmp_path)
    assert own == (0, "True", "")


def test_program_that_is_not_there(tmp_path: Path) -> None:
    """What cannot be started is an error of the system's, and nothing is left to end."""
    with pytest.raises(FileNotFoundError):
        run_program(
            ["no-such-program"], name="x", cwd=tmp_path, environment={}, on_line=print,
            stop=threading.Event(), timeout=None, grace=1.0,
        )  # fmt: skip


def test_stopped_job_starts_nothing(tmp_path: Path) -> None:
    """A job that is stopped already starts no program."""
    stop = threading.Event()
    stop.set()
    with pytest.raises(WorkStopped, match="chunk 4: not started"):
        run("open('made', 'w')", tmp_path, stop=stop)
    assert not (tmp_path / "made").exists()


def test_stop_ends_a_program(tmp_path: Path) -> None:
    """A program gets SIGTERM and may tidy up within its grace; it is waited for no longer."""
    stop = threading.Event()
    threading.Thread(target=lambda: (pid_in(tmp_path), stop.set())).start()
    started = time.monotonic()
    with pytest.raises(WorkStopped, match="chunk 4: ended, because"):
        run(TIDIES, tmp_path, stop=stop, grace=20.0)
    assert time.monotonic() - started < 10
    assert (tmp_path / "tidy").exists()
    assert gone(pid_in(tmp_path))


def test_timeout_ends_a_program(tmp_path: Path) -> None:
    """A program that runs too long is ended, with SIGKILL after its grace if it has to be."""
    started = time.monotonic()
    with pytest.raises(CommandTimeout, match=r"chunk 4: ended after 0\.8 s"):
        run(IGNORES, tmp_path, timeout=0.8, grace=0.5)
    assert 1.2 < time.monotonic() - started < 10
    assert gone(pid_in(tmp_path))
    assert run("print(1)", tmp_path, timeout=60.0) == (0, "1", "")


def test_error_ends_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is raised while a program runs, such as by a signal, the program is ended."""

    def interrupted(*_: object) -> None:
        pid_in(tmp_path)
        raise KeyboardInterrupt

    monkeypatch.setattr(process_group, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(IGNORES, tmp_path, grace=0.1)
    wait_for(lambda: gone(pid_in(tmp_path)))


def test_signal_during_the_start_loses_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception in the main thread while a program starts waits for the start, and ends it."""
    popen = subprocess.Popen

    def slow(*arguments: object, **options: object) -> object:
        process = popen(*arguments, **options)  # type: ignore[call-overload]
        if options.get("cwd") == tmp_path:
            threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
            time.sleep(0.6)
        return process

    monkeypatch.setattr(subprocess, "Popen", slow)
    # A shell lets what it starts in the background ignore this signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(IGNORES, tmp_path, grace=0.1)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    left = [child for child in psutil.Process().children() if "pid.part" in str(child.cmdline())]
    assert left == []


def test_what_a_program_leaves_is_ended(tmp_path: Path) -> None:
    """A child in the background is ended with its program, though that ends well."""
    code = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {IGNORES!r}])\n"
        "import os\nwhile not os.path.exists('pid'): time.sleep(0.02)"
    )
    assert run(code, tmp_path, grace=0.1)[0] == 0
    wait_for(lambda: gone(pid_in(tmp_path)))


def test_end_of_a_group_that_is_gone() -> None:
    """A group that has ended is not waited for."""
    process = subprocess.Popen(["true"], text=True, start_new_session=True)
    process.wait()
    started = time.monotonic()
    reaper.end_groups({process.pid}, 30.0, process.poll)
    assert time.monotonic() - started < 5


def test_group_is_on_the_reapers_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a program runs, and until its group has ended, the reaper would end it."""
    calls: list[tuple[str, int]] = []
    monkeypatch.setattr(reaper, "watch", lambda group: calls.append(("watch", group)))
    monkeypatch.setattr(
        reaper, "forget", lambda group: calls.append((f"forget, gone: {gone(group)}", group))
    )
    pid = int(run("import os; print(os.getpid())", tmp_path)[1])
    assert calls == [("watch", pid), ("forget, gone: True", pid)]


def test_lines_come_as_they_are_written(tmp_path: Path) -> None:
    """Each line is passed on at once, from both streams; empty ones are kept, and not passed on."""
    lines: list[str] = []
    code = (
        "import os, sys, time\n"
        "print('one', flush=True); print(' ', flush=True)\n"
        "while not os.path.exists('go'): time.sleep(0.02)\n"
        "print('two', file=sys.stderr)"
    )

    def on_line(line: str) -> None:
        lines.append(line)
        (tmp_path / "go").touch()  # the program waits for it

    assert run(code, tmp_path, on_line=on_line, timeout=20) == (0, "one\n ", "two")
    assert lines == ["one", "two"]


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_failing_log_stops_no_program(tmp_path: Path, kind: type[BaseException]) -> None:
    """A program whose lines cannot be logged goes on, and its output is read to the end."""

    def on_line(line: str) -> None:
        raise kind(line)

    code, stdout, _ = run("[print('x' * 99) for _ in range(2000)]", tmp_path, on_line=on_line)
    assert code == 0
    assert stdout.splitlines() == ["x" * 99] * 400


def test_long_lines_come_in_parts(tmp_path: Path) -> None:
    """A line without an end does not fill the memory; what is no UTF-8 is replaced."""
    lines: list[str] = []
    code = "import sys; sys.stdout.buffer.write(b'y' * 20000 + b'\\xff' + b'\\x1b')"
    _, stdout, _ = run(code, tmp_path, on_line=lines.append)
    assert [len(line) for line in lines[:2]] == [8192, 8192]
    assert "".join(lines) == stdout.replace("\n", "") == "y" * 20000 + "\ufffd" + "\\x1b"


def test_secret_across_parts_is_masked(tmp_path: Path) -> None:
    """A secret that begins in one part of a long line and ends in the next one is masked."""
    for before in range(8192 - 12, 8192 + 2):
        code = f"print('y' * {before} + 'the-secret' + 'z' * 9000)"
        _, stdout, _ = run(code, tmp_path, mask=Mask(["the-secret"]))
        joined = stdout.replace("\n", "")
        assert joined == "y" * before + "***" + "z" * 9000


# Starts a process that leaves the group, holds the output open and runs {code}; prints its pid.
LEAVER = (
    "import subprocess, sys\n"
    "child = subprocess.Popen([sys.executable, '-c', {code!r}], start_new_session=True)\n"
    "print(child.pid, flush=True)\n"
)


@pytest.mark.parametrize(
    "code",
    ["import time; time.sleep(60)",
     "import os, time\nwhile True: os.write(1, b'later\\n'); time.sleep(0.01)"],
    ids=["silent", "busy"],
)  # fmt: skip
def test_process_that_keeps_the_pipe_open(tmp_path: Path, code: str) -> None:
    """A process that leaves its group and keeps the output open is not waited for.

    What the program itself wrote is read to its end, though its log is slow.
    """
    program = LEAVER.format(code=code) + "for n in range(50): print('own', n, flush=True)"
    started = time.monotonic()
    _, stdout, _ = run(program, tmp_path, on_line=lambda line: time.sleep(0.02 * ("own" in line)))
    seconds = time.monotonic() - started
    pid, *lines = [line for line in stdout.splitlines() if "later" not in line]
    psutil.Process(int(pid)).kill()
    assert seconds < 20
    assert lines == [f"own {number}" for number in range(50)]


def test_slow_log_loses_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output that is still being logged after the program's end is waited for, however long."""
    monkeypatch.setattr(process_group, "_SILENT_SECONDS", 0.05)
    code = "[print(n) for n in range(10)]"
    _, stdout, _ = run(code, tmp_path, on_line=lambda _: time.sleep(0.2))
    assert stdout.splitlines() == [str(number) for number in range(10)]


@pytest.mark.parametrize(
    ("events", "limit"),
    [("memory.events", "memory.max"),
     ("memory/memory.oom_control", "memory/memory.limit_in_bytes")],
    ids=["cgroup v2", "cgroup v1"],
)  # fmt: skip
def test_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: str, limit: str
) -> None:
    """A program that the kernel ends for want of memory says so, with the container's limit."""
    monkeypatch.setattr(process_group, "_CGROUP", tmp_path)
    (tmp_path / "memory").mkdir()
    (tmp_path / limit).write_text(f"{2 << 30}\n")
    (tmp_path / events).write_text("under_oom 0\noom_kill 3\n")
    die = "import os; os.write(2, b'loading'); {}os.kill(os.getpid(), 9)"
    assert run(die.format(""), tmp_path) == (137, "", "loading")
    kill = f"open({events!r}, 'w').write('under_oom 0\\noom_kill 4\\n'); "
    assert run(die.format(kill), tmp_path) == (137, "", "loading\nout of memory (limit 2 GiB)")
