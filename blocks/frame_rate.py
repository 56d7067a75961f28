"""Frame rates as exact fractions."""

from __future__ import annotations

import math
import re
from fractions import Fraction

# A limit against nonsense, not a physical one: high-speed footage is conformed long before it.
_HIGHEST_FPS = 1000


def parse_fps(value: object) -> Fraction:
    """Return a frame rate in frames a second, exactly as it is written.

    Args:
        value: A number (`24`, `29.97`) or a rational string (`"30000/1001"`). A decimal is taken by
            its digits: 29.97 is 2997/100; NTSC rates are written `"30000/1001"`.

    Raises:
        ValueError: It is not a number above 0 and up to 1000.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str | Fraction):
        raise ValueError(f"fps {value!r} is not a number or a string like '30000/1001'")  # noqa: TRY004 -- the documented type
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"fps {value!r} is not a finite number")
    text = str(value).strip()
    if isinstance(value, str) and not re.fullmatch(r"\d{1,9}(\.\d{1,9}|/\d{1,9})?", text):
        raise ValueError(f"fps {value!r} is not a number or a string like '30000/1001'")
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"fps {value!r} is not a number or a string like '30000/1001'") from None
    if not 0 < rate <= _HIGHEST_FPS:
        raise ValueError(f"fps {value!r} is not above 0 and up to {_HIGHEST_FPS}")
    return rate
