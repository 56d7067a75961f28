"""What this run tells others of the chunks that it renders, every few seconds."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from uuid import uuid4

from prefect_renderfarm.blocks.errors import RenderFarmError
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.flows.state.holders import LEASES, LeaseRecord
from prefect_renderfarm.flows.state.job_folder import JobFolder

# A record that could not be written is written again after this.
_RETRY_SECONDS = 2.0
_FAREWELL_SECONDS = 5.0
# The part of the silence after which a run doubts itself: before others give it up.
_DOUBT = 0.8
_NONE: frozenset[int] = frozenset()


class OwnRecord:
    """The record of a run, and a thread that writes it as long as the run lives.

    Args:
        folder: The job's folder.
        family: See `Lease`, and so are the next two.
        beat_seconds: Seconds between two signs of life.
        silent_seconds: Seconds of silence after which a run is taken for dead.
        after_beat: Called when the thread has written the record.

    Attributes:
        record: What was written last.
        state: Held by whoever changes the next three, and for as long as they shall not change.
        wanted: The chunks that the run asks for.
        held: The chunks that are its own.
        used: The chunks that it uses.
        announced: Under which name which wanted chunks were written last.
    """

    def __init__(
        self,
        folder: JobFolder,
        family: str,
        beat_seconds: float,
        silent_seconds: float,
        after_beat: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._family = family
        self._beat_seconds = beat_seconds
        self._trusted_seconds = _DOUBT * silent_seconds
        self._after_beat = after_beat
        self._log = run_log()
        self._warned: set[str] = set()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._writing = threading.Lock()  # records are written in order
        self.state = threading.Lock()
        self.record = LeaseRecord.of_this_run()
        self.wanted = self.held = self.used = _NONE
        self.announced = (self.record.holder, _NONE)
        self._written_at = math.inf  # when the last record that came through was begun

    @property
    def begun(self) -> bool:
        """Whether others can find the record."""
        return self._thread is not None

    @property
    def over(self) -> bool:
        """Whether the run has given all back, for good."""
        return self._over.is_set()

    def pause(self) -> bool:
        """Wait until it is worth looking again; return whether the run has given all back."""
        return self._over.wait(self._folder.poll_seconds)

    def trusted_held(self) -> frozenset[int]:
        """Return the chunks that are the run's own, if nobody can have taken it for dead."""
        written_at, held = self._written_at, self.held  # in this order: see `_begin_anew`
        return held if _clock() - written_at <= self._trusted_seconds else _NONE

    def publish(self) -> None:
        """Write the record; begin anew if it came so late that others may call this run dead.

        Raises:
            StorageError: The storage did not answer.
            OSError: The job folder cannot be written.
        """
        self._start()
        with self._writing:
            while not self.over:
                begun = _clock()
                with self.state:
                    self.record = self.record.next(self.wanted, self.held, self.used)
                self._folder.write_record(self._name, self.record.model_dump_json())
                if _clock() - self._written_at <= self._trusted_seconds:
                    self._written_at = begun
                    self.announced = (self.record.holder, self.record.wanted)
                    return
                self._begin_anew()

    def end(self) -> None:
        """Give all chunks back, for good; a storage that does not answer holds up no run."""
        self._over.set()
        with self.state:
            self.wanted = self.held = self.used = _NONE
        if self._thread is not None:
            self._thread.join(_FAREWELL_SECONDS)

    def warn(self, message: str, *arguments: object) -> None:
        """Tell a person of something, once."""
        if message not in self._warned:
            self._warned.add(message)
            # rich, which prints Prefect's log, raises SystemExit at a broken pipe.
            with suppress(Exception, SystemExit):
                self._log.warning(message, *arguments)

    @property
    def _name(self) -> str:
        return f"{LEASES}/{self._family}.{self.record.holder}.json"

    def _begin_anew(self) -> None:
        """Take a new name, and ask for the chunks that were held."""
        old = self._name
        with self.state:
            self.record = self.record.model_copy(update={"holder": uuid4().hex})
            self.announced = (self.record.holder, _NONE)
            self.wanted |= self.held
            self.held = _NONE
            self._written_at = math.inf
        with suppress(RenderFarmError, OSError):
            self._folder.delete_record(old)
        self.warn(
            "nothing was heard of this run for more than %.0f s: others may have taken its chunks",
            self._trusted_seconds,
        )

    def _start(self) -> None:
        if self._thread is None and not self.over:
            self._thread = threading.Thread(target=self._live, daemon=True)
            self._thread.start()

    def _live(self) -> None:
        """Write the record every few seconds, in a thread of its own; delete it in the end."""
        pause = self._beat_seconds
        while not self._over.wait(pause):
            try:
                self.publish()
                self._after_beat()
            except (Exception, SystemExit) as error:  # see `warn`
                self.warn("the lease cannot be renewed: %s; it is tried again", error)
            late = self.wanted or _clock() - self._written_at > self._beat_seconds
            pause = min(self._beat_seconds, _RETRY_SECONDS) if late else self._beat_seconds
        try:
            with self._writing:
                self._folder.delete_record(self._name)
        except Exception as error:
            self.warn("the lease cannot be given back, and ends by itself: %s", error)


def _clock() -> float:
    """Return seconds that go on while this machine sleeps, where the system counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
