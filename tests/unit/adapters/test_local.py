"""What is the local adapter's own: processes, variables, output, FFmpeg."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes_here import family, gone, python, wait_for
from pydantic import ValidationError

from prefect_renderfarm.blocks import JobError, LocalAdapter, SetupError, WorkerJob, WorkerResult
from prefect_renderfarm.blocks.adapters import local
from prefect_renderfarm.blocks.processes import programs
from prefect_renderfarm.blocks.processes.masking import MASKED, MIN_CHARACTERS


def test_group_ends_with_its_leader(tmp_path: Path) -> None:
    """What a command leaves in the background is ended with it."""
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid)\n"
    )
    (tmp_path / "leaver.py").write_text(code)
    job = WorkerJob(command=f"'{sys.executable}' leaver.py", cwd=tmp_path)
    result = LocalAdapter(grace=1).execute(job)
    assert result.exit_code == 0
    wait_for(lambda: gone(int(result.stdout)), 5)


@pytest.mark.long
def test_children_end_with_a_killed_parent(tmp_path: Path) -> None:
    """SIGKILL of the process that runs the adapter ends the command and what it started."""
    code = (
        "from pathlib import Path\n"
        "from prefect_renderfarm.blocks import LocalAdapter, WorkerJob\n"
        f"job = WorkerJob(command={family(tmp_path)!r}, cwd=Path({str(tmp_path)!r}))\n"
        "LocalAdapter().execute(job)\n"
    )
    parent = psutil.Popen([sys.executable, "-c", code], cwd=tmp_path)
    wait_for((tmp_path / "pids").exists, 30)
    parent.kill()
    parent.wait()
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        wait_for(lambda pid=pid: gone(pid), 12)  # type: ignore[misc]


def test_only_declared_variables_are_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child sees the usual variables and the declared ones, and no secret of the worker."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("PREFECT_API_KEY", "hunter2")
    monkeypatch.setenv("SCENE_CACHE", "/cache")
    adapter = LocalAdapter(
        pass_variables=["SCENE_CACHE"],
        environment={"THREADS": "2"},
        secret_environment={"LICENCE": "s3cret"},
    )
    job = WorkerJob(
        command=python("import json,os; json.dump(dict(os.environ), open('seen', 'w'))"),
        cwd=tmp_path,
        environment={"CHUNK": "5"},
    )
    import json

    adapter.execute(job)
    seen = json.loads((tmp_path / "seen").read_text())
    assert "hunter2" not in seen.values()
    assert (seen["SCENE_CACHE"], seen["THREADS"], seen["LICENCE"], seen["CHUNK"]) == (
        "/cache", "2", "s3cret", "5",
    )  # fmt: skip
    assert seen["HOME"] == os.environ["HOME"]
    assert "s3cret" not in repr(adapter)


def test_output_is_logged_line_by_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    r"""Lines reach the log while the command runs; a progress line's \\r counts as a line end.

    The command ends when a file appears, which happens only after its first lines are in the log.
    """
    monkeypatch.setattr(logging.getLogger("prefect"), "propagate", True)
    caplog.set_level(logging.INFO)
    (tmp_path / "render.py").write_text(
        "import os, time\n"
        "print('one\\n50%\\r60%', end='\\r', flush=True)\n"
        "while not os.path.exists('go'): time.sleep(0.02)\n"
        "print('two')\n"
    )
    job = WorkerJob(
        command=f"'{sys.executable}' render.py", cwd=tmp_path, name="chunk 1", timeout=60,
        log_file=tmp_path / "log.txt",
    )  # fmt: skip
    results: list[WorkerResult] = []
    thread = threading.Thread(target=lambda: results.append(LocalAdapter().execute(job)))
    thread.start()
    wait_for(lambda: "chunk 1 | 50%" in caplog.messages, 30)
    assert caplog.messages[-2:] == ["chunk 1 | one", "chunk 1 | 50%"]
    assert thread.is_alive()
    (tmp_path / "go").touch()
    thread.join()
    assert caplog.messages[-2:] == ["chunk 1 | 60%", "chunk 1 | two"]
    assert results[0].stdout == "one\n50%\n60%\ntwo"
    assert (tmp_path / "log.txt").read_text() == "one\n50%\n60%\ntwo\n"


def test_log_that_cannot_be_written_fails_no_command(tmp_path: Path) -> None:
    """A command that has filled the disk with its log ends as it ends."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    job = WorkerJob(command=python("print('x' * 99)"), cwd=tmp_path, log_file=full)
    result = LocalAdapter().execute(job)
    assert (result.exit_code, result.stdout) == (0, "x" * 99)


