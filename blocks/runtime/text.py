"""Values and texts from elsewhere, as messages and logs show them: one short line."""

from __future__ import annotations

# More digits mean nothing to a reader; Python itself refuses to write more than 4,300.
_MAX_DIGITS = 25
_KINDS: dict[type, str] = {list: "a list", tuple: "a list", dict: "an object"}


def excerpt(value: object, limit: int = 80) -> str:
    """Return a value for a message: printable, on one line, and short.

    Text is shown as Python writes it, so that neither a new line nor a control character in it can
    look like another message. Of lists and objects only the kind is shown: they may be nested to
    any depth.
    """
    if isinstance(value, str):
        shown = repr(value[:limit])
        if len(value) <= limit and len(shown) <= limit + 2:
            return shown
        return f"{shown[:limit]}…' ({len(value):,} characters)"
    if isinstance(value, int) and not isinstance(value, bool):
        digits = value.bit_length() * 3 // 10  # log10(2) is 0.301
        return str(value) if digits < _MAX_DIGITS else f"a number of some {digits:,} digits"
    if value is None or isinstance(value, bool | float):
        return repr(value)
    return _KINDS.get(type(value), f"a {type(value).__name__[:limit]}")


def printable(text: str) -> str:
    """Return a text with Python's escapes in place of what is not printable; tabs stay.

    An ESC could move a terminal's cursor, and PostgreSQL stores no log that holds a NUL.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in text)


def one_line(text: object, limit: int = 300) -> str:
    """Return a text from elsewhere, such as a server's error, as part of a message."""
    shown = printable(" ".join(str(text)[: 4 * limit].split()))
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"
