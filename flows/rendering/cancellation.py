"""Events that end work: one for a job, and one for each attempt, which ends with its job."""

from __future__ import annotations

import threading
from weakref import WeakSet


class StopSwitch(threading.Event):
    """An event that sets those that were made from it, too."""

    def __init__(self) -> None:
        super().__init__()
        self._children: WeakSet[StopSwitch] = WeakSet()
        self._family = threading.Lock()

    def child(self) -> StopSwitch:
        """Return an event that is set when this one is, and may be set alone."""
        child = StopSwitch()
        with self._family:
            self._children.add(child)
            if self.is_set():
                child.set()
        return child

    def set(self) -> None:
        """Set this event and all that came of it."""
        super().set()
        with self._family:
            children = list(self._children)
        for child in children:
            child.set()
