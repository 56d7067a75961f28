"""Which URLs are fetched: any public host by https, or what two variables list; never a cloud's."""

from __future__ import annotations

import httpx
import pytest

from prefect_renderfarm.blocks import SetupError
from prefect_renderfarm.blocks.http.url_rules import UrlRefused, UrlRules, public_part

# Never fetched, whatever is listed: link-local addresses, and the services of clouds.
SERVICES = (
    "169.254.169.254", "169.254.170.2", "fe80::a9fe:a9fe", "fe80::1%eth0", "fd00:ec2::254",
    "fd00:ec2::23", "fd20:ce::254", "fd00:42::42", "168.63.129.16", "100.100.100.200",
    "192.0.0.192", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1",
    "0.0.0.0", "::", "224.0.0.1", "ff02::1",  # noqa: S104
)  # fmt: skip


def rules(hosts: str = "", schemes: str = "") -> UrlRules:
    """Return the rules of the two variables."""
    return UrlRules({"RENDERFARM_URL_HOSTS": hosts, "RENDERFARM_URL_SCHEMES": schemes})


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("64:ff9b::5db8:d822", True),  # 93.184.216.34, as an IPv6 network sees it
        *((text, False) for text in (
            *SERVICES, "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.1.1",
            "100.64.0.1", "198.18.0.1", "240.0.0.1", "255.255.255.255", "::1", "::7f00:1",
            "fec0::1", "2001:db8::1", "::ffff:127.0.0.1", "64:ff9b:1::1", "64:ff9b:1::5db8:d822",
            "2002:7f00:1::", "2001::1", "::ffff:0:127.0.0.1", "4000::1",
        )),
    ],
)  # fmt: skip
def test_public_addresses(text: str, public: bool) -> None:
    """Private, local and clouds' addresses are not public, in whichever form they are written."""
    assert (text in rules().allowed("a.example", ["8.8.8.8", text])) == public


@pytest.mark.parametrize("address", SERVICES)
def test_services_of_clouds_are_never_fetched(address: str) -> None:
    """Neither a listed name nor a listed network, nor both, leads to a metadata service."""
    everything = "*, assets.example.com, 0.0.0.0/0, ::/0"
    for hosts in ("", "*", "assets.example.com", "169.254.0.0/16, fd00::/8, fe80::/10", everything):
        with pytest.raises(UrlRefused, match=r"'assets.example.com' is at .*, which is no public"):
            rules(hosts).allowed("assets.example.com", [address])
        # Another address of the host does.
        if "assets" in hosts:
            found = rules(hosts).allowed("assets.example.com", [address, "10.0.0.1"])
            assert found == ["10.0.0.1"]


@pytest.mark.parametrize("host", ["metadata.google.internal", "METADATA.google.internal.",
                                  "metadata.goog"])  # fmt: skip
def test_names_of_services_are_never_fetched(host: str) -> None:
    """A cloud's name for its metadata service is refused before it is looked up, even if listed."""
    for hosts in ("", "*", "*.google.internal, metadata.goog, metadata.google.internal"):
        with pytest.raises(UrlRefused, match="is a cloud's metadata service"):
            rules(hosts).host_of(httpx.URL(f"https://{host}/computeMetadata/v1"))


PRIVATE, PUBLIC = "10.1.2.3", "93.184.216.34"


@pytest.mark.parametrize(
    ("hosts", "host", "allowed"),
    [
        ("", "a.example", [PUBLIC]),
        ("*", "a.example", [PUBLIC]),
        ("s3://farm", "a.example", [PUBLIC]),
        ("a.example", "a.example", [PRIVATE, PUBLIC]),
        ("A.Example", "a.example", [PRIVATE, PUBLIC]),
        ("*.example", "a.example", [PRIVATE, PUBLIC]),
        ("*.example", "b.a.example", [PRIVATE, PUBLIC]),
        ("*.example", "example", []),
        ("*.example", "evilexample", []),
        ("a.example", "b.a.example", []),
        ("10.0.0.0/8", "a.example", [PRIVATE]),
        ("10.1.2.3", "a.example", [PRIVATE]),
        ("10.1.2.4", "a.example", []),
        ("*, 10.0.0.0/8", "a.example", [PRIVATE, PUBLIC]),
        ("*, 192.168.0.0/16", "a.example", [PUBLIC]),
        ("other.example, 192.168.0.0/16", "a.example", []),
    ],
)
def test_listed_hosts(hosts: str, host: str, allowed: list[str]) -> None:
    """The list says to which addresses of which hosts a connection is made."""
    listed = rules(hosts)
    found = [PRIVATE, PUBLIC, PRIVATE]
    if allowed:
        assert listed.host_of(httpx.URL(f"https://{host}/x")) == host
        assert listed.allowed(host, found) == allowed
    else:
        with pytest.raises(UrlRefused, match="RENDERFARM_URL_HOSTS"):
            listed.allowed(listed.host_of(httpx.URL(f"https://{host}/x")), found)


