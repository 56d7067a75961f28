"""Which URLs are fetched when a job names them: any public host by https, unless configured.

A job may come from a stranger, and whoever fetches for it is inside a network: a job's URL must not
reach what only machines there reach, such as a cloud's metadata service with its credentials. Two
variables of the process that fetches configure it:

    RENDERFARM_URL_HOSTS    separated by commas: names (`assets.example.com`), names below one
                            (`*.example.com`), addresses and networks (`10.1.0.0/16`), any public
                            host (`*`); and buckets (`s3://farm`, `s3://team-*`). Nothing else is
                            fetched. Empty, or without buckets: any public host, or any bucket
    RENDERFARM_URL_SCHEMES  https, s3, file; default all. Without file, `assetsUrl` names no folder
                            outside of the job folder

A listed name may lead to a private address. Link-local addresses and the own services of clouds are
never fetched, whatever is listed.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase

import httpx

from prefect_renderfarm.blocks.errors import SetupError
from prefect_renderfarm.blocks.runtime.text import excerpt

HOSTS_VARIABLE = "RENDERFARM_URL_HOSTS"
SCHEMES_VARIABLE = "RENDERFARM_URL_SCHEMES"
SCHEMES = ("https", "s3", "file")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# IANA IPv6 Global Unicast Address Assignments: nothing else is public.
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
# RFC 6052, section 2.1: IPv4 addresses in networks without IPv4.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Link-local, such as 169.254.169.254 of clouds, multicast and unspecified addresses. Services of
# clouds for their own machines: of Amazon (EC2 User Guide, "Instance metadata service"), Google,
# Scaleway, Microsoft ("What is IP address 168.63.129.16?") and Alibaba. The last ones are for
# protocols (RFC 6890, table 7), and public to Python before 3.11.9.
_NEVER = [
    ipaddress.ip_network(text)
    for text in ("169.254.0.0/16", "fe80::/10", "224.0.0.0/4", "ff00::/8", "0.0.0.0/32", "::",
                 "fd00:ec2::/32", "fd20:ce::254", "fd00:42::42", "168.63.129.16",
                 "100.100.100.200", "192.0.0.0/24")
]  # fmt: skip
# Names of such services, for a proxy that looks up hosts itself.
_CLOUD_NAMES = ("metadata.google.internal", "metadata.goog")
_NAME = re.compile(r"(\*\.)?[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_BUCKET = re.compile(r"s3://([A-Za-z0-9.*_-]+)")


class UrlRefused(Exception):
    """A URL may not be fetched; the message says why, and which variable allows it."""


class UrlRules:
    """What the two variables allow. Raises SetupError if one of them is not valid."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.schemes = set(_entries(environment.get(SCHEMES_VARIABLE, ""))) or set(SCHEMES)
        if unknown := self.schemes.difference(SCHEMES):
            raise SetupError(
                f"{SCHEMES_VARIABLE}: {excerpt(min(unknown))} is none of {', '.join(SCHEMES)}"
            )
        entries = _entries(environment.get(HOSTS_VARIABLE, ""))
        self._names: list[str] = []
        self._networks: list[Network] = []
        self._buckets: list[str] = []
        for entry in entries:
            if (bucket := _BUCKET.fullmatch(entry)) is not None:
                self._buckets.append(bucket[1])
            elif (network := _network(entry)) is not None:
                self._networks.append(network)
            elif _NAME.fullmatch(entry.lower()):
                self._names.append(entry.lower())
            elif entry != "*":
                raise SetupError(
                    f"{HOSTS_VARIABLE}: {excerpt(entry)} is no host: give names such as "
                    "assets.example.com or *.example.com, networks such as 10.1.0.0/16, *, or "
                    "buckets such as s3://farm"
                )
        self._public = "*" in entries or not (self._names or self._networks)

    def require_scheme(self, scheme: str) -> None:
        """Refuse a scheme that is not allowed. Raises: UrlRefused."""
        if scheme not in self.schemes:
            raise UrlRefused(
                f"{scheme} URLs are not allowed here: {SCHEMES_VARIABLE} allows "
                f"{', '.join(sorted(self.schemes))}"
            )

    def require_bucket(self, bucket: str) -> None:
        """Refuse a bucket that jobs may not read. Raises: UrlRefused."""
        self.require_scheme("s3")
        if not any(fnmatchcase(bucket, pattern) for pattern in self._buckets or ["*"]):
            raise UrlRefused(f"bucket {excerpt(bucket)} is not among those of {HOSTS_VARIABLE}")

    def host_of(self, url: httpx.URL) -> str:
        """Return the host of a URL that may be looked up. Raises UrlRefused if none may be."""
        self.require_scheme("https")
        if url.scheme != "https" or not url.host:
            raise UrlRefused("it leads to an address without https")
        # RFC 9110, section 4.2.4: deprecated, since they are shown wherever a URL is.
        if url.userinfo:
            raise UrlRefused("it holds a name or password: use a presigned URL")
        if url.port is not None and not 0 < url.port < 65536:
            raise UrlRefused(f"port {url.port} is none")
        host = url.raw_host.decode("ascii").lower().rstrip(".")
        if host in _CLOUD_NAMES:
            raise UrlRefused(f"host {excerpt(host)} is a cloud's metadata service")
        if not (self._public or self._networks or self.names_host(host)):
            raise UrlRefused(f"host {excerpt(host)} is not among those of {HOSTS_VARIABLE}")
        return host

    def names_host(self, host: str) -> bool:
        """Return whether a host is listed by its name."""
        return any(fnmatchcase(host, name) for name in self._names)

    def allowed(self, host: str, found: Iterable[str]) -> list[str]:
        """Return those found addresses that may be connected to. Raises UrlRefused if none may."""
        found = list(dict.fromkeys(found))
        allowed = [text for text in found if self._allows(host, ipaddress.ip_address(text))]
        if not allowed:
            raise UrlRefused(
                f"host {excerpt(host)} is at {', '.join(found[:3]) or 'no address'}, which is no "
                f"public address and not among those that {HOSTS_VARIABLE} allows"
            )
        return allowed

    def _allows(self, host: str, address: Address) -> bool:
        real = _embedded_v4(address)

        def within(networks: list[Network]) -> bool:
            return any(each in network for network in networks for each in (address, real))

        public = real.is_global and (real.version == 4 or real in _PUBLIC_V6)
        allowed = within(self._networks) or self.names_host(host) or (self._public and public)
        return allowed and not within(_NEVER)


def public_part(url: str) -> str:
    """Return a URL without what may be secret in it: name, password, query, fragment."""
    if "://" not in url:
        return url
    plain = url.partition("?")[0].partition("#")[0]
    return re.sub(r"://[^/\\]*@", "://", plain)


def _embedded_v4(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for; else the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def _network(entry: str) -> Network | None:
    with suppress(ValueError):
        return ipaddress.ip_network(entry.strip("[]"))
    return None


def _entries(text: str) -> list[str]:
    return [entry.strip() for entry in text.split(",") if entry.strip()]
