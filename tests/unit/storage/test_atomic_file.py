"""Files that appear whole, and what killed processes leave of them."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from jobs import small_job

from prefect_renderfarm.blocks import AssemblyError, StitchInputError
from prefect_renderfarm.blocks.storage.atomic_file import (
    atomic_file,
    create_atomic,
    exchange,
    is_temporary,
    link_atomic,
    publishing,
    remove_all_leftovers,
    remove_leftovers,
    scratch_folder,
    temporary_name,
    write_atomic,
)
from prefect_renderfarm.flows.state.job_state import JobState


def left_over(final: Path, *, hours: float = 0.0) -> Path:
    """Leave an unfinished file behind, as a killed process does; return its path."""
    path = temporary_name(final)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("half of it")
    moment = path.stat().st_mtime - 3600 * hours
    os.utime(path, (moment, moment))
    return path


@pytest.mark.parametrize("links", [True, False])
def test_second_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """A file takes a second name from whatever had it, with links and without; twice, too."""

    def refuse(*_: object) -> None:
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    one, other = tmp_path / "one.json", tmp_path / "known" / "other.json"
    for text in ("first", "second", "second"):
        write_atomic(one, text.encode())
        link_atomic(one, other)
        link_atomic(one, other)
        assert (one.read_text(), other.read_text()) == (text, text)
    write_atomic(one, b"third")
    assert other.read_text() == "second"
    assert [path.name for path in other.parent.iterdir()] == ["other.json"]


def test_leftovers_of_one_file(tmp_path: Path) -> None:
    """Only what is left of the same file goes, at once, and only if nobody is writing it."""
    film = tmp_path / "film [1].mp4"
    left = left_over(film)
    others = [left_over(tmp_path / name) for name in ("film.mp4", "film [1].mkv", "a film [1].mp4")]
    with atomic_file(film) as held:
        held.write_text("film")
        remove_leftovers(film)
        assert held.exists()
    assert film.read_text() == "film"
    assert not left.exists()
    assert all(other.exists() for other in others)


def test_leftovers_of_a_folder(tmp_path: Path) -> None:
    """What is old goes; what is new, held or no temporary file stays; no folder is no error."""
    old, new = left_over(tmp_path / "a.json", hours=2), left_over(tmp_path / "b.json")
    own = tmp_path / ".my.part.mp4"
    own.touch()
    os.utime(own, (0, 0))
    with atomic_file(tmp_path / "c.json") as held:
        held.touch()
        os.utime(held, (0, 0))
        remove_all_leftovers(tmp_path)
        assert held.exists()
    assert not old.exists()
    assert new.exists()
    assert own.exists()
    remove_all_leftovers(tmp_path / "missing")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    remove_all_leftovers(loop)


@pytest.mark.long
def test_files_are_written_while_leftovers_go(tmp_path: Path) -> None:
    """A file that was taken for a leftover before it could be locked is begun again."""
    over = threading.Event()

    def tidy() -> int:
        times = 0
        while not over.is_set():
            remove_all_leftovers(tmp_path, older_than=0.0)
            times += 1
        return times

    with ThreadPoolExecutor(2) as pool:
        tidying = [pool.submit(tidy) for _ in range(2)]
        try:
            for number in range(300):
                with atomic_file(tmp_path / "film.mp4") as held:
                    held.write_text(str(number))
                assert (tmp_path / "film.mp4").read_text() == str(number)
        finally:
            over.set()
        assert min(times.result() for times in tidying) > 10


def test_folder_that_cannot_be_read(tmp_path: Path) -> None:
    """What makes a film's folder unreadable is told as an error of the assembly."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(AssemblyError, match="cannot be written"), publishing(loop / "film.mp4"):
        pass


