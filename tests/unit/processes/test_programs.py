"""Command lines are split as `shlex` splits them."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_renderfarm.blocks import JobError
from prefect_renderfarm.blocks.processes.programs import MAX_COMMAND_BYTES, split_command


@settings(max_examples=2_000, deadline=None, database=None, derandomize=True)
@given(st.text(st.sampled_from("ab \t\r\n\v\u00a0'\"\\$#é"), max_size=30))
def test_words_are_those_of_shlex(text: str) -> None:
    """Any text is split as `shlex` does in its POSIX mode, or refused where `shlex` refuses it."""
    command = f"program {text.replace(chr(10), ' ')}"
    try:
        expected = shlex.split(command)
    except ValueError as error:
        with pytest.raises(JobError, match=f"cannot be split: {error}"):
            split_command(command)
    else:
        assert split_command(command) == expected


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("render \\\n  --fast", ["render", "--fast"]),
        ("ren\\\nder x", ["render", "x"]),
        ("render 'a\nb' c\nd", ["render", "a\nb", "c", "d"]),
        ("render a\\\\\nb", ["render", "a\\", "b"]),
    ],
)
def test_backslash_joins_lines(command: str, words: list[str]) -> None:
    """A backslash at the end of a line joins it with the next one; other line ends separate."""
    assert split_command(command) == words


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("", "is empty"),
        (" \t\r\n", "is empty"),
        ("'' x", "is empty"),
        ("render \0", "NUL"),
        ("render 'x", "No closing quotation"),
        ("render \\", "No escaped character"),
        ("x" * (MAX_COMMAND_BYTES + 1), "131,072 bytes"),
        ("é" * (MAX_COMMAND_BYTES // 2 + 1), "131,072 bytes"),
    ],
)
def test_odd_commands_are_refused(command: str, fault: str) -> None:
    """No program, a NUL, open quoting and too long a command are refused, in one line."""
    with pytest.raises(JobError, match=fault) as caught:
        split_command(command)
    assert str(caught.value).isprintable()


def test_longest_command_is_split() -> None:
    """A command of exactly the limit is accepted."""
    command = "x" * MAX_COMMAND_BYTES
    assert split_command(command) == [command]
