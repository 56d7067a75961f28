"""Assembles films in processes that a test ends: all is imported once, and an assembly is a fork.

Each line on standard input begins an assembly: `prefect` or `plain`, the name of a stitcher,
`stitch` or `grow`, the film, and the folder of its chunks, as JSON. The lines on standard output
are the number of its process; `assembled`, if it comes so far; and its exit code when it has ended.
After `prefect` SIGTERM raises what it raises in a flow; after `plain` it ends the process.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from prefect.exceptions import TerminationSignal

from prefect_renderfarm import blocks

CHUNK_FRAMES = 40
STOPPED, FAILED = 3, 4
# Those that read a film back, and that flush it; readers of ffmpeg's words end with ffmpeg.
OUR_THREADS = ("follow", "flush")


def assemble(stitcher: str, mode: str, film: Path, chunks: Path) -> None:
    """Assemble a film at once, or chunk by chunk."""
    paths = sorted(chunks.iterdir())
    counts = [CHUNK_FRAMES] * len(paths)
    block = getattr(blocks, stitcher)()
    if mode == "stitch":
        block.stitch(paths, film, fps=30, frame_counts=counts)
        return
    with block.grow(paths, film, fps=30, frame_counts=counts) as growing:
        for _ in paths:
            growing.append()


def _raise(number: int, _frame: FrameType | None) -> None:
    raise TerminationSignal(number)


def _in_fork(signals: str, stitcher: str, mode: str, film: Path, chunks: Path) -> None:
    code = FAILED
    try:
        if signals == "prefect":
            signal.signal(signal.SIGTERM, _raise)
        try:
            print(os.getpid(), flush=True)
            assemble(stitcher, mode, film, chunks)
            print("assembled", flush=True)
            code = 0
        except TerminationSignal:
            code = STOPPED
        if [thread for thread in threading.enumerate() if thread.name.startswith(OUR_THREADS)]:
            code = FAILED  # a thread that never ends would hold up the end of a flow run
    finally:
        os._exit(code)


def main() -> None:
    """Fork a process for each line, and tell how it ended."""
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        signals, stitcher, mode, film, chunks = json.loads(line)
        process = os.fork()
        if process == 0:
            _in_fork(signals, stitcher, mode, Path(film), Path(chunks))
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
