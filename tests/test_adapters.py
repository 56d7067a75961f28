"""One contract for all adapters, and what is the local adapter's own."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from http_samples import HttpWorker
from lambda_server import LambdaServer
from pydantic import ValidationError

from prefect_renderfarm.blocks import (
    CommandTimeout,
    JobError,
    LocalAdapter,
    SetupError,
    WorkerAdapter,
    WorkerJob,
    WorkStopped,
    ffmpeg_binary,
)

ADAPTERS: dict[str, Callable[[], WorkerAdapter]] = {"local": lambda: LocalAdapter(grace=1.0)}


def python(code: str) -> str:
    """Return the command line that runs Python code."""
    return f"'{sys.executable}' -c \"{code}\""


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something is so; fail if it never is."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Return whether a process has ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(params=[*ADAPTERS, "http", "lambda"])
def adapter(request: pytest.FixtureRequest) -> WorkerAdapter:
    """Each adapter in turn."""
    if request.param == "http":
        worker: HttpWorker = request.getfixturevalue("http_worker")
        return worker.adapter()
    if request.param == "lambda":
        functions: LambdaServer = request.getfixturevalue("functions")
        return functions.adapter(request.getfixturevalue("contract_function"))
    return ADAPTERS[request.param]()


class TestContract:
    """What a flow may expect of any adapter."""

    def test_success(self, adapter: WorkerAdapter, tmp_path: Path) -> None:
        """The command runs in its folder; exit code, output, duration and worker come back."""
        code = "import sys; open('made','w').write('x'); print('out'); print('err',file=sys.stderr)"
        result = adapter.execute(WorkerJob(command=python(code), cwd=tmp_path))
        assert (result.exit_code, result.stdout, result.stderr) == (0, "out", "err")
        if isinstance(adapter, LocalAdapter):  # others have folders of their own
            assert (tmp_path / "made").exists()
        assert 0 < result.duration < 30
        assert result.worker

    def test_failure_is_a_result(self, adapter: WorkerAdapter, tmp_path: Path) -> None:
        """A non-zero exit code is reported, not raised."""
        result = adapter.execute(WorkerJob(command=python("raise SystemExit(7)"), cwd=tmp_path))
        assert result.exit_code == 7

    def test_missing_program(self, adapter: WorkerAdapter, tmp_path: Path) -> None:
        """A missing program is exit code 127, and the output names it."""
        result = adapter.execute(WorkerJob(command="no-such-renderer -x", cwd=tmp_path))
        assert result.exit_code == 127
        assert "no-such-renderer" in result.last_words()

    def test_not_executable(self, adapter: WorkerAdapter, tmp_path: Path) -> None:
        """A file that may not be executed is exit code 126."""
        (tmp_path / "data").write_text("x")
        result = adapter.execute(WorkerJob(command=f"'{tmp_path / 'data'}'", cwd=tmp_path))
        assert result.exit_code == 126

    def test_no_shell(self, adapter: WorkerAdapter, tmp_path: Path) -> None:
        """Operators of a shell reach the program as they are."""
        code = "import sys; print(sys.argv[1:])"
        words = "'a b' $HOME '*' ; > x && y | z `id`"
        result = adapter.execute(WorkerJob(command=f"{python(code)} {words}", cwd=tmp_path))
        assert result.stdout == str(
            ["a b", "$HOME", "*", ";", ">", "x", "&&", "y", "|", "z", "`id`"]
        )
        assert not list(tmp_path.iterdir())

    def test_timeout(self, adapter: WorkerAdapter, tmp_path: Path) -> None:
        """A command that runs too long is ended, with all it started."""
        job = WorkerJob(command=family(tmp_path), cwd=tmp_path, timeout=1.5, name="chunk 4")
        with pytest.raises(CommandTimeout, match=r"chunk 4.*1\.5 s"):
            adapter.execute(job)
        assert_all_gone(tmp_path)

    def test_stop(self, adapter: WorkerAdapter, tmp_path: Path) -> None:
        """Setting the stop event ends the command, with all it started, within seconds."""
        job = WorkerJob(command=family(tmp_path), cwd=tmp_path, name="chunk 4")
        caught: list[BaseException] = []

        def run() -> None:
            try:
                adapter.execute(job)
            except WorkStopped as error:
                caught.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        wait_for((tmp_path / "pids").exists)
        time.sleep(0.2)
        job.stop.set()
        thread.join(timeout=8)
        assert not thread.is_alive()
        assert "chunk 4" in str(caught[0])
        assert_all_gone(tmp_path)

    def test_stopped_before(self, adapter: WorkerAdapter, tmp_path: Path) -> None:
        """A job that is already stopped starts nothing."""
        job = WorkerJob(command=python("open('made','w')"), cwd=tmp_path)
        job.stop.set()
        with pytest.raises(WorkStopped):
            adapter.execute(job)
        assert not (tmp_path / "made").exists()

    def test_many_at_once(self, adapter: WorkerAdapter, tmp_path: Path) -> None:
        """Commands in several threads do not get into each other's way."""
        results: dict[int, str] = {}

        def run(number: int) -> None:
            job = WorkerJob(command=python(f"print({number} * 11)"), cwd=tmp_path)
            results[number] = adapter.execute(job).stdout

        threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == {number: str(number * 11) for number in range(8)}


def family(folder: Path) -> str:
    """Return a command that starts a child that ignores SIGTERM, and writes down both pids."""
    code = (
        "import os, signal, subprocess, sys, time\n"
        f"os.chdir({str(folder)!r})\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal, time\\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\\ntime.sleep(600)'])\n"
        "time.sleep(0.3)\n"
        "open('pids.part', 'w').write(f'{os.getpid()} {child.pid}')\n"
        "os.rename('pids.part', 'pids')\n"
        "time.sleep(600)\n"
    )
    (folder / "family.py").write_text(code)
    return f"'{sys.executable}' '{folder / 'family.py'}'"


def assert_all_gone(folder: Path) -> None:
    """Check that no process of `family` is left."""
    for pid in map(int, (folder / "pids").read_text().split()):
        wait_for(lambda pid=pid: gone(pid), 5)  # type: ignore[misc]


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


def test_an_adapter_of_ones_own_is_small() -> None:
    """A subclass needs `execute` and nothing else; without it, it cannot be made."""

    class Nothing(WorkerAdapter):
        pass

    with pytest.raises(TypeError, match="execute"):
        Nothing()  # type: ignore[abstract]
