"""Secrets in output and answers: shown as ***, in whichever of the usual ways they are written."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from prefect_renderfarm.blocks import LocalAdapter, WorkerJob
from prefect_renderfarm.blocks.processes.masking import Mask, query_secrets, warn_of_short


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


@pytest.mark.parametrize(
    "secret", ["abcd", "ab c", "äöüß", 'a"b\\', "a'b/", "\tabc\t~", "p@ss\x07w"]
)
def test_every_way_to_write_a_secret(secret: str) -> None:
    """Four characters and more are masked as they are, in JSON, in Python and in URLs."""
    mask = Mask(["", "unrelated", secret])
    bare = secret.strip()
    for text in (bare, json.dumps(bare), repr(bare), quote(bare, safe="")):
        assert mask(f"a {text} b") in ("a *** b", 'a "***" b', "a '***' b")


def test_short_secrets_are_left() -> None:
    """Values of less than four characters are part of any text, and left alone."""
    mask = Mask(["abc", " ab\t", "", "\n"])
    assert mask("abc ab") == "abc ab"
    assert mask.longest == 0


def test_lines_of_a_secret() -> None:
    """Each line of a secret is one, without the spaces around it; short lines are left alone."""
    mask = Mask(["first\n  second line \nxy\r\nthird"])
    assert mask("first/second line/xy/third") == "***/***/xy/***"


def test_longest_secret_first() -> None:
    """Of a secret that begins with another one, nothing is left; characters have no meaning."""
    mask = Mask(["pass", "password", "a.b*"])
    assert mask("password pass axb* a.b*") == "*** *** axb* ***"
    assert mask.longest == len("password")


def test_parsed_json() -> None:
    """Texts and names are masked in lists and objects, however deep; other values stay."""
    mask = Mask(["s3cret"])
    value = {"s3cret": ["s3cret", {"a": ("s3cret",)}, 1, None, True], "b": "my s3cret"}
    masked = {"***": ["***", {"a": ("s3cret",)}, 1, None, True], "b": "my ***"}
    assert mask.parsed(value) == masked  # JSON has no tuples
    assert mask.parsed([["s3cret"]]) == [["***"]]


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        ("https://h/a.zip?X-Sig=0123456%2B&r=europe", ["0123456%2B", "0123456+"]),
        ("https://h/?code=12345678", ["12345678", "12345678"]),
        ("https://h/?code=1234567", []),
        ("https://h/a#x?code=123456789", []),
        ("https://h/?code=123456789#part", ["123456789", "123456789"]),
        ("https://h/?123456789", []),
        ("https://h/a", []),
        ("https://h/?a=1234?5678", ["1234?5678", "1234?5678"]),
    ],
)
def test_secrets_of_a_query(url: str, secrets: list[str]) -> None:
    """Values of at least eight characters may be secret, as written and as decoded."""
    assert query_secrets(url) == secrets


def test_short_secrets_are_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning names the secrets that are too short, and shows none; others are not mentioned."""
    monkeypatch.setattr(logging.getLogger("prefect"), "propagate", True)
    LocalAdapter(secret_environment={"PIN": "987", "KEY": "long enough", "NONE": ""}).check()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "PIN: less than 4 characters are not masked" in caplog.text
    for text in ("987", "KEY", "NONE"):
        assert text not in caplog.text
    caplog.clear()
    warn_of_short({"KEY": "1234"})
    assert not caplog.records
