"""Jobs of one folder whose chunks have the same files take turns at them."""

from __future__ import annotations

import fcntl
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO

from prefect_renderfarm.blocks.errors import JobError, RenderStopped
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.blocks.storage.atomic_file import write_atomic
from prefect_renderfarm.flows.jobs.checks import RECORDS
from prefect_renderfarm.flows.jobs.spec import RenderJob
from prefect_renderfarm.flows.state.job_folder import JobFolder

# Patience of a run that keeps a worker busy, which the other job may be waiting for.
BUSY_SECONDS = 60.0
_LOCK = "files.lock"


@contextmanager
def taking_turns(
    folder: JobFolder,
    *,
    patience: float | None = None,
    why_not: Callable[[], str | None] = lambda: None,
) -> Iterator[None]:
    """Have the files of a job's chunks together with other runs of the job, and with no other job.

    A job of which something was changed is another job, but its chunks have the same names. The
    locks are those of the operating system and end with their processes; where a file system has
    none, nobody waits.

    Args:
        folder: The job's folder.
        patience: Seconds to wait for another job; None: as long as it takes.
        why_not: Says why to wait no longer, or returns None.

    Raises:
        RenderStopped: Another job has the files for too long.
    """
    since = time.monotonic()
    told = False
    while (lock := _lock(folder)) is not None:
        with lock:
            others = _others(folder)
            if not others:
                yield
                return
        # Given back meanwhile, so that two that come at once do not wait for each other.
        name = f"the chunks of job {folder.job.title!r} have the same files as those of "
        reason = why_not()
        if patience is not None and time.monotonic() - since > patience:
            reason = reason or f"a run of that job is at them for more than {patience:g} s"
        if reason:
            raise RenderStopped(f"{name}{', '.join(others)}: {reason}")
        if not told:
            told = True
            run_log().info("%s%s: waiting for its run", name, ", ".join(others))
        time.sleep(random.uniform(0.5, 1.5))  # noqa: S311
    yield


def _lock(folder: JobFolder) -> IO[str] | None:
    with suppress(OSError), ExitStack() as stack:
        folder.records.mkdir(parents=True, exist_ok=True)
        if not folder.job_file.exists():  # others look there which files it has
            write_atomic(folder.job_file, folder.job.to_json())
        # For reading, too: NFS gives shared locks to readers, and locks of its own to writers.
        lock = stack.enter_context((folder.records / _LOCK).open("a+"))
        fcntl.flock(lock, fcntl.LOCK_SH)
        stack.pop_all()
        return lock
    run_log().warning("job folder %r cannot be locked: other jobs with the same files are not seen",
                      str(folder.path))  # fmt: skip
    return None


def _others(folder: JobFolder) -> list[str]:
    """Return the keys of other jobs with the same files that have runs at them now."""
    own = _files(folder.job)
    found = []
    for path in sorted((folder.path / RECORDS).glob(f"*/{_LOCK}")):
        if path.parent != folder.records and not _is_free(path):
            try:
                text = (path.parent / folder.job_file.name).read_text(encoding="utf-8")
                job = RenderJob.model_validate_json(text)
            except (OSError, ValueError, JobError):
                continue
            if own & _files(job):
                found.append(job.key)
    return found


def _files(job: RenderJob) -> set[PurePosixPath]:
    return {PurePosixPath(chunk.output_file) for chunk in job.chunks}


def _is_free(path: Path) -> bool:
    for mode in ("a", "r"):  # another user's can be read at least
        try:
            with path.open(mode) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            continue
        break
    return True
