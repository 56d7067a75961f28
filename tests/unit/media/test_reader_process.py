"""Files are read in processes of their own: results, errors, and what ends such a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from media_samples import Recipe, write_clip

from prefect_renderfarm.blocks.errors import MediaFault
from prefect_renderfarm.blocks.media import reader_process
from prefect_renderfarm.blocks.media.reader import read_media
from prefect_renderfarm.blocks.media.reader_process import prepare, read_apart


def readers(of: int | None = None) -> list[psutil.Process]:
    """Return the processes that read for a process."""
    return [
        child
        for child in psutil.Process(of).children()
        if any(word.endswith("reader_process.py") for word in child.cmdline())
    ]


def test_one_process_reads_many_files(tmp_path: Path) -> None:
    """It is started once, by whoever is the first."""
    prepare()
    before = readers()
    assert before
    prepare()
    paths = [write_clip(tmp_path / f"{n}.mkv", 0, n + 1, Recipe(".mkv")) for n in range(4)]
    assert [read_media(path).frames for path in paths] == [1, 2, 3, 4]
    assert [each.pid for each in readers()] == [each.pid for each in before]


def test_many_at_once(tmp_path: Path) -> None:
    """Threads do not get each other's answers, and there are no more processes than processors."""
    paths = [write_clip(tmp_path / f"{n}.mkv", 0, n + 1, Recipe(".mkv")) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert [media.frames for media in pool.map(read_media, paths)] == list(range(1, 9))
    assert len(readers()) <= (os.cpu_count() or 1)


def test_faults_are_raised_here(tmp_path: Path) -> None:
    """They are what reading in this process would raise."""
    with pytest.raises(MediaFault, match=r"^does not exist$"):
        read_media(tmp_path / "none.mp4")
    with pytest.raises(TypeError):
        read_apart(read_media)


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV, signal.SIGKILL])
def test_file_that_ends_the_process(tmp_path: Path, number: signal.Signals) -> None:
    """The file is refused; the next one is read by a new process."""
    path = write_clip(tmp_path / "0.mkv", 0, 3, Recipe(".mkv"))
    # A function of a module that the process can import.
    with pytest.raises(MediaFault, match=f"ends the process that reads it \\({number.name}\\)"):
        read_apart(signal.raise_signal, number)
    assert read_media(path).frames == 3


def test_killed_while_idle(tmp_path: Path) -> None:
    """A process that was killed between two files is replaced, and no file is blamed."""
    path = write_clip(tmp_path / "0.mkv", 0, 3, Recipe(".mkv"))
    assert read_media(path).frames == 3
    for reader in readers():
        reader.kill()
        reader.wait()
    assert read_media(path).frames == 3


SCRIPT = """
import sys, time
from prefect_renderfarm.blocks.media.reader_process import prepare, read_apart
prepare()
print("ready", flush=True)
read_apart(time.sleep, 60)
"""


def test_nothing_is_left_of_a_killed_process(tmp_path: Path) -> None:
    """A reader ends with the process for which it reads, even in the midst of a file."""
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = readers(process.pid)
        assert len(found) == 1
        process.kill()
    gone, alive = psutil.wait_procs(found, timeout=10)
    assert (len(gone), alive) == (1, [])


class Interrupted(BaseException):
    """What a signal raises in the thread that waits."""


def test_who_stops_waiting_ends_the_reading() -> None:
    """An exception in the thread that waits leaves no process that answers the wrong question."""
    main = threading.get_ident()

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGUSR1)).start()
        with pytest.raises(Interrupted):
            read_apart(time.sleep, 30)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert read_apart(time.sleep, 0) is None
    reader_process._waiting.put(reader_process._waiting.get_nowait())
