"""Chunks that need not be rendered: what an earlier run, or another job, has rendered already."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from prefect_renderfarm.blocks.errors import ChunkFileError
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows.jobs.fields import Chunk
from prefect_renderfarm.flows.state.consistency import Consistency
from prefect_renderfarm.flows.state.job_state import JobState

_ASKED_AT_ONCE = 8
# More reasons than these are not read; how many there are is said in any case.
_REASONS_TOLD = 20


def finished_chunks(
    state: JobState, chunks: Sequence[Chunk], rules: ChunkRules, *, force: bool = False
) -> dict[int, ChunkResult]:
    """Find the chunks that are done and whose files are still what was rendered.

    Whatever else counts as done does so no more, and the log says why.

    Args:
        state: The job, whose inputs digest is known.
        chunks: The chunks to look for.
        rules: What the stitcher asks of chunks.
        force: Whether none of them shall be good enough.

    Returns:
        Their manifests, by their ids.

    Raises:
        StorageError: The storage did not answer.
    """
    if force:
        state.forget_chunks(chunks)
        return {}
    own = state.manifests(chunks)
    found = {
        chunk.id: own[chunk.id]
        for chunk in chunks
        if chunk.id in own and own[chunk.id].identity == state.identity(chunk)
    }
    found |= _rendered_elsewhere(state, [chunk for chunk in chunks if chunk.id not in found])
    reasons = dict.fromkeys(own.keys() - found.keys(), "its inputs or variables have changed")
    reasons |= state.faults(found.values())
    consistency = Consistency(rules)
    for number in sorted(found.keys() - reasons.keys()):
        try:
            consistency.check(found[number])
        except ChunkFileError as error:
            reasons[number] = str(error)
    kept = {number: result for number, result in found.items() if number not in reasons}
    state.forget_chunks(chunk for chunk in chunks if chunk.id in reasons)
    _tell(len(kept), len(chunks), reasons)
    return kept


def _rendered_elsewhere(state: JobState, chunks: Sequence[Chunk]) -> dict[int, ChunkResult]:
    with ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="known") as askers:
        found = zip(chunks, askers.map(state.take_over, chunks), strict=True)
    return {chunk.id: result for chunk, result in found if result is not None}


def _tell(kept: int, total: int, reasons: dict[int, str]) -> None:
    log = run_log()
    for number in sorted(reasons)[:_REASONS_TOLD]:
        log.info("chunk %s is rendered again: %s", number, reasons[number])
    if len(reasons) > _REASONS_TOLD:
        log.info("so are %d more chunks", len(reasons) - _REASONS_TOLD)
    if kept:
        log.info("%d of %d chunks are done already, by an earlier run", kept, total)
