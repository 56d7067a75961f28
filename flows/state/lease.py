"""Which chunks of a job this run renders, when other runs render the same job at the same time.

Each run has one record, `leases/<family>.<holder>.json` beside the job's spec, and writes no other.
The record says which chunks the run *holds* and which it *wants*. To take a chunk, a run

1. writes its record with the chunk as wanted,
2. reads the records of all others that live,
3. holds the chunk if no other wants or holds it. If another holds it, the chunk is the other's. If
   another wants it, the later one, by (since, holder), withdraws, and the earlier one goes back to
   2 until that has happened, or until the other holds it: that one may have read before 1.

No chunk has two living holders. Suppose A and B both hold chunk c. Each wrote c into its record
before it read the other's, and it has been there ever since. A did not find c in the record of B,
so B wrote it after A had read, and read only after that; by then it was in the record of A, and B
found it. How fast anybody is and what clocks say has no part in this (Herlihy and Shavit, The Art
of Multiprocessor Programming, chapter 1, call it the flag principle).

Somebody gets it. A run waits only for runs that are later than itself, so none wait in a circle;
and each of them withdraws, holds, or dies. The earliest withdraws only where another holds.

A run that puts the film together *uses* chunks: several may, but nobody may render them anew. To
use a chunk, a run writes it into its record as used, then reads the others'. Whoever wants a used
chunk withdraws, so the run may use it when no other wants or holds it; the reason is the same. A
run that waits for chunks neither holds nor uses any: so none wait in a circle here, either. Unlike
what is held, what is used is not asked for again by a run that was halted.

This takes a storage that shows in lists and reads what has been written before, as S3 and Google
Cloud Storage do. A client of NFS lists a folder anew when it has written into it, as each run has
when it takes chunks.

A run that dies leaves its record behind, and others find that it is dead (see `Holders`). If they
err, because it was halted or cut off for longer than a living run may be silent, the run notices
it with the first record that it writes afterwards. It then takes a new name and asks anew for what
it held; what others have taken by then is not its own any more.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from contextlib import suppress
from uuid import uuid4

from prefect_renderfarm.blocks.errors import JobError, RenderFarmError, SetupError, StorageRefused
from prefect_renderfarm.flows.runs.names import batch_name
from prefect_renderfarm.flows.state.heartbeat import OwnRecord
from prefect_renderfarm.flows.state.holders import Holders, LeaseRecord, chunks_of
from prefect_renderfarm.flows.state.job_folder import JobFolder

BEAT_SECONDS = 10.0
# Four beats may be lost. Long enough for a storage's hiccups, short for people who wait.
SILENT_SECONDS = 45.0
_FAMILY = re.compile(r"[0-9A-Za-z_-]{1,64}")


class Lease:
    """The chunks that this run has to itself among all runs of the job.

    A context manager: entering takes `chunk_ids`, leaving gives all back. A thread tells others
    that the run lives. With a kind of storage that cannot be listed there is no lease: then every
    chunk is the run's own, as far as it can know.

    Args:
        folder: The job's folder.
        chunk_ids: The chunks to take first.
        family: What the runs have in common that belong to one run of the job; they may hold the
            same chunks. None: the run begins a family of its own, see the attribute `family`.
        beat_seconds: Seconds between two signs of life.
        silent_seconds: Seconds of silence after which a run is taken for dead; the same for all.

    Raises:
        JobError: The family is no name.
    """

    def __init__(
        self,
        folder: JobFolder,
        chunk_ids: Iterable[int] = (),
        *,
        family: str | None = None,
        beat_seconds: float = BEAT_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        self.family = family or uuid4().hex
        if not _FAMILY.fullmatch(self.family):
            raise JobError(f"family {family!r} is no id of a run: give that of the first run")
        self._folder = folder
        self._first = frozenset(chunk_ids)
        self._own = OwnRecord(folder, self.family, beat_seconds, silent_seconds, self._after_beat)
        self._holders = Holders(folder, self.family, silent_seconds)
        self._others: list[LeaseRecord] = []
        self._alone = False
        self._taking = threading.Lock()  # one thread at a time settles what is wanted

    def __enter__(self) -> Lease:
        try:
            self.take(self._first)
        except BaseException:
            self.release()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    @property
    def mine(self) -> frozenset[int]:
        """The chunks that are this run's own now; asks nobody.

        Empty while others may take this run for dead: what was its own may then become another's.
        Look here before a chunk is begun.
        """
        return self._own.trusted_held()

    @property
    def hoped_for(self) -> frozenset[int]:
        """The chunks that are this run's own, or may be so again in a moment; asks nobody."""
        with self._own.state:
            return self._own.held | self._own.wanted

    def take(self, chunk_ids: Iterable[int]) -> set[int]:
        """Take chunks, as far as no other run has them; those taken before stay.

        Waits for other runs that want the same chunks in this moment, for as long as it takes to
        write and read a record, or to find that one of them is dead.

        Returns:
            Those of the chunks that are this run's own.

        Raises:
            StorageError: The storage did not answer; no more chunks are taken.
            OSError: The job folder cannot be read or written; no more chunks are taken.
        """
        ids = frozenset(chunk_ids)
        with self._taking:
            new = ids - self._own.held
            if new:
                new -= chunks_of(self._look())
            if self._alone:
                with self._own.state:
                    self._own.held |= ids
            elif new or (ids and not self._own.begun):  # a run that gets nothing is seen, too
                self._settle_all(new)
        return set(ids & self.mine)

    def use(self, chunk_ids: Iterable[int]) -> set[int]:
        """Keep other runs from rendering chunks anew, which are done; they may use them, too.

        Returns:
            Those of the chunks that no other run renders.

        Raises:
            StorageError: The storage did not answer.
            OSError: The job folder cannot be read or written.
        """
        ids = frozenset(chunk_ids)
        with self._taking:
            self._look()
            if self._alone:
                return set(ids)
            with self._own.state:
                self._own.wanted -= ids
                self._own.held -= ids
                self._own.used |= ids
            self._own.publish()
            while any(ids & other.wanted for other in self._look()):
                if self._own.pause():
                    break
            theirs = ids.intersection(chunk for other in self._others for chunk in other.held)
            if theirs:
                with self._own.state:
                    self._own.used -= theirs
                self._own.publish()  # those who hold them shall not find them used
            return set(ids - theirs)

    def let_go(self, chunk_ids: Iterable[int]) -> None:
        """Give chunks back, such as those that are done; others hear of it with the next beat."""
        ids = frozenset(chunk_ids)
        with self._own.state:
            self._own.held -= ids
            self._own.used -= ids
            self._own.wanted -= ids

    def others(self, chunk_ids: Iterable[int]) -> set[int]:
        """Return those of some chunks that another living run has, uses or asks for, now.

        Raises:
            StorageError: The storage did not answer.
            OSError: The job folder cannot be read.
        """
        return set(chunks_of(self._look()).intersection(chunk_ids))

    def company(self) -> list[str]:
        """Return which other living runs render or assemble the job, for a log.

        Raises:
            StorageError: The storage did not answer.
            OSError: The job folder cannot be read.
        """
        return [other.who for other in self._look()]

    def waiting_for(self, chunk_ids: Iterable[int]) -> str:
        """Say, for a log, which runs have some chunks, as of the last look at them."""
        ids, job = frozenset(chunk_ids), self._folder.job.title
        return "; ".join(
            f"{batch_name(sorted(ids & other.chunks), job)}: {other.who}"
            for other in self._others
            if ids & other.chunks
        )

    def release(self) -> None:
        """Give all chunks back, for good."""
        self._own.end()

    def _look(self) -> list[LeaseRecord]:
        if not self._alone:
            try:
                self._others = self._holders.look()
            except (SetupError, StorageRefused) as error:
                self._alone, self._others = True, []
                self._own.warn("other runs of this job are not seen, and render it, too: %s", error)
        return self._others

    def _settle_all(self, new: frozenset[int]) -> None:
        with self._own.state:
            self._own.wanted |= new
        try:
            self._own.publish()
            while self._own.wanted and not self._own.over:
                self._settle()
                if self._own.wanted:
                    self._own.pause()
        finally:
            with self._own.state:
                self._own.wanted -= new

    def _settle(self) -> None:
        """Decide on the chunks that this run is known to want, as far as others let it."""
        holder, asked = self._own.announced
        won, lost = self._own.record.decide(asked, self._look())
        with self._own.state:
            if holder != self._own.record.holder:
                return  # it began anew meanwhile
            self._own.held |= won & self._own.wanted
            self._own.wanted -= won | lost
        if won or lost:
            self._own.publish()

    def _after_beat(self) -> None:
        """Decide on chunks that were held before this run began anew, unless a call is at it.

        A run that uses chunks looks who lives: else the dead would be `company` after an assembly,
        since nobody is silent but while somebody looks.
        """
        if self._own.wanted and self._taking.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._taking.release()
        elif self._own.used:
            with suppress(RenderFarmError, OSError):
                self._holders.look()