def test_embedded_addresses_are_listed_as_either() -> None:
    """A listed network allows its addresses as an IPv6 network sees them, and the other way."""
    mapped = "::ffff:10.1.2.3"
    assert rules("10.0.0.0/8").allowed("a", [mapped]) == [mapped]
    assert rules("::ffff:0:0/96").allowed("a", [mapped]) == [mapped]
    assert rules("[fd12::1]").allowed("a", ["fd12::1"]) == ["fd12::1"]


def test_host_without_an_address() -> None:
    """A host that is nowhere is refused in the same way; at most three addresses are shown."""
    with pytest.raises(UrlRefused, match="is at no address"):
        rules().allowed("a.example", [])
    with pytest.raises(UrlRefused, match=r"is at 10\.0\.0\.1, 10\.0\.0\.2, 10\.0\.0\.3, which"):
        rules().allowed("a.example", [f"10.0.0.{number}" for number in range(1, 6)])


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://a.example/x", "without https"),
        ("ftp://a.example/x", "without https"),
        ("/x", "without https"),
        ("https:///x", "without https"),
        ("https://user@a.example/x", "name or password"),
        ("https://:secret@a.example/x", "name or password"),
        ("https://a.example:0/x", "port 0 is none"),
        ("https://a.example:65536/x", "port 65536 is none"),
    ],
)
def test_urls_that_are_none(url: str, words: str) -> None:
    """Another scheme, no host, a password or an impossible port is refused."""
    with pytest.raises(UrlRefused, match=words):
        rules().host_of(httpx.URL(url))
    for good in ("https://a.example:1/x", "https://a.example:65535/x", "https://A.example./x"):
        assert rules().host_of(httpx.URL(good)) == "a.example"


def test_names_only_behind_a_proxy() -> None:
    """Which hosts are listed by name; `*` and networks name none."""
    assert rules("a.example").names_host("a.example")
    for hosts in ("", "*", "10.0.0.0/8", "b.example"):
        assert not rules(hosts).names_host("a.example")


@pytest.mark.parametrize(
    ("hosts", "buckets", "others"),
    [
        ("", ("farm", "other"), ()),
        ("a.example", ("farm",), ()),
        ("s3://farm, s3://team-*", ("farm", "team-a", "team-"), ("farms", "Farm", "tea", "")),
    ],
)
def test_listed_buckets(hosts: str, buckets: tuple[str, ...], others: tuple[str, ...]) -> None:
    """Without a bucket in the list any is read, else the listed ones."""
    for bucket in buckets:
        rules(hosts).require_bucket(bucket)
    for bucket in others:
        with pytest.raises(UrlRefused, match="is not among those of RENDERFARM_URL_HOSTS"):
            rules(hosts).require_bucket(bucket)


def test_schemes() -> None:
    """Each scheme can be taken away."""
    for scheme in ("https", "s3", "file"):
        rules().require_scheme(scheme)
    listed = rules(schemes="file")
    assert listed.schemes == {"file"}
    with pytest.raises(UrlRefused, match=r"https URLs are not allowed here: .* allows file"):
        listed.host_of(httpx.URL("https://a.example"))
    with pytest.raises(UrlRefused, match="s3 URLs are not allowed here"):
        listed.require_bucket("farm")


@pytest.mark.parametrize(
    ("hosts", "schemes"),
    [(hosts, "") for hosts in
     ("10.0.0.1/8", "10.0.0.0/33", "https://a.example", "*example.com", "a..b", "a b", "s3://a/b",
      "s3://", "x" * 64, "ü.example", "a.*", "**")]
    + [("", "http"), ("", "https s3"), ("", "https, ftp")],
)  # fmt: skip
def test_a_list_that_says_nothing_stops_everything(hosts: str, schemes: str) -> None:
    """An entry that is not valid is no entry that is left out."""
    with pytest.raises(SetupError, match=r"RENDERFARM_URL_(HOSTS|SCHEMES): "):
        rules(hosts, schemes)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:s3cret@h/a?s3cret#s3cret", "https://h/a"),
        ("https://h/a@b?x", "https://h/a@b"),
        ("https://h/a#s3cret?s3cret", "https://h/a"),
        ("s3://farm/a b", "s3://farm/a b"),
        ("a?b#c@d", "a?b#c@d"),
    ],
)
def test_public_part(url: str, shown: str) -> None:
    """What may be secret in a URL is not shown; a path is no URL."""
    assert public_part(url) == shown


def test_no_variable_is_set() -> None:
    """Without the variables, the rules are those of empty ones."""
    assert vars(UrlRules({})) == vars(rules())