@pytest.mark.parametrize(
    ("error", "free", "told"),
    [
        (
            OSError(errno.EIO, "broken"),
            5_000_000,
            "film {film!r} cannot be written: broken; {disk}",
        ),
        (OSError("odd"), 5_000_000, "film {film!r} cannot be written: odd; {disk}"),
        (AssemblyError("too short"), 999_999, "film {film!r}: too short; {disk}"),
        (AssemblyError("too short"), 1_000_000, "too short"),
        (StitchInputError("other size"), 0, "other size"),
    ],
)
def test_disk_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, free: int, told: str
) -> None:
    """A film that cannot be written, or is damaged on a full disk: the error names the disk."""
    film = tmp_path / "new" / "film.mp4"
    full = shutil.disk_usage(tmp_path)._replace(total=6_000_000, free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    mount = next(str(folder) for folder in film.parents if folder.is_mount())
    disk = f"the disk at {mount!r} has {free:,} of 6,000,000 bytes free"
    with pytest.raises(AssemblyError) as caught, publishing(film):
        raise error
    assert str(caught.value) == told.format(film=str(film), disk=disk)
    assert list(film.parent.iterdir()) == []


def test_disk_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that names the disk already is raised as it is."""
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    named = AssemblyError("the disk is full")
    named.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(AssemblyError, match=r"^the disk is full$"),
        publishing(tmp_path / "film.mp4"),
    ):
        raise named


def test_a_run_tidies_its_job(tmp_path: Path) -> None:
    """Before a run begins, old leftovers go: among the records, manifests and chunks."""
    folder = JobState(tmp_path, small_job(output_template="chunks/{id}.mp4"))
    places = [folder.job_file, folder.records / "chunks" / "000000.json",
              folder.records / "leases" / "x.json", tmp_path / ".renderfarm" / "known" / "y.json",
              tmp_path / "chunks" / "0.mp4"]  # fmt: skip
    left = [left_over(place, hours=2) for place in places]
    folder.prepare()
    assert [path for path in left if path.exists()] == []


@pytest.mark.parametrize("way", ["atomic_file", "write_atomic", "create_atomic"])
def test_bytes_and_name_are_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The bytes are on the disk before the file has its name, and then the name is, too."""
    final, flushed = tmp_path / "film", []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        flushed.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), final.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    if way == "atomic_file":
        with atomic_file(final) as temporary:
            temporary.write_bytes(b"1")
    else:
        {"write_atomic": write_atomic, "create_atomic": create_atomic}[way](final, b"1")
    assert flushed == [(False, False), (True, True)]
    assert final.read_bytes() == b"1"


@pytest.mark.parametrize("links", [True, False])
def test_created_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """Of two that create a file one does, and nothing else is left; with hard links or without."""

    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    final = tmp_path / "manifest.json"
    assert create_atomic(final, b"first")
    assert not create_atomic(final, b"second")
    assert final.read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_scratch_folder(tmp_path: Path) -> None:
    """A folder beside a film, which nobody takes for a leftover, goes with all that is in it."""
    film = tmp_path / "new" / "film.mp4"
    with scratch_folder(film) as folder:
        assert folder.parent == film.parent
        assert is_temporary(folder.name)
        assert list(folder.iterdir()) == []
        (folder / "part").mkdir()
        (folder / "part" / "list.txt").touch()
        os.utime(folder, (0, 0))
        remove_leftovers(film)
        remove_all_leftovers(film.parent)
        assert folder.is_dir()
    assert list(film.parent.iterdir()) == []


def test_long_names(tmp_path: Path) -> None:
    """A temporary name begins with 100 bytes of the film's, in whole characters, and its end."""
    film = tmp_path / f"{'ä' * 49}aäa.mp4"
    name = temporary_name(film).name
    assert name.startswith(f".{'ä' * 49}a.")
    assert name.endswith(".part.mp4")
    assert temporary_name(tmp_path / "\udcff-film.mp4").name.startswith(".-film.")


def test_interrupted_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal while a temporary file is removed is raised when it has been removed."""
    unlink, interrupts = Path.unlink, [KeyboardInterrupt]

    def interrupted(path: Path, missing_ok: bool = False) -> None:
        if interrupts:
            raise interrupts.pop()
        unlink(path, missing_ok)

    def no_space(_: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(Path, "unlink", interrupted)
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "film.mp4", b"half of it")
    assert list(tmp_path.iterdir()) == []


def test_file_that_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not remove a file is told so."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(PermissionError, match="not yours"), atomic_file(tmp_path / "film.mp4"):
        pass


def folders(folder: Path) -> tuple[Path, Path]:
    """Make two folders with a file each."""
    for name in ("new", "old"):
        (folder / name).mkdir()
        (folder / name / name).touch()
    return folder / "new", folder / "old"


@pytest.mark.parametrize("at_once", [True, False])
def test_folders_change_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """Two folders change places, in one step where the system can, and nothing else is left."""
    new, old = folders(tmp_path)
    if at_once:
        monkeypatch.setattr(Path, "rename", None)
    else:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    exchange(new, old)
    assert [path.name for path in old.iterdir()] == ["new"]
    assert [path.name for path in new.iterdir()] == ["old"]
    assert len(list(tmp_path.iterdir())) == 2


def test_folder_that_cannot_take_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the new folder cannot be moved, the old one is where it was."""
    _, old = folders(tmp_path)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "missing", old)
    assert [path.name for path in old.iterdir()] == ["old"]
    assert len(list(tmp_path.iterdir())) == 2
