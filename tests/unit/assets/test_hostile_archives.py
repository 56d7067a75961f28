"""Archives of strangers: small ones that hold too much, damaged ones, odd names."""

from __future__ import annotations

import gzip
import io
import os
import random
import resource
import struct
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefect_renderfarm.blocks import FatalWorkerError, WorkStopped
from prefect_renderfarm.blocks.assets import archive
from prefect_renderfarm.blocks.assets.archive import unpack
from prefect_renderfarm.blocks.errors import RenderFarmError

GO = threading.Event()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Make an empty folder."""
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **more: object) -> bytes:
    """Return the header of a tar's member."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for key, value in more.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def write_tar(path: Path, *parts: bytes, zeros: int = 0) -> Path:
    """Write a packed tar of given blocks, and so many zeros after them."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        for part in parts:
            file.write(part)
        for _ in range(zeros // 1_000_000):
            file.write(bytes(1_000_000))
    return path


def write_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write a zip file."""
    with zipfile.ZipFile(path, "w", method) as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return path


def refused(path: Path, target: Path) -> str:
    """Return why an archive is refused, in one line; nothing of it lies outside the target."""
    before = sorted(target.parent.iterdir())
    with pytest.raises(FatalWorkerError) as caught:
        unpack(path, target, GO)
    assert sorted(target.parent.iterdir()) == before
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 500
    return message


