"""Compare each chunk with the one that was done first, as far as a stitcher asks for it."""

from __future__ import annotations

import threading

from prefect_renderfarm.blocks.errors import ChunkFileError
from prefect_renderfarm.blocks.media.model import Signature, difference
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult


class Consistency:
    """Remembers how the first chunk is coded; safe to use from several threads.

    Args:
        rules: What the stitcher asks of chunks.
    """

    def __init__(self, rules: ChunkRules) -> None:
        self._uniform = rules.uniform
        self._first: tuple[int, Signature] | None = None
        self._lock = threading.Lock()

    def check(self, result: ChunkResult) -> None:
        """Compare a chunk with the first one.

        Raises:
            ChunkFileError: They differ in what must be the same.
        """
        if not self._uniform:
            return
        with self._lock:
            self._first = self._first or (result.id, result.signature)
            first, expected = self._first
        if odd := difference(expected, result.signature):
            raise ChunkFileError(
                f"chunk {result.id}: its command succeeded, but its file {result.output_file!r} "
                f"differs from that of chunk {first}, which was done before it: {odd}"
            )
