"""Addresses of workers: which may be used, and how errors name them."""

from __future__ import annotations

import ipaddress

import httpx


def check_address(address: str, allow_http: bool) -> None:
    """Refuse an address that cannot be a worker's, or that would tell secrets.

    Args:
        address: The address.
        allow_http: Whether http may be used to other machines than this one.

    Raises:
        ValueError: Saying what is wrong; neither name nor password is shown.
    """
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL as error:
        raise ValueError(f"url: is none: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("url: give the whole address, such as https://worker.example.com")
    # RFC 9110, section 4.2.4: they are deprecated, since they are shown wherever an address is.
    if url.userinfo:
        raise ValueError("url: holds a name or password: use the fields for tokens and headers")
    if url.scheme == "http" and not (allow_http or _is_loopback(url.host)):
        raise ValueError(
            "url: http to another machine sends the job in the clear: use https, or allow_http"
        )


def place_of(url: httpx.URL) -> str:
    """Return what errors call a worker: its address, without what may be secret in it."""
    return f"worker {url.copy_with(query=None, fragment=None)}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
