"""Never a broken film: assemblies that are killed at random moments."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median

import psutil
import pytest
import stitch_here
from media_samples import Recipe, frame_hashes, write_clip
from processes_here import wait_for
from stitch_here import CHUNK_FRAMES, STOPPED

ATTEMPTS = 20
CHUNKS = 100
ASSEMBLIES = [
    ("RemuxStitcher", "stitch", "film.mp4"),
    ("RemuxStitcher", "grow", "film.mkv"),
    ("FfmpegStitcher", "stitch", "film.mp4"),
]
KILLS = {
    "SIGKILL": (signal.SIGKILL, "plain"),
    "SIGTERM": (signal.SIGTERM, "plain"),
    "SIGTERM-in-Prefect": (signal.SIGTERM, "prefect"),
}

# In `make test`, each assembly in this process is killed in one way.
SHORT = dict(zip(ASSEMBLIES, ("SIGTERM", "SIGKILL", None), strict=True))


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of as many chunks as make an assembly long enough to be ended in its middle."""
    folder = tmp_path_factory.mktemp("chunks")
    first = write_clip(
        folder / "000.mp4", 0, CHUNK_FRAMES, Recipe(width=64, height=48)
    ).read_bytes()
    for number in range(1, CHUNKS):
        (folder / f"{number:03d}.mp4").write_bytes(first)
    return folder


class Program:
    """The program `stitch_here.py`, and the processes that its assemblies began."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._began: set[psutil.Process] = set()
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _begin(self, *words: str | Path) -> psutil.Process:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        self._process.stdin.flush()
        return psutil.Process(int(self._line()))

    def undisturbed(self, *words: str | Path) -> float:
        """Let an assembly come to its end, and return how long it took."""
        self._begin(*words)
        started = time.monotonic()
        assert self._line() == "assembled"
        seconds = time.monotonic() - started
        assert self._line() == "0"
        return seconds

    def ended(
        self, seconds: float, number: signal.Signals, *words: str | Path, once_it_writes: bool
    ) -> tuple[int, bool]:
        """End an assembly so many seconds after its begin, or after it begins to write.

        Returns:
            Its exit code, and whether it was at writing.
        """
        folder, writing = Path(words[3]).parent, False
        before = leftovers(folder)
        assembly = self._begin(*words)
        with suppress(psutil.NoSuchProcess):
            while once_it_writes and not leftovers(folder) - before and is_running(assembly):
                time.sleep(0.001)
            time.sleep(seconds)
            self._began.update(assembly.children(recursive=True))
            writing = bool(leftovers(folder) - before)
            assembly.send_signal(number)
        line = self._line()
        return int(self._line() if line == "assembled" else line), writing

    def running(self, folder: Path) -> list[str]:
        """Return the programs that an assembly began, or that work in a folder, and still run."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess):
                words = process.cmdline()
                ours = process in self._began or any(str(folder) in word for word in words)
                if ours and is_running(process):
                    found.append(" ".join(words))
        return found


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    """Start `stitch_here.py`, and end it."""
    with subprocess.Popen(
        [sys.executable, stitch_here.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Program(process)
        finally:
            process.kill()


def leftovers(folder: Path) -> set[str]:
    """Return the names of temporary files and folders beside a film."""
    return {path.name for path in folder.iterdir() if ".part" in path.name}


def is_running(process: psutil.Process) -> bool:
    """Return whether a process has not ended."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("stitcher", "mode", "name", "kill"),
    [
        pytest.param(*which, kill, marks=[] if kill == SHORT[which] else [pytest.mark.long])
        for which in ASSEMBLIES
        for kill in KILLS
    ],
)
def test_killed(
    stitcher: str, mode: str, name: str, kill: str, program: Program, chunks: Path, tmp_path: Path
) -> None:
    """Ended at any moment, it leaves the old film or the whole new one, and nothing that runs."""
    number, signals = KILLS[kill]
    old = (chunks / "000.mp4").read_bytes()
    new = frame_hashes(chunks / "000.mp4") * CHUNKS
    film = tmp_path / name
    words: list[str | Path] = [signals, stitcher, mode, film, chunks]
    chance = random.Random(f"{stitcher} {mode} {kill}")  # noqa: S311
    seconds = median(program.undisturbed(*words) for _ in range(3))
    whole = film.read_bytes()
    assert frame_hashes(film) == new
    kept = made = writing = left = 0
    for attempt in range(ATTEMPTS):
        film.write_bytes(old)
        late = attempt % 4 == 0  # so that it is hit at writing on a busy machine, too
        after = chance.uniform(0, 0.3 if late else 1.1) * seconds
        code, was_writing = program.ended(after, number, *words, once_it_writes=late)
        found = film.read_bytes()
        kept += found == old
        made += found != old
        assert found in (old, whole) or frame_hashes(film) == new
        assert code in ((-number, STOPPED) if found == old else (-number, STOPPED, 0))
        writing += was_writing and found == old
        left += len(leftovers(tmp_path))
        if signals == "prefect":
            assert leftovers(tmp_path) == set()
    wait_for(lambda: not program.running(tmp_path), 10)
    program.undisturbed(*words)
    assert frame_hashes(film) == new
    assert [path.name for path in tmp_path.iterdir()] == [name]
    print(f"in {seconds:.3f} s: {kept} kept the old film, {writing} mid-write; {made} had the new")
    assert writing > 0
    assert (left > 0) is (signals == "plain")
