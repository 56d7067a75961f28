"""URLs of strangers' jobs: fetched from public hosts or allowed ones, within limits, or refused."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile_web import HostileWeb
from job_samples import HELIOS, SECRET, archive_refusal, refusal

from prefect_renderfarm.blocks import SetupError
from prefect_renderfarm.blocks.http.url_rules import UrlRules
from prefect_renderfarm.flows.jobs.load import load_job


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return what sets the list of hosts."""
    return lambda hosts: monkeypatch.setenv("RENDERFARM_URL_HOSTS", hosts)


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Return what names lead to, as far as they are made up: each next time to the next address."""
    names: dict[str, list[str]] = {}
    look_up = socket.getaddrinfo

    def looking_up(host: Any, port: Any, *more: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        address = names[name].pop(0) if name in names else host
        return look_up(address, port, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", looking_up)
    return names


def refuse(url: str, words: str, folder: Path) -> None:
    """Make sure that a URL is not fetched, for a job or its input, and its secret is not shown."""
    for message in (refusal(lambda: load_job(url)), archive_refusal(url, folder)):
        assert words in message
        assert SECRET not in message


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST.", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "017700000001",
     "[::ffff:127.0.0.1]", "0.0.0.0"],  # noqa: S104
)  # fmt: skip
def test_this_machine_is_not_reached(hostile: HostileWeb, tmp_path: Path, host: str) -> None:
    """However this machine is written, it is refused and not asked."""
    refuse(hostile.url(f"/job.zip?X-Amz-Signature={SECRET}", host), "which is no public", tmp_path)
    assert hostile.asked == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://169.254.169.254/latest/a.zip", "is at 169.254.169.254, which is no public"),
        ("https://[fd00:ec2::254]/a.zip", "is at fd00:ec2::254, which is no public"),
        ("https://metadata.google.internal/a.zip", "is a cloud's metadata service"),
        ("https://metadata.example.com/a.zip", "is at 169.254.169.254, which is no public"),
        ("https://rebound.example.com/a.zip", "is at 10.0.0.1, which is no public"),
        (f"https://user:{SECRET}@example.com/a.zip#{SECRET}", "name or password"),
        ("https://example.com:99999/a.zip", "port 99999 is none"),
        ("https:///a.zip", "without https"),
    ],
)
def test_names_that_lead_inside(
    lookups: dict[str, list[str]], tmp_path: Path, url: str, words: str
) -> None:
    """Metadata services, and names that lead to private addresses, are not connected to."""
    lookups["metadata.example.com"] = ["169.254.169.254"] * 2
    lookups["rebound.example.com"] = ["10.0.0.1"] * 2
    refuse(url, words, tmp_path)


def test_a_name_is_looked_up_once(
    hostile: HostileWeb, lookups: dict[str, list[str]], allow: Callable[[str], None], tmp_path: Path
) -> None:
    """The address that was checked is connected to, whatever the name leads to a moment later."""
    allow("127.0.0.1")
    hostile.answers["/job.json"] = json.dumps(HELIOS).encode()
    lookups["localhost"] = ["127.0.0.1", "127.0.0.2"]
    assert load_job(hostile.url("/job.json"))[0].chunks
    assert hostile.asked == [(f"localhost:{hostile.port}", "/job.json")]
    assert lookups["localhost"] == ["127.0.0.2"]
    assert "is at 127.0.0.2" in refusal(lambda: load_job(hostile.url("/job.json")))
    lookups["other.example.com"] = ["127.0.0.1"]
    url = hostile.url("/job.json", "other.example.com")
    assert "certificate verify failed: Hostname mismatch" in refusal(lambda: load_job(url))


@pytest.mark.parametrize(
    ("hosts", "host", "reached"),
    [
        ("localhost", "localhost", True),
        ("LocalHost, a.example", "localhost.", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "evilexample.com", False),
        ("example.com", "a.example.com", False),
        ("127.0.0.0/8", "localhost", True),
        ("*, 127.0.0.1", "localhost", True),
        ("*", "localhost", False),
        ("10.0.0.0/8, fd00::/8", "localhost", False),
        ("s3://farm", "localhost", False),
    ],
)
def test_listed_hosts(
    hostile: HostileWeb, lookups: dict[str, list[str]], allow: Callable[[str], None],
    hosts: str, host: str, reached: bool,
) -> None:  # fmt: skip
    """The list says which hosts are asked; `*` is what is public."""
    allow(hosts)
    lookups[host.rstrip(".")] = ["127.0.0.1"]
    message = refusal(lambda: load_job(hostile.url("/none.json", host)))
    if reached:
        # Only `localhost` has a certificate.
        assert "answered 404" in message or "CERTIFICATE_VERIFY_FAILED" in message
    else:
        assert "RENDERFARM_URL_HOSTS" in message
        assert hostile.asked == []


def test_listed_name_leads_to_no_metadata(
    lookups: dict[str, list[str]], allow: Callable[[str], None], tmp_path: Path
) -> None:
    """A name that is allowed may lead to a private address, but not to a machine's own services."""
    allow("assets.example.com")
    rules = UrlRules()
    for address in ("169.254.169.254", "fd00:ec2::254", "168.63.129.16", "::ffff:169.254.170.2"):
        lookups["assets.example.com"] = [address] * 2
        refuse("https://assets.example.com/a.zip", "which is no public", tmp_path)
    assert rules.allowed("assets.example.com", ["10.0.0.1", "fe80::1"]) == ["10.0.0.1"]


@pytest.mark.parametrize("variable", ["RENDERFARM_URL_HOSTS", "RENDERFARM_URL_SCHEMES"])
def test_a_list_that_says_nothing_stops_everything(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """With an entry that is not valid, nothing is fetched."""
    monkeypatch.setenv(variable, "https://a.example")
    with pytest.raises(SetupError, match=variable):
        load_job("https://example.com/job.json")
