"""Calls at intervals: they go on after an error, and end with their block."""

from __future__ import annotations

import threading
import time

import pytest
from processes_here import wait_for

from prefect_renderfarm.blocks.runtime import repeat
from prefect_renderfarm.blocks.runtime.repeat import once_a_minute, periodic


def test_calls_go_on_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """An error is logged once, and the function is called again."""
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        raise OSError("no room")

    with periodic(call, 0.01, "heartbeat"):
        wait_for(lambda: len(calls) > 3)
    assert [line for line in caplog.messages if "no room" in line] == [
        "heartbeat: no room; it is tried again"
    ]


def test_calls_end_with_the_block() -> None:
    """Nothing is called any more when the block has been left."""
    calls: list[int] = []
    with periodic(lambda: calls.append(1), 0.01, "heartbeat"):
        wait_for(lambda: bool(calls))
    time.sleep(0.05)
    count = len(calls)
    time.sleep(0.1)
    assert len(calls) == count


@pytest.mark.parametrize("wait", [True, False])
def test_call_under_way(wait: bool) -> None:
    """Leaving the block waits for a call under way if that is asked for."""
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        go.wait(5)
        ended.set()

    with periodic(call, 0.01, "start", wait=wait):
        assert begun.wait(5)
        if wait:
            threading.Timer(0.2, go.set).start()
    assert ended.is_set() is wait
    go.set()


def test_one_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first line is told, and then one a minute; a text is made only if it is told."""
    now, made = [100.0], 0
    monkeypatch.setattr(repeat.time, "monotonic", lambda: now[0])
    told: list[str] = []
    tell = once_a_minute(told.append)

    def text() -> str:
        nonlocal made
        made += 1
        return "made"

    for seconds, line in ((0, "first"), (59, text), (60, text), (119, "late"), (120, "last")):
        now[0] = 100.0 + seconds
        tell(line)
    assert told == ["first", "made", "last"]
    assert made == 1
