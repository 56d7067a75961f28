"""Command lines, split into words as a POSIX shell would, and never given to one."""

from __future__ import annotations

import re

from prefect_renderfarm.blocks.errors import JobError
from prefect_renderfarm.blocks.runtime.text import excerpt

# The kernel takes no longer word: 32 pages of 4,096 bytes with the NUL at the end (Linux,
# MAX_ARG_STRLEN, see execve(2)). A whole command that is no longer has no such word either.
MOST_COMMAND_BYTES = 131_071

# POSIX.1-2017, Shell Command Language, section 2.2: quoting. A carriage return separates words,
# too, so that command lines with the line ends of Windows work.
_WORD = re.compile(r"[^ \t\r\n]+")
_QUOTES = re.compile(r"['\"\\]")
_PIECE = re.compile(
    r"""
    (?P<plain>[^ \t\r\n'"\\]++)
    | (?P<space>[ \t\r\n]++)
    | '(?P<single>[^']*+)'
    | "(?P<double>(?:[^"\\]++|\\.)*+)"
    | \\(?P<escaped>.)
    | (?P<open>['"\\])
    """,
    re.VERBOSE | re.DOTALL,
)
# Section 2.2.3: what a backslash quotes inside double quotes.
_IN_DOUBLE = re.compile(r'\\(\n|[$`"\\])')
_JOINED = "\n"  # an escaped line end joins two lines


def split_command(command: str) -> list[str]:
    """Split a command line into words by the quoting rules of a POSIX shell, and no other of them.

    Variables, patterns, pipes and the like are plain text: no shell ever sees the command.

    Raises:
        JobError: The quoting is not closed, there is no program, there is a NUL character, or the
            command is longer than an operating system takes.
    """
    check_length(command)
    if "\0" in command:
        raise JobError(f"command {excerpt(command)} has a NUL character: remove it")
    words = _quoted(command) if _QUOTES.search(command) else _WORD.findall(command)
    if not words or not words[0]:
        raise JobError(f"command {excerpt(command)} is empty: begin it with a program")
    return words


def _quoted(command: str) -> list[str]:
    words: list[str] = []
    word: str | None = None
    for match in _PIECE.finditer(command):
        kind, text = match.lastgroup, match[match.lastgroup or 0]
        if kind == "space":
            if word is not None:
                words.append(word)
            word = None
            continue
        if kind == "open":
            what = "No escaped character" if text == "\\" else f"No closing quotation {text}"
            raise JobError(f"command {excerpt(command)} cannot be split into words: {what}")
        if kind == "double" and "\\" in text:
            text = _IN_DOUBLE.sub(lambda found: found[1].removeprefix(_JOINED), text)
        elif kind == "escaped" and text == _JOINED:
            continue
        word = text if word is None else word + text
    if word is not None:
        words.append(word)
    return words


def check_length(command: str) -> None:
    """Refuse a command that no operating system takes. Raises: JobError."""
    if len(command) * 4 > MOST_COMMAND_BYTES:
        size = len(command.encode(errors="replace"))
        if size > MOST_COMMAND_BYTES:
            raise JobError(
                f"command {excerpt(command)} has {size:,} bytes, and {MOST_COMMAND_BYTES:,} are "
                "the most that can be run: put arguments into a file or a script"
            )
