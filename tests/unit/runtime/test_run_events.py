"""A wait for the changes of runs ends when the server tells of one, and goes on without it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from queue import Queue
from typing import Any
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from processes_here import wait_for
from websockets.sync.server import ServerConnection, serve

from prefect_renderfarm.blocks.runtime import run_events as module
from prefect_renderfarm.blocks.runtime.run_events import run_events

RUN = uuid4()


def event() -> dict[str, Any]:
    """Return what a server sends when a run has changed its state."""
    resource = {"prefect.resource.id": f"prefect.flow-run.{RUN}"}
    found = {"occurred": datetime.now(UTC).isoformat(), "event": "prefect.flow-run.Running",
             "resource": resource, "id": str(uuid4())}  # fmt: skip
    return {"type": "event", "event": found}


class Server:
    """A server's stream of events: the filters it was sent, and how its connections ended."""

    def __init__(self) -> None:
        self.filters: list[Any] = []
        self.ends: list[int | None] = []
        self.events: Queue[dict[str, Any] | None] = Queue()

    def handle(self, connection: ServerConnection) -> None:
        """Speak with a subscriber until `None` is among the events, or it goes."""
        assert json.loads(connection.recv())["type"] == "auth"
        connection.send('{"type": "auth_success"}')
        self.filters.append(json.loads(connection.recv())["filter"])
        gone = threading.Thread(target=self._wait, args=(connection,))
        gone.start()
        while (told := self.events.get()) is not None:
            connection.send(json.dumps(told))
        connection.close()
        gone.join()

    def _wait(self, connection: ServerConnection) -> None:
        for _ in connection:
            pass
        self.ends.append(connection.close_code)
        self.events.put(None)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Run a server, to which a lost connection is made again at once."""
    monkeypatch.setattr(module, "_RECONNECT_SECONDS", 0.05)
    stream = Server()
    with serve(stream.handle, "127.0.0.1", 0, subprotocols=["prefect"]) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{serving.socket.getsockname()[1]}/api"
        with temporary_settings({PREFECT_API_URL: address}):
            yield stream
        serving.shutdown()
        thread.join()


def test_a_change_ends_the_wait(server: Server) -> None:
    """Once for what was before, and for each event; a connection that ends is made again."""
    with run_events(run=RUN) as wait:
        assert wait(10)
        assert not wait(0.05)
        server.events.put(event())
        assert wait(10)
        server.events.put(None)
        wait_for(lambda: len(server.filters) == 2)
        assert wait(10)
    assert server.filters[0]["resource"]["id"] == [f"prefect.flow-run.{RUN}"]
    wait_for(lambda: len(server.ends) == 2)
    assert server.ends[1] == 1000  # the subscriber has said that it goes


def test_without_a_server_a_wait_has_its_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that tells nothing is warned of once, and a wait takes as long as it may."""

    def refuse(*_: object, **__: object) -> None:
        tries.append(1)
        raise OSError("no websockets here")

    tries: list[int] = []
    monkeypatch.setattr(module, "_RECONNECT_SECONDS", 0.01)
    monkeypatch.setattr(module, "get_events_subscriber", refuse)
    with run_events() as wait:
        assert not wait(0.05)
        wait_for(lambda: len(tries) > 3)
    assert caplog.messages == ["events of runs: no websockets here; it is tried again"]
