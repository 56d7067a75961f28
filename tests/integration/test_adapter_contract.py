"""One contract for all adapters."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from http_samples import HttpWorker
from lambda_server import LambdaServer
from processes_here import assert_all_gone, family, python, wait_for

from prefect_renderfarm.blocks import (
    CommandTimeout,
    LocalAdapter,
    WorkerAdapter,
    WorkerJob,
    WorkStopped,
)

ADAPTERS: dict[str, Callable[[], WorkerAdapter]] = {"local": lambda: LocalAdapter(grace=1.0)}


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
        assert "no-such-renderer" in result.last_lines()

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


def test_an_adapter_of_ones_own_is_small() -> None:
    """A subclass needs `execute` and nothing else; without it, it cannot be made."""

    class Nothing(WorkerAdapter):
        pass

    with pytest.raises(TypeError, match="execute"):
        Nothing()  # type: ignore[abstract]
