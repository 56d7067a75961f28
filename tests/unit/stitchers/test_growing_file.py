"""A file that is read, and flushed, while it grows."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from processes_here import wait_for as wait_until

from prefect_renderfarm.blocks.stitchers import remux
from prefect_renderfarm.blocks.stitchers.film_check import FilmReader
from prefect_renderfarm.blocks.stitchers.remux import BackgroundFlush


def test_reader_waits_at_the_end(tmp_path: Path) -> None:
    """A reader gives what is there, then what is added, and ends when the file is complete."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    reader = FilmReader(path, audio=False)
    assert reader.name == "file"
    assert [reader.read(4), reader.read(100)] == [b"0123", b"456789"]
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.extend(iter(lambda: reader.read(100), b"")))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    with path.open("ab") as file:
        file.write(b"more")
    wait_until(lambda: found == [b"more"])
    assert thread.is_alive()
    reader._complete.set()
    thread.join(5)
    assert not thread.is_alive()
    assert reader.read(1) == b""
    reader.close()
    assert reader._file.closed


def test_abandoned_reader_ends(tmp_path: Path) -> None:
    """A reader that nobody needs gives nothing more, though there is more."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    reader = FilmReader(path, audio=False)
    reader.close()
    assert reader.read(4) == b""


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Take down the descriptors that are flushed; -1 in front of them: the flush fails."""
    flushed: list[int] = []

    def fsync(descriptor: int) -> None:
        flushed.append(descriptor)
        if flushed[0] == -1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    return flushed


def wait_for(flush: BackgroundFlush) -> None:
    """Wait for a flush that runs."""
    flush._last.exception(5)


def test_flush_of_so_many_bytes(tmp_path: Path, flushed: list[int]) -> None:
    """A file is flushed each time that it has grown by 32 MB."""
    path = tmp_path / "file"
    path.touch()
    flush = BackgroundFlush(path)
    flush.grown(remux._FLUSH_BYTES - 1)
    wait_for(flush)
    assert not flushed
    flush.grown(remux._FLUSH_BYTES)
    wait_for(flush)
    assert len(flushed) == 1
    flush.grown(2 * remux._FLUSH_BYTES - 1)
    assert len(flushed) == 1
    flush.grown(2 * remux._FLUSH_BYTES)
    flush.close()
    assert len(flushed) == 2


@pytest.mark.parametrize("last", [True, False])
def test_error_of_a_flush(tmp_path: Path, flushed: list[int], last: bool) -> None:
    """A failed flush is raised by the next call, be it the last one."""
    path = tmp_path / "file"
    path.touch()
    flush = BackgroundFlush(path)
    flushed.append(-1)
    flush.grown(remux._FLUSH_BYTES)
    wait_for(flush)
    with pytest.raises(OSError, match="Input/output error"):
        flush.close() if last else flush.grown(remux._FLUSH_BYTES + 1)
    if not last:
        with pytest.raises(OSError, match="Input/output error"):
            flush.close()
