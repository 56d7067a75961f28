"""Chunks that are finished: which need not be rendered, whether they agree, when all will be."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import fmean

from prefect_renderfarm.blocks.errors import ChunkFileError
from prefect_renderfarm.blocks.media.model import Signature, difference
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.spec import Chunk
from prefect_renderfarm.flows.state.job_state import JobState

_ASKED_AT_ONCE = 8
# More reasons than these are not read; how many there are is said in any case.
_REASONS_TOLD = 20


class Consistency:
    """Remembers how the first chunk is coded; safe to use from several threads."""

    def __init__(self, rules: ChunkRules, known: Iterable[ChunkResult] = ()) -> None:
        self._uniform, self._check_first = rules.uniform, rules.check_first
        self._first: tuple[int, Signature] | None = None
        self._lock = threading.Lock()
        for result in known:
            self.check(result)

    def check(self, result: ChunkResult) -> None:
        """Compare a chunk with the first one, if the stitcher asks. Raises: ChunkFileError."""
        if not self._uniform:
            return
        with self._lock:
            self._first = self._first or (result.id, result.signature)
            first, expected = self._first
        if odd := difference(expected, result.signature):
            raise ChunkFileError(
                f"chunk {result.id}: its command succeeded, but its file {result.output_file!r} "
                f"differs from that of chunk {first}, which was done before it: {odd}"
            )

    def check_film(self) -> None:
        """Raise StitchInputError if the film cannot be made of chunks coded as the first one."""
        if self._first is not None:
            self._check_first(self._first[1])


def finished_chunks(
    state: JobState,
    chunks: Sequence[Chunk],
    rules: ChunkRules,
    *,
    force: bool = False,
    others: bool = True,
) -> dict[int, ChunkResult]:
    """Return the manifests of chunks that are done and whose files are as rendered, by id.

    Whatever else counts as done, with `force` all, does so no more, and the log says why. `others`
    says whether chunks count that other jobs have rendered.
    """
    if force:
        state.forget_chunks(chunks)
        return {}
    own = state.objects.manifests(chunk.id for chunk in chunks)
    found = {
        chunk.id: own[chunk.id]
        for chunk in chunks
        if chunk.id in own and own[chunk.id].identity == state.identity(chunk)
    }
    if others:
        known = state.known(chunk for chunk in chunks if chunk.id not in found)
        with ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="known") as askers:
            taken = askers.map(state.take_over, known)
            found |= {result.id: result for result in taken if result is not None}
    reasons = dict.fromkeys(own.keys() - found.keys(), "its inputs or variables have changed")
    reasons |= state.faults(found.values())
    consistency = Consistency(rules)
    for number in sorted(found.keys() - reasons.keys()):
        try:
            consistency.check(found[number])
        except ChunkFileError as error:
            reasons[number] = str(error)
    consistency.check_film()
    kept = {number: result for number, result in found.items() if number not in reasons}
    state.forget_chunks(chunk for chunk in chunks if chunk.id in reasons)
    told = [f"chunk {n} is rendered again: {reasons[n]}" for n in sorted(reasons)[:_REASONS_TOLD]]
    if len(reasons) > _REASONS_TOLD:
        told.append(f"so are {len(reasons) - _REASONS_TOLD} more chunks")
    if told:
        run_log().info("%s", "\n".join(told))
    if kept:
        run_log().info(
            "%d of %d chunks are done already, by an earlier run", len(kept), len(chunks)
        )
    return kept


@dataclass(frozen=True)
class Eta:
    """How far a rendering is, and how long it will still take."""

    finished: Sequence[float]  # seconds that each finished chunk took
    running: Sequence[float]  # seconds since each chunk under way has begun
    waiting: int  # number of chunks that have not begun

    def seconds_left(self, width: int) -> float | None:
        """Return how long it will take until the last chunk is done; None: nothing to go by.

        Every chunk is taken to last as long as the finished ones did on average, and `width` chunks
        are rendered at once.
        """
        if not self.finished:
            return None
        each = fmean(self.finished)
        left = [max(each - age, 0.0) for age in self.running]
        ends = sorted([*left, *[0.0] * (width - len(left))])  # of the chunks in each place
        # No place ends more than a chunk after another: they take the rest in turn.
        rounds, last = divmod(max(self.waiting, 0) - 1, len(ends))
        return ends[last] + each * (rounds + 1)
