"""Reads the files of a job's chunks, most of which are coded alike."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from prefect_renderfarm.blocks.media.model import Media, Verify
from prefect_renderfarm.blocks.media.reader import read_alike, read_media


class ChunkReader:
    """Reads chunk files; safe to use from several threads.

    A file that is coded like the first one, byte for byte of its headers, is read by its sample
    table alone, which takes a seventh of the time.

    Args:
        verify: How closely to look.
    """

    def __init__(self, verify: Verify) -> None:
        self._verify = verify
        self._first: Media | None = None

    def read(self, path: Path, fps: Fraction) -> Media:
        """Read a file, or an image sequence, and check that its frames lie on a grid of `fps`.

        Raises:
            MediaFault: See `read_media`.
        """
        first = self._first
        if first is not None and self._verify is not Verify.DECODE:
            media = read_alike(path, fps, first)
            if media is not None:
                return media
        media = read_media(path, fps, verify=self._verify)
        self._first = first or media
        return media