def test_how_a_command_ends(tmp_path: Path) -> None:
    """Exit code, both streams, duration and machine; 127 and 126 as in a shell, with the name."""
    result = LocalAdapter().execute(
        WorkerJob(
            command=python("import sys,time;time.sleep(.2);print(1);sys.exit('two')"), cwd=tmp_path
        )
    )
    assert (result.exit_code, result.stdout, result.stderr) == (1, "1", "two")
    assert result.worker == socket.gethostname()
    assert 0.2 < result.duration < 30
    (tmp_path / "data").write_text("x")
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    (tmp_path / "broken").write_text("#!/no/such\n")
    (tmp_path / "broken").chmod(0o755)
    for command, code, words in (
        ("no-such-renderer x", 127, "program 'no-such-renderer' is not on the PATH"),
        ("./none", 127, "./none: No such file or directory"),
        ("./broken", 127, "./broken: No such file or directory"),
        ("./data", 126, "./data: Permission denied"),
        ("./data/x", 126, "./data/x: Not a directory"),
        ("./text", 126, "./text: Exec format error"),
        (f"true {' '.join(['x' * 60_000] * 2)}", 0, ""),
    ):
        result = LocalAdapter().execute(WorkerJob(command=command, cwd=tmp_path))
        assert (result.exit_code, result.stderr) == (code, words)
        assert result.worker == socket.gethostname()


def test_other_errors_of_the_system_are_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Want of memory or processes is no fault of the command: it is not told as exit code 126."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(local, "run_program", fail)
    with pytest.raises(OSError, match="temporarily unavailable"):
        LocalAdapter().execute(WorkerJob(command="true", cwd=tmp_path))


def test_limits_of_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command's own limit goes before the block's; grace, folder and stop are passed on."""
    seen: list[dict[str, Any]] = []

    def run(arguments: list[str], **options: Any) -> tuple[int, str, str]:
        seen.append(options | {"arguments": arguments})
        return 0, "", ""

    monkeypatch.setattr(local, "run_program", run)
    adapter = LocalAdapter(timeout=60, grace=1.5)
    for timeout in (None, 3.0):
        adapter.execute(WorkerJob(command="true x", cwd=tmp_path, name="n", timeout=timeout))
    assert [(found["timeout"], found["grace"]) for found in seen] == [(60.0, 1.5), (3.0, 1.5)]
    assert (seen[0]["cwd"], seen[0]["name"]) == (tmp_path, "n")
    assert seen[0]["arguments"] == ["true", "x"]
    job = WorkerJob(command="true", cwd=tmp_path)
    LocalAdapter().execute(job)
    assert (seen[-1]["timeout"], seen[-1]["grace"]) == (None, 5.0)
    assert seen[-1]["stop"] is job.stop


def test_which_variable_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command's own variables go before secret, set and passed ones, in this order."""
    for name in "ABCD":
        monkeypatch.setenv(name, "passed")
    adapter = LocalAdapter(
        pass_variables=["A", "B", "C", "D", "NONE"],
        environment={"B": "set", "C": "set", "D": "set"},
        secret_environment={"C": "secret", "D": "secret", "N": 7},
    )
    seen = adapter.child_environment(WorkerJob(command="x", environment={"D": "job"}))
    assert {name: seen[name] for name in "ABCDN"} == {
        "A": "passed", "B": "set", "C": "secret", "D": "job", "N": "7",
    }  # fmt: skip
    assert "NONE" not in seen
    monkeypatch.delenv("PATH")
    assert os.defpath in LocalAdapter().child_environment(WorkerJob(command="x"))["PATH"]


def test_inputs_of_the_digest() -> None:
    """Set variables, names of passed and secret ones and the chosen FFmpeg; no secret's value."""
    adapter = LocalAdapter(
        environment={"A": "1"},
        pass_variables=["Z", "B"],
        secret_environment={"Y": "s3cret", "C": "s3cret"},
        ffmpeg=Path("/opt/ffmpeg"),
    )
    assert adapter.digest_inputs() == {
        "set": {"A": "1"}, "passed": ["B", "Z"], "secret": ["C", "Y"], "ffmpeg": "/opt/ffmpeg",
    }  # fmt: skip
    assert LocalAdapter().digest_inputs()["ffmpeg"] == ""


