"""How chunks are shared out among runs on a work pool."""

from __future__ import annotations

from jobs import small_job

from prefect_renderfarm.flows.rendering.chunk_queue import ChunkQueue
from prefect_renderfarm.flows.runs.names import batch_name


def lengths(queue: ChunkQueue, frame_seconds: float | None = None) -> list[int]:
    """Return the lengths of batches, handed out to runs that all take equally long."""
    found = []
    while queue:
        found.append(len(queue.next_batch(frame_seconds, 0)))
    return found


def test_batches_last_as_long_as_wanted() -> None:
    """Batches are as long as wanted once chunks are done; the last ones are ever shorter."""
    chunks = small_job(total_frames=800, chunks=200).chunks
    assert lengths(ChunkQueue(chunks, 30, 1.0, 2)) == [30, 30, 30, 30, 30, 30, 20]
    assert lengths(ChunkQueue(chunks, None, 60.0, 2))[0] == 25
    assert lengths(ChunkQueue(chunks, None, 60.0, 1), 0.5) == [30] * 5 + [25, 13, 6, 3, 2, 1]
    assert lengths(ChunkQueue(chunks, None, 60.0, 1), 100.0) == [1] * 200
    queue = ChunkQueue(chunks, None, 1e6, 2)
    first = queue.next_batch(0.5, 0)
    rest = queue.next_batch(0.5, 4 * len(first))
    assert (len(first), len(rest)) == (50, 50)


def test_runs_are_named_after_their_chunks() -> None:
    """A name holds ranges, and is short whatever the chunks are."""
    assert batch_name([4], "film") == "chunk 4 of film"
    assert batch_name([5, 3, 4, 9], "film") == "chunks 3-5, 9 of film"
    assert batch_name(range(0, 90, 3), "film") == "chunks 0, 3, 6, 9, 12 … of film"


def test_longest_chunks_go_first() -> None:
    """Longer chunks go out before shorter ones; what comes back goes out next."""
    job = small_job(total_frames=20, chunks=3)
    frames = [chunk.frame_count for chunk in job.chunks]
    queue = ChunkQueue(job.chunks, 1, 1.0, 1)
    order = [queue.next_batch(None, 0)[0] for _ in range(3)]
    assert [chunk.frame_count for chunk in order] == sorted(frames, reverse=True)
    queue.give_back([order[1]])
    queue.give_back([order[2]])
    assert queue.next_batch(None, 0) == [order[2]]


def test_batch_of_a_successor_counts_what_its_predecessor_still_does() -> None:
    """Two runs of which each has 10 of 100 frames left get successors of a fair length."""
    chunks = small_job(total_frames=80, chunks=80).chunks
    queue = ChunkQueue(chunks, None, 1e6, 2)
    first = queue.next_batch(0.5, 20, 10)
    rest = queue.next_batch(0.5, 20 + len(first), 10)
    assert (len(first), len(rest)) == (15, 15)
