"""What is the local adapter's own: processes, variables, output, FFmpeg."""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path

import psutil
import pytest
from processes_here import family, gone, python, wait_for
from pydantic import ValidationError

from prefect_renderfarm.blocks import JobError, LocalAdapter, SetupError, WorkerJob
from prefect_renderfarm.blocks.processes import ffmpeg_binary


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


def test_output_is_logged_line_by_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    r"""Lines reach the log while the command runs; a progress line's \\r counts as a line end."""
    code = "import time; print('one\\n50%\\r60%', end=chr(13), flush=True); time.sleep(1)"
    adapter = LocalAdapter()
    with caplog.at_level(logging.INFO):
        logging.getLogger("prefect").propagate = True
        thread = threading.Thread(
            target=adapter.execute,
            args=(WorkerJob(command=python(code), cwd=tmp_path, name="chunk 1"),),
        )
        thread.start()
        wait_for(lambda: "chunk 1 | 50%" in caplog.messages, 5)
        assert thread.is_alive()
        thread.join()
    assert "chunk 1 | one" in caplog.messages


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
    threads_count = 8
    for _ in range(20):
        monkeypatch.setattr(ffmpeg_binary, "_links", {})
        barrier = threading.Barrier(threads_count)
        paths: list[str] = []

        def look(barrier: threading.Barrier = barrier, paths: list[str] = paths) -> None:
            barrier.wait()
            paths.append(ffmpeg_binary.path_with_ffmpeg("/nowhere"))

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
