"""Command lines are split as `shlex` splits them; `ffmpeg` is the named or the carried program."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_renderfarm.blocks import JobError, SetupError
from prefect_renderfarm.blocks.processes.programs import (
    MAX_COMMAND_BYTES,
    find_ffmpeg,
    is_carried,
    path_with_ffmpeg,
    split_command,
)


@settings(max_examples=500, deadline=None, database=None, derandomize=True)
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


def test_link_to_ffmpeg(tmp_path: Path) -> None:
    """A folder in which `ffmpeg` is the named program goes before PATH: its own, or a new one."""
    named = {"ffmpeg": tmp_path / "ffmpeg", "my-ffmpeg": tmp_path / "my-ffmpeg"}
    for program in named.values():
        program.touch(mode=0o755)
    own, linked = (path_with_ffmpeg("/bin", program) for program in named.values())
    assert own == f"{tmp_path}{os.pathsep}/bin"
    folder = Path(linked.split(os.pathsep)[0])
    assert folder != tmp_path
    assert folder.name.startswith("renderfarm-ffmpeg-")
    assert (folder / "ffmpeg").readlink() == named["my-ffmpeg"]


def test_carried_ffmpeg(tmp_path: Path) -> None:
    """The ffmpeg of the imageio-ffmpeg package is known; another one is not, nor is it replaced."""
    assert is_carried(find_ffmpeg())
    assert not is_carried(tmp_path / "ffmpeg")
    with pytest.raises(SetupError, match=r"ffmpeg '.*/ffmpeg' does not exist or is not executable"):
        find_ffmpeg(tmp_path / "ffmpeg")
