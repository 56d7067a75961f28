"""Secrets in texts that others wrote, such as a program's output or a server's answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl, quote

SHOWN = "***"
# Shorter values, such as 1 or on, are in any text, and are no secrets.
LEAST_CHARACTERS = 4
# A URL's query also says things like region=europe, which are no secrets.
_LEAST_QUERY_CHARACTERS = 8


class Mask:
    """Shows secrets as `***`.

    A secret of several lines, such as a private key, is looked for line by line. It is also found
    as JSON, Python and URLs write it; not if it was encoded otherwise, such as in Base64.

    Args:
        secrets: The secrets; those of less than four characters are left alone.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        lines = {line.strip() for secret in secrets for line in secret.splitlines()}
        words = {
            word
            for line in lines
            if len(line) >= LEAST_CHARACTERS
            for word in (line, json.dumps(line)[1:-1], repr(line)[1:-1], quote(line, safe=""))
        }
        self.longest = max(map(len, words), default=0)
        # The longest first: one secret may begin with another.
        either = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
        self._pattern = re.compile(either) if words else None

    def __call__(self, text: str) -> str:
        """Return a text without the secrets."""
        return self._pattern.sub(SHOWN, text) if self._pattern else text

    def inside(self, value: Any) -> Any:
        """Return a value as JSON has it, without the secrets in its texts."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, list):
            return [self.inside(item) for item in value]
        if isinstance(value, dict):
            return {self(key): self.inside(item) for key, item in value.items()}
        return value


NO_SECRETS = Mask([])


def query_secrets(url: str) -> list[str]:
    """Return what may be secret in a URL's query, as it is there and as it is meant."""
    query = url.partition("#")[0].partition("?")[2]
    raw = [part.partition("=")[2] for part in query.split("&")]
    meant = [value for _, value in parse_qsl(query)]
    return [value for value in raw + meant if len(value) >= _LEAST_QUERY_CHARACTERS]
