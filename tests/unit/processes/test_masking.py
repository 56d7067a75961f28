"""Secrets that commands print: shown as ***, whatever way they are written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prefect_renderfarm.blocks import LocalAdapter, WorkerJob


@pytest.mark.parametrize("field_name", ["environment", "secret_environment"])
def test_printed_secrets_are_masked(tmp_path: Path, field_name: str) -> None:
    """What a command prints of its secrets is shown as ***, in long lines and other spellings."""
    key, token, short = "-----BEGIN-----\nab\"c'd\\\\efgh\n-----END-----", "to/ken+of it", "on"
    adapter = LocalAdapter(**{field_name: {"KEY": key, "TOKEN": token, "SHORT": short}})
    (tmp_path / "print.py").write_text(
        "import json, os, urllib.parse\n"
        "key, token = os.environ['KEY'], os.environ['TOKEN']\n"
        "print(key, json.dumps(key), repr(key), urllib.parse.quote(token, safe=''))\n"
        "for missing in range(len(token) + 2):\n"
        "    print('x' * (8192 - missing) + token)\n"
        "print('the light is', os.environ['SHORT'])\n"
    )
    log_file = tmp_path / "log.txt"
    job = WorkerJob(command=f"'{sys.executable}' print.py", cwd=tmp_path, log_file=log_file)
    result = adapter.execute(job)
    for text in (result.stdout, log_file.read_text()):
        joined = text.replace("\n", "")
        shown = any(part in joined for part in (token, "to%2Fken%2Bof%20it", "efgh", "BEGIN"))
        assert shown == (field_name == "environment")
        assert ("***" in joined) != shown
        assert "the light is on" in joined
