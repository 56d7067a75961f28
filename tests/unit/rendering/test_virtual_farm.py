"""A thousand chunks on machines that are lost, slow and busy: each chunk is done, and once."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from virtual_farm import Times, VirtualStorage, render_by_pool, virtual_state
from virtual_workers import serving_virtually

from prefect_renderfarm.blocks import HttpAdapter
from prefect_renderfarm.flows.rendering.attempts import Attempts, SlowChunks
from prefect_renderfarm.flows.rendering.chunk_renderer import ChunkRenderer

CHUNKS, WIDTH = 1_000, 50


def test_chunks_of_a_work_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost runs cost the chunk that they were at; the storage is asked once for several chunks."""
    machines, results = render_by_pool(
        tmp_path, CHUNKS, WIDTH, Times(), SlowChunks.REPORT, monkeypatch.setattr
    )
    assert [result.id for result in results] == list(range(CHUNKS))
    assert machines.published == Counter(range(CHUNKS))
    assert 10 < machines.lost == len(machines.attempts) - CHUNKS
    assert sum(result.attempts for result in results) == len(machines.attempts)
    assert machines.refused > 0
    assert sum(machines.storage.requests.values()) < 0.7 * CHUNKS


def test_second_attempts_on_a_work_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest of the first attempt counts, and a job on uneven machines ends sooner."""
    times = Times(chunk=0.0, machine=1.0)
    alone, twice = (
        render_by_pool(tmp_path / how, CHUNKS // 2, WIDTH, times, how, monkeypatch.setattr)
        for how in (SlowChunks.REPORT, SlowChunks.AUTO)
    )
    assert twice[0].clock.now < alone[0].clock.now
    assert [result.id for result in twice[1]] == list(range(CHUNKS // 2))


def test_chunks_of_an_adapter(tmp_path: Path) -> None:
    """A lost answer is another attempt, a busy worker is none; no manifest is read."""
    storage = VirtualStorage()
    state = virtual_state(tmp_path, CHUNKS, storage)
    with serving_virtually(CHUNKS, WIDTH) as url, ThreadPoolExecutor(WIDTH) as pool:
        adapter = HttpAdapter(url=url, max_in_flight=WIDTH)
        renderer = ChunkRenderer(
            state, adapter, attempts=Attempts(retries=5, retry_delay=0.01), width=WIDTH
        )
        results = list(pool.map(renderer.render, state.job.chunks))
        stats: dict[str, Any] = httpx.get(f"{url}/stats").json()
    assert [result.id for result in results] == list(range(CHUNKS))
    assert (stats["rendered"], stats["busy"]) == (CHUNKS, 50)
    assert 10 < stats["lost"] == len(stats["attempts"]) - CHUNKS == len(renderer.failures.all)
    assert sum(result.attempts for result in results) == len(stats["attempts"])
    assert (
        sum(storage.requests.values()) == stats["lost"]
    )  # is it done, though the answer was lost?
