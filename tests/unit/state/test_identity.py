"""The cache key of a chunk: everything that determines its pictures is part of it."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_renderfarm.blocks import LocalAdapter
from prefect_renderfarm.flows import Chunk
from prefect_renderfarm.flows.state.identity import chunk_identity, inputs_digest

CHUNK = Chunk(id=1, start_frame=30, frame_count=30, output_file="a.mp4", command="render")


def key(chunk: Chunk = CHUNK, rate: str = "24", inputs: str = "inputs") -> str:
    """Return a chunk's cache key."""
    return chunk_identity(chunk, rate, inputs)


@pytest.mark.parametrize(
    "change",
    [
        {"start_frame": 31},
        {"start_frame": 0},
        {"frame_count": 31},
        {"output_file": "b.mp4"},
        {"command": "render --fast"},
        {"command": "render "},
    ],
    ids=str,
)
def test_every_field_counts(change: dict[str, Any]) -> None:
    """Another range, file or command is another chunk."""
    assert key(CHUNK.model_copy(update=change)) != key()


def test_ranges_of_one_sum_differ() -> None:
    """Start and length are told apart: 1 + 23 is not 12 + 3."""
    keys = {
        key(CHUNK.model_copy(update={"start_frame": start, "frame_count": count}))
        for start, count in ((1, 23), (12, 3), (23, 1), (3, 12), (123, 0))
    }
    assert len(keys) == 5


@pytest.mark.parametrize("rate", ["25", "24000/1001", "240", "2"])
def test_the_rate_counts(rate: str) -> None:
    """The same command at another frame rate is another chunk."""
    assert key(rate=rate) != key()


def test_the_inputs_count() -> None:
    """Another adapter or other input files make another chunk."""
    assert key(inputs="others") != key()


def test_the_id_does_not_count() -> None:
    """A job that is cut anew keeps the chunks whose ranges stay."""
    assert key(CHUNK.model_copy(update={"id": 2})) == key()


def test_inputs_digest() -> None:
    """What the adapter declares and the version of the input files are parts of the digest."""
    plain = inputs_digest(LocalAdapter(), "assets")
    assert inputs_digest(LocalAdapter(), "assets") == plain
    assert inputs_digest(LocalAdapter(), "others") != plain
    assert inputs_digest(LocalAdapter(environment={"A": "1"}), "assets") != plain
    assert inputs_digest(LocalAdapter(environment={"A": "2"}), "assets") != (
        inputs_digest(LocalAdapter(environment={"A": "1"}), "assets")
    )
    assert inputs_digest(LocalAdapter(timeout=5), "assets") == plain


def test_secrets_do_not_count() -> None:
    """A hash of a short secret could be guessed: no secret is part of the digest."""
    first, second = (
        inputs_digest(LocalAdapter(secret_environment={"KEY": value}), "") for value in ("a", "b")
    )
    assert first == second


def test_a_key_is_a_sha256() -> None:
    """A cache key is a name of 64 hexadecimal digits, and no other part of it is readable."""
    assert len(key()) == 64
    assert set(key()) <= set("0123456789abcdef")


def test_keys_stay() -> None:
    """A later release finds the chunks of an earlier one: the keys are the same, digit by digit."""
    adapter = LocalAdapter(environment={"B": "2", "A": "1"})
    assert key() == "1cc47d06bea5bb82af0af1b8cec03ec987259987992c0dba4e238fdda1b7721c"
    assert (
        inputs_digest(adapter, "assets")
        == "f1c3ff048280f665015060dd24a20aa2bc3ce971e0aa8e24b9316b98764d19d6"
    )
