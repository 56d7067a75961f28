"""Media files read in processes of their own, which a strange file may end.

libav and PyAV are written in C: PyAV 18 aborts the process that asks for the layout of audio whose
channels have an order of their own. So another process reads a file first; a file that ends it is
refused by name, and the next one is read by a new process.

Run as a program, this file is such a process; it imports `media` and what that needs, no Prefect.
"""

from __future__ import annotations

import atexit
import importlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

Result = TypeVar("Result")
_PASSED = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE", "PYTHONUTF8")
_MOST = 4  # processes, of some 50 MB each
_BROKEN = 70  # sysexits(3), EX_SOFTWARE
_PACKAGE = "prefect_renderfarm.blocks"

# Those that wait for work, the last one in use first; None stands for one that may be started.
_waiting: queue.LifoQueue[subprocess.Popen[bytes] | None]


def _begin_anew() -> None:
    """Leave a parent's processes to it; its threads, which may hold a lock, are not here."""
    global _waiting
    _waiting = queue.LifoQueue()
    for _ in range(min(_MOST, os.cpu_count() or 1)):
        _waiting.put(None)


_begin_anew()
os.register_at_fork(after_in_child=_begin_anew)


@atexit.register
def _end_all() -> None:
    with suppress(queue.Empty):
        while True:
            if (process := _waiting.get_nowait()) is not None:
                _end(process)


def prepare() -> None:
    """Start a process, unless one waits for work: it needs a quarter of a second to begin."""
    with suppress(queue.Empty, OSError):  # all are at work; whoever needs one is told
        _waiting.put(_take(wait=False))


def read_apart(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function of `media` in another process; return what it returns, raise what it raises.

    MediaFault also says that the process did not survive.
    """
    for _ in range(2):  # the first one may have been killed by chance: for lack of memory
        process, answer = _take(), None
        try:
            assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018
            with suppress(OSError, EOFError, pickle.UnpicklingError):  # it has ended
                pickle.dump((function, arguments), process.stdin)
                process.stdin.flush()
                answer = pickle.load(process.stdout)  # noqa: S301 -- written by this file
        finally:
            try:
                if answer is None:  # or this side no longer waits for it
                    _end(process)
            finally:
                _waiting.put(process)
        if answer is not None:
            succeeded, value = answer
            if not succeeded:
                raise value
            return value  # type: ignore[no-any-return]
    raise _died(process.returncode)


def _take(*, wait: bool = True) -> subprocess.Popen[bytes]:
    """Return a process that waits for work, or a new one; some may have been killed since."""
    process = _waiting.get(wait)
    try:
        if process is None or process.poll() is not None:
            if process is not None:
                _end(process)
            process = _start()
    except BaseException:
        _waiting.put(process)
        raise
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, and close its pipes."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):
            pipe.close()  # type: ignore[union-attr]
    process.wait()


def _start() -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))
    return subprocess.Popen(
        [sys.executable, "-P", __file__], env=environment, cwd="/", start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _died(code: int) -> Exception:
    from prefect_renderfarm.blocks.errors import MediaFault, SetupError

    if code >= 0:
        return SetupError(
            f"the process that reads media files ended with exit code {code}: can "
            f"{sys.executable!r} import av, and has the machine memory left?"
        )
    return MediaFault(
        f"is of a kind that ends the process that reads it ({signal.Signals(-code).name}): write "
        "its video, or the channels of its audio, in a more usual form"
    )


def _serve() -> None:
    """Call what is asked for, until the other side closes the pipe, even in the midst of a call."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    package = types.ModuleType(_PACKAGE)  # without what the real one imports: Prefect
    package.__path__ = [str(Path(__file__).resolve().parent.parent)]
    sys.modules[_PACKAGE] = package
    importlib.import_module(f"{_PACKAGE}.media.reader")  # before it is asked for
    try:
        while True:
            task = pickle.load(sys.stdin.buffer)  # noqa: S301 -- written by this file
            threading.Thread(target=_call, args=[answers, *task], daemon=True).start()
    finally:
        os._exit(0)


def _call(answers: IO[bytes], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Call a function, and answer whether it has succeeded, with its result or its error."""
    answer: tuple[bool, Any]
    try:
        try:
            answer = True, function(*arguments)
        except Exception as error:
            answer = False, error
        pickle.dump(answer, answers)
        answers.flush()
    except BaseException:
        os._exit(_BROKEN)


if __name__ == "__main__":
    _serve()
