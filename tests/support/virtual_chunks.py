"""Chunks that nobody renders: how long their attempts take, and their manifests."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# How chunks of one renderer are coded.
SIGNATURE = {
    "video": "h264 High yuv420p 1920x1080 24/1", "audio": None, "colour": "bt709 tv", "fields": "",
}  # fmt: skip


@dataclass(frozen=True)
class Times:
    """How long attempts take: lognormal, by what is in the chunk and by where it is rendered.

    Attributes:
        mean: Seconds of an attempt, on average.
        chunk: The spread of chunks: the standard deviation of the logarithm.
        machine: The spread of attempts at one chunk.
        lost: The part of the attempts of which nothing more is heard.
    """

    mean: float = 60.0
    chunk: float = 0.7
    machine: float = 0.7
    lost: float = 0.02
    seed: int = 1

    def of(self, number: int, attempt: int) -> float:
        """Return the seconds of an attempt at a chunk."""
        middle = self.mean * math.exp(-(self.chunk**2 + self.machine**2) / 2)
        own = random.Random(f"{self.seed} {number}").lognormvariate(0, self.chunk)  # noqa: S311
        where = random.Random(f"{self.seed} {number} {attempt}")  # noqa: S311
        return middle * own * where.lognormvariate(0, self.machine)

    def is_lost(self, number: int, attempt: int) -> bool:
        """Return whether an attempt at a chunk is lost."""
        return random.Random(f"{self.seed} {number} {attempt} lost").random() < self.lost  # noqa: S311


def manifest(order: Mapping[str, Any], seconds: float, worker: str, folder: str) -> bytes:
    """Return the manifest of a chunk that a worker has rendered into a folder of the storage.

    The order has the fields of a `PlannedChunk`.
    """
    number, file = order["chunk_id"], order["output_file"]
    same = {name: order[name] for name in ("identity", "start_frame", "frame_count", "output_file")}
    return json.dumps(
        same | {
            "id": number, "path": f"/work/{file}", "size": 1_000_000, "sha256": "0" * 64,
            "seconds": seconds, "worker": worker, "signature": SIGNATURE,
            "log": f"{folder}/log.txt", "stored_as": f"{folder}/{number:05d}.mp4",
            "published_at": "2026-12-01T00:00:00Z",
        }
    ).encode()  # fmt: skip
