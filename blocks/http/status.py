"""What the status of an HTTP answer means for a chunk. Sections are those of RFC 9110."""

from __future__ import annotations

from enum import Enum, auto
from http import HTTPStatus

import httpx


class Status(Enum):
    """What to do about an answer."""

    ANSWER = auto()  # read it
    BUSY = auto()  # ask again in a while
    LOST = auto()  # another attempt may do
    REFUSED = auto()  # another attempt would end the same way


# Errors of the client's that go away by themselves: 15.5.9, and RFC 8470, section 5.2.
_PASSING = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY})
_FIXES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "check the token or key",  # 15.5.2
    HTTPStatus.FORBIDDEN: "check the token or key, and what it may do",  # 15.5.4
    HTTPStatus.NOT_FOUND: "check the path of the URL",  # 15.5.5
    HTTPStatus.METHOD_NOT_ALLOWED: "check that the URL is a worker's",  # 15.5.6
    # 15.5.14
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "raise the worker's limit, or shorten the command",
}


def kind_of(response: httpx.Response) -> Status:
    """Return what to do about an answer."""
    code = response.status_code
    if response.is_success:
        return Status.ANSWER
    if code == HTTPStatus.TOO_MANY_REQUESTS:  # RFC 6585, section 4
        return Status.BUSY
    return Status.LOST if code >= 500 or code in _PASSING else Status.REFUSED


def words_of(response: httpx.Response) -> str:
    """Return what an answer's status says, and what to do about it, in one line."""
    code = response.status_code
    says = f"answers {code} {httpx.codes.get_reason_phrase(code)}".rstrip()
    if response.is_redirect:  # 15.4
        return f"{says}: give the address that it leads to"
    fix = _FIXES.get(code)
    if fix is None and kind_of(response) is Status.REFUSED:
        fix = "check that the URL is that of a worker of the same version"
    return f"{says}: {fix}" if fix else says
