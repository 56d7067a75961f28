"""Secrets in texts from elsewhere, such as a program's output or a server's answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote

from prefect_renderfarm.blocks.runtime.prefect_api import run_log

MASKED = "***"
# Shorter values, such as 1 or on, are part of any text: masking them would hide the text.
MIN_CHARACTERS = 4
# A URL's query also holds values such as region=europe, which are no secrets.
_MIN_QUERY_CHARACTERS = 8


class Mask:
    """Replaces each line of secrets, also as JSON, Python and URLs write it, in texts with `***`.

    Not lines of less than `MIN_CHARACTERS`; and not other encodings, such as Base64.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        lines = {line.strip() for secret in secrets for line in secret.splitlines()}
        words = {
            word
            for line in lines
            if len(line) >= MIN_CHARACTERS
            for word in (line, json.dumps(line)[1:-1], repr(line)[1:-1], quote(line, safe=""))
        }
        self.longest = max(map(len, words), default=0)
        # The longest first: one secret may begin with another.
        either = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
        self._pattern = re.compile(either) if words else None

    def __call__(self, text: str) -> str:
        """Return a text without the secrets."""
        return self._pattern.sub(MASKED, text) if self._pattern else text

    def parsed(self, value: Any) -> Any:
        """Return parsed JSON without the secrets in its texts and names."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, list):
            return [self.parsed(item) for item in value]
        if isinstance(value, dict):
            return {self(key): self.parsed(item) for key, item in value.items()}
        return value


NO_SECRETS = Mask([])


def warn_of_short(secrets: Mapping[str, str]) -> None:
    """Log which secrets, by their names, are too short to be masked."""
    short = [name for name, secret in secrets.items() if secret and not Mask([secret]).longest]
    if short:
        what = f"less than {MIN_CHARACTERS} characters are not masked in logs, errors and output"
        run_log().warning("%s: %s", ", ".join(short), what)


def query_secrets(url: str) -> list[str]:
    """Return the values of a URL's query that may be secret, as written and as decoded."""
    query = url.partition("#")[0].partition("?")[2]
    written = [part.partition("=")[2] for part in query.split("&")]
    decoded = [value for _, value in parse_qsl(query)]
    return [value for value in written + decoded if len(value) >= _MIN_QUERY_CHARACTERS]
