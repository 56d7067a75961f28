"""Files that appear under their name whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


@contextmanager
def whole_file(final: Path) -> Iterator[Path]:
    """Give the path of a temporary file in the folder of `final` to write; then rename it.

    When the block ends well, the file is flushed to the disk and takes the place of `final` in one
    step (POSIX rename()), and the rename is flushed, too. When it does not, the temporary file is
    removed and `final` is as it was. The temporary name keeps the ending of `final`.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.stem[:100]}.{uuid4().hex}.part{final.suffix}")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(final)
        _flush(final.parent)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def write_whole(final: Path, text: str) -> None:
    """Write a text file in UTF-8 so that it appears whole or not at all."""
    with whole_file(final) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