def test_as_many_commands_as_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many commands run at once as this process may use processors."""
    assert LocalAdapter().default_concurrency() == len(psutil.Process().cpu_affinity())
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert LocalAdapter().default_concurrency() == os.cpu_count()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert LocalAdapter().default_concurrency() == 1


def test_control_characters_are_escaped(tmp_path: Path) -> None:
    """What a command prints cannot move a terminal's cursor, nor keep a database from taking it."""
    code = "print('a' + chr(27) + '[2Jb' + chr(0) + chr(9) + 'ö')"
    result = LocalAdapter().execute(WorkerJob(command=python(code), cwd=tmp_path))
    assert result.stdout == r"a\x1b[2Jb\x00" + "\tö"


def test_long_output_is_cut(tmp_path: Path) -> None:
    """Only the last lines come back, however much a command writes."""
    job = WorkerJob(command=python("[print(n) for n in range(5000)]"), cwd=tmp_path)
    lines = LocalAdapter().execute(job).stdout.splitlines()
    assert lines[-1] == "4999"
    assert len(lines) < 1000


@pytest.mark.usefixtures("without_ffmpeg")
def test_ffmpeg_is_found_without_one(tmp_path: Path) -> None:
    """On a machine without ffmpeg, `ffmpeg` in a command is imageio-ffmpeg's."""
    result = LocalAdapter().execute(WorkerJob(command="ffmpeg -version", cwd=tmp_path))
    assert result.exit_code == 0
    assert result.stdout.startswith("ffmpeg version")


@pytest.mark.usefixtures("without_ffmpeg")
def test_ffmpeg_is_found_by_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that look for ffmpeg at the same time all get a folder that stays."""
    make = programs._folder_with_link.__wrapped__
    threads_count = 8
    for _ in range(20):
        monkeypatch.setattr(programs, "_folder_with_link", cache(make))
        barrier = threading.Barrier(threads_count)
        paths: list[str] = []

        def look(barrier: threading.Barrier = barrier, paths: list[str] = paths) -> None:
            barrier.wait()
            paths.append(programs.path_with_ffmpeg("/nowhere"))

        threads = [threading.Thread(target=look) for _ in range(threads_count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(paths) == threads_count
        assert all((Path(path.split(os.pathsep)[0]) / "ffmpeg").exists() for path in paths)


def test_ffmpeg_of_the_block_wins(tmp_path: Path) -> None:
    """The block's ffmpeg goes before the one on PATH; a wrong one is refused by name."""
    mine = tmp_path / "my-ffmpeg"
    mine.write_text("#!/bin/sh\necho mine\n")
    mine.chmod(0o755)
    adapter = LocalAdapter(ffmpeg=mine)
    assert adapter.execute(WorkerJob(command="ffmpeg", cwd=tmp_path)).stdout == "mine"
    with pytest.raises(SetupError, match="no-ffmpeg"):
        LocalAdapter(ffmpeg=tmp_path / "no-ffmpeg").execute(
            WorkerJob(command="ffmpeg", cwd=tmp_path)
        )


def test_bad_quoting_is_refused(tmp_path: Path) -> None:
    """A command that cannot be split is refused with its text."""
    with pytest.raises(JobError, match="quotation"):
        LocalAdapter().execute(WorkerJob(command="render 'x", cwd=tmp_path))


def test_unknown_field_is_refused() -> None:
    """A mistyped field is an error, not a default."""
    with pytest.raises(ValidationError, match="timout"):
        LocalAdapter(timout=3)


def test_form_names_what_is_always_passed() -> None:
    """The descriptions of fields that repeat a constant are true, and one line in the form."""
    fields = LocalAdapter.model_json_schema()["properties"]
    described = fields["pass_variables"]["description"]
    assert described.endswith(f"Always passed: {', '.join(local.PASSED_VARIABLES)}.")
    secret = fields["secret_environment"]["description"]
    assert f"show {MASKED} in their place" in secret
    assert f"fewer than {MIN_CHARACTERS} characters" in secret
