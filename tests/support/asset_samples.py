"""Input files for the tests, and what of them travels to and from a storage."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from prefect_renderfarm.blocks.storage.bucket import BucketStore


@dataclass
class Travels:
    """Which objects went to the storage, and which came from it."""

    sent: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)


def watched_travels(monkeypatch: pytest.MonkeyPatch) -> Travels:
    """Take down what travels, from here on."""
    found = Travels()
    upload, download = BucketStore.upload, BucketStore.download

    def uploading(self: BucketStore, path: Path, key: str) -> None:
        found.sent.append(key)
        upload(self, path, key)

    def downloading(self: BucketStore, key: str, path: Path) -> None:
        found.fetched.append(key)
        download(self, key, path)

    monkeypatch.setattr(BucketStore, "upload", uploading)
    monkeypatch.setattr(BucketStore, "download", downloading)
    return found


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files into a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def workspace(tmp_path: Path, name: str = "workspace") -> Path:
    """Make an empty folder."""
    (tmp_path / name).mkdir()
    return tmp_path / name
