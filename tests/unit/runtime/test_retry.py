"""What is repeated while a storage or a server does not answer, and for how long."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from prefect_renderfarm.blocks.errors import (
    AssemblyError,
    ObjectMissing,
    StorageError,
    StorageRefused,
)
from prefect_renderfarm.blocks.runtime.repeat import is_transient, retry


def answered(status: int) -> PrefectHTTPStatusError:
    """Return the error of a server that answers with a status."""
    request = httpx.Request("GET", "http://127.0.0.1/api")
    response = httpx.Response(status, request=request)
    return PrefectHTTPStatusError(str(status), request=request, response=response)


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (StorageError("away"), True),
        (ObjectMissing("no such object"), False),
        (StorageRefused("no key for you"), False),
        (httpx.ConnectError("refused"), True),
        (httpx.ReadTimeout("late"), True),
        *[(answered(status), True) for status in (408, 425, 429, 500, 502, 503, 504)],
        *[(answered(status), False) for status in (400, 401, 403, 404, 409, 422)],
        (AssemblyError("wrong"), False),
        (ValueError("wrong"), False),
    ],
    ids=str,
)
def test_transient_errors(error: Exception, transient: bool) -> None:
    """The type of an error tells whether the same call may succeed a moment later."""
    assert is_transient(error) is transient


class Clock:
    """A clock that only sleep moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        monkeypatch.setattr("time.monotonic", lambda: self.now)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the clock."""
    return Clock(monkeypatch)


def test_answer_after_errors(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """The pauses double, each is logged, and the answer is returned as soon as there is one."""
    caplog.set_level("INFO")
    errors: Iterator[Exception] = iter([StorageError("away"), answered(503), StorageError("away")])

    def call() -> str:
        if error := next(errors, None):
            raise error
        return "answer"

    assert retry(call, "the list", sleep=clock.sleep) == "answer"
    assert clock.pauses == [1, 2, 4]
    assert caplog.messages[0] == "the list: tried again in 1 s: away"
    assert len(caplog.messages) == 3


def test_last_error_counts(clock: Clock) -> None:
    """After 15 s, or the time given, the function's own error is raised."""

    def call() -> None:
        raise StorageError(f"away at {clock.now:g}")

    with pytest.raises(StorageError, match="away at 15"):
        retry(call, "it", sleep=clock.sleep)
    assert clock.pauses == [1, 2, 4, 8]
    clock.pauses.clear()
    with pytest.raises(StorageError):
        retry(call, "it", seconds=60, sleep=clock.sleep)
    assert max(clock.pauses) == 8


def test_other_errors_are_raised_at_once(clock: Clock) -> None:
    """What asking again does not change is not asked again."""
    calls = []

    def call() -> None:
        calls.append(1)
        raise ObjectMissing("no such object")

    with pytest.raises(ObjectMissing):
        retry(call, "it", sleep=clock.sleep)
    assert (len(calls), clock.pauses) == (1, [])