def test_bombs_are_refused_by_what_they_hold(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is unpacked is limited as a whole, in bytes and in files, whatever it is packed to."""
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 5_000_000)
    monkeypatch.setattr(archive, "MAX_FILES", 50)
    zeros = bytes(3_000_000)
    bomb = write_zip(tmp_path / "bytes.zip", {"a": zeros, "b": zeros})
    assert bomb.stat().st_size < 10_000
    assert "more than 5,000,000 bytes" in refused(bomb, target)
    assert not (target / "b").exists()
    many = write_zip(tmp_path / "files.zip", {f"n/{n}": b"" for n in range(51)})
    assert "50 files" in refused(many, target)
    whole = member("huge", 10**15)
    assert "more than 5,000,000 bytes" in refused(write_tar(tmp_path / "a.tgz", whole), target)
    folders = [member(f"d{n}", kind=tarfile.DIRTYPE) for n in range(51)]
    assert "50 files" in refused(write_tar(tmp_path / "b.tgz", *folders), target)


LONG = 300_000_000


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
def test_headers_do_not_fill_the_memory(tmp_path: Path, target: Path, kind: bytes) -> None:
    """A header of hundreds of megabytes, packed to one, is not read into memory."""
    path = write_tar(tmp_path / "a.tgz", member("x", LONG, kind), zeros=LONG)
    assert path.stat().st_size < 2_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "too long" in refused(path, target)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_sparse_maps_do_not_fill_the_memory(tmp_path: Path, target: Path) -> None:
    """The map of a sparse file, which a tar holds as text, is limited like a header."""
    info = tarfile.TarInfo("x")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x"}
    info.size = LONG
    header = info.tobuf(tarfile.PAX_FORMAT)
    path = write_tar(tmp_path / "a.tgz", header, b"99999999\n" + b"1\n" * 5_000_000)
    assert "too long" in refused(path, target)


def test_list_of_a_zip_does_not_fill_the_memory(tmp_path: Path, target: Path) -> None:
    """A zip whose list of names is too large is refused before that is read."""
    size = 40_000_000
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, size, 0, 0)
    path = tmp_path / "a.zip"
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(end)
    assert "too long" in refused(path, target)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_are_refused(tmp_path: Path, target: Path, method: int) -> None:
    """Packings of which Python unpacks any amount at once are not unpacked."""
    path = write_zip(tmp_path / "a.zip", {"a\n\x1b[31m": bytes(100)}, method)
    assert rf"'a\n\x1b[31m' is packed by method {method}" in refused(path, target)


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000 + "b", "a\n\x1b[31mb/../../x", "/x" * 9])
@pytest.mark.parametrize("ending", [".zip", ".tgz"])
def test_odd_names(tmp_path: Path, target: Path, name: str, ending: str) -> None:
    """Names that no disk takes, or that lead out, are refused for good and shown on one line."""
    path = tmp_path / f"a{ending}"
    if ending == ".zip":
        write_zip(path, {name: b"1"})
    else:
        with tarfile.open(path, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert "asset '" in refused(path, target)


@pytest.mark.parametrize(
    ("kind", "link"),
    [(tarfile.SYMTYPE, "/etc"), (tarfile.LNKTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "../../x"),
     (tarfile.CHRTYPE, ""), (tarfile.FIFOTYPE, "")],
)  # fmt: skip
def test_odd_members(tmp_path: Path, target: Path, kind: bytes, link: str) -> None:
    """Links out of the folder, devices and pipes are refused, and not made."""
    path = write_tar(tmp_path / "a.tgz", member("odd", kind=kind, linkname=link))
    assert refused(path, target)
    assert list(target.iterdir()) == []


def test_link_to_nothing_is_damage(tmp_path: Path, target: Path) -> None:
    """A hard link to a file that the archive does not hold is no fault of the disk."""
    path = write_tar(tmp_path / "a.tgz", member("odd", kind=tarfile.LNKTYPE, linkname="none"))
    assert "links to no file" in refused(path, target)


def test_members_of_a_tar(tmp_path: Path, target: Path) -> None:
    """Folders, hard links and executable bits arrive; of files of one name the last counts."""
    (tmp_path / "tool").write_bytes(b"#!/bin/sh\n")
    (tmp_path / "tool").chmod(0o755)
    (tmp_path / "link").hardlink_to(tmp_path / "tool")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("a", b"1"), ("a", b"22")):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o640
            tar.addfile(info, io.BytesIO(data))
        tar.add(tmp_path / "tool", "bin/tool")
        tar.add(tmp_path / "link", "bin/link")
        tar.addfile(tar.gettarinfo(target, "empty"))
        assert tar.getmember("bin/link").islnk()
    unpack(tmp_path / "a.tar", target, GO)
    assert (target / "a").read_bytes() == b"22"
    assert (target / "a").stat().st_mode & 0o777 == 0o644
    assert (
        (target / "bin/link").read_bytes() == (target / "bin/tool").read_bytes() == b"#!/bin/sh\n"
    )
    assert (target / "bin/tool").stat().st_mode & 0o777 == 0o755
    assert (target / "empty").is_dir()


def damaged(data: bytes, seed: int) -> Iterator[bytes]:
    """Give an archive cut off and with bytes changed, in many places."""
    chance = random.Random(seed)  # noqa: S311
    for _ in range(60):
        yield data[: chance.randrange(len(data))]
        changed = bytearray(data)
        for _ in range(chance.randrange(1, 8)):
            changed[chance.randrange(len(data))] = chance.randrange(256)
        yield bytes(changed)


def zipped(path: Path) -> bytes:
    """Return a zip file."""
    return write_zip(path, {f"d/{n}": os.urandom(50) for n in range(5)}).read_bytes()


def tarred(path: Path) -> bytes:
    """Return a packed tar file."""
    with tarfile.open(path, "w:gz") as tar:
        tar.add(__file__, "source.py")
        tar.add(__file__, "d/jobs.py")
    return path.read_bytes()


@pytest.mark.parametrize("make", [zipped, tarred, lambda path: gzip.decompress(tarred(path))])
def test_damaged_archives(tmp_path: Path, make: Callable[[Path], bytes]) -> None:
    """Whatever is damaged, an archive is unpacked or refused with an error of ours."""
    data = make(tmp_path / "whole")
    refusals = 0
    for number, changed in enumerate(damaged(data, seed=7)):
        path, folder = tmp_path / "damaged", tmp_path / str(number)
        path.write_bytes(changed)
        folder.mkdir()
        try:
            unpack(path, folder, GO)
        except RenderFarmError as error:
            refusals += isinstance(error, FatalWorkerError)
    assert refusals > 30


def test_stopped_job_unpacks_nothing(tmp_path: Path, target: Path) -> None:
    """A job that is stopped unpacks no more."""
    stop = threading.Event()
    stop.set()
    with pytest.raises(WorkStopped):
        unpack(write_zip(tmp_path / "a.zip", {"a": b"1"}), target, stop)
    assert list(target.iterdir()) == []
