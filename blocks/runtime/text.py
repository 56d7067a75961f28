"""What messages and logs show of values that somebody else wrote: one line, and not much of it."""

from __future__ import annotations

_MOST_CHARACTERS = 80
# More digits tell nobody anything; Python itself refuses to write out more than 4,300.
_MOST_DIGITS = 25
_KINDS: dict[type, str] = {list: "a list", tuple: "a list", dict: "an object"}


def excerpt(value: object, most: int = _MOST_CHARACTERS) -> str:
    """Return how a message shows a value: printable, on one line, and short.

    Text is shown as Python writes it, so that neither a new line nor a control character in it can
    look like another message. Of lists and objects only the kind is told: they may be nested to any
    depth.

    Args:
        value: The value.
        most: Number of characters of a text, or of its escapes, that are shown.
    """
    if isinstance(value, str):
        shown = repr(value[:most])
        if len(value) <= most and len(shown) <= most + 2:
            return shown
        return f"{shown[:most]}…' ({len(value):,} characters)"
    if isinstance(value, int) and not isinstance(value, bool):
        digits = value.bit_length() * 3 // 10  # log10(2) is 0.301
        return str(value) if digits < _MOST_DIGITS else f"a number of some {digits:,} digits"
    if value is None or isinstance(value, bool | float):
        return repr(value)
    return _KINDS.get(type(value), f"a {type(value).__name__[:most]}")


def printable(text: str) -> str:
    """Return a text with Python's escapes for what would not be shown as it is, but for tabs.

    An ESC might write elsewhere on a terminal, and PostgreSQL takes no log that holds a NUL.
    """
    if text.isprintable():
        return text
    shown = (part if part.isprintable() or part == "\t" else repr(part)[1:-1] for part in text)
    return "".join(shown)


def one_line(text: object, most: int = 300) -> str:
    """Return a text that others wrote, such as a server's error, as part of a message.

    Args:
        text: The text.
        most: Number of characters that are kept.
    """
    shown = printable(" ".join(str(text)[: 4 * most].split()))
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"
