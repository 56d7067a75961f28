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
import struct
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
_LENGTH = struct.Struct(">Q")
_PACKAGE = "prefect_renderfarm"

_slots = threading.BoundedSemaphore(min(_MOST, os.cpu_count() or 1))
_lock = threading.Lock()
_idle: list[subprocess.Popen[bytes]] = []


def _begin_anew() -> None:
    """Leave a parent's processes to it; its threads, which may hold a lock, are not here."""
    global _slots, _lock
    _idle.clear()
    _slots, _lock = threading.BoundedSemaphore(min(_MOST, os.cpu_count() or 1)), threading.Lock()


os.register_at_fork(after_in_child=_begin_anew)


@atexit.register
def _end_all() -> None:
    while _idle:
        _end(_idle.pop())


def prepare() -> None:
    """Start a process, unless one waits for work: it needs a quarter of a second to begin."""
    with _lock, suppress(OSError):  # whoever needs it is told
        if not _idle:
            _idle.append(_start())


def read_apart(function: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    """Call a function of `media` in another process; return what it returns, raise what it raises.

    MediaFault also says that the process did not survive.
    """
    task = (function.__module__, function.__name__, arguments, options)
    with _slots:
        try:
            succeeded, value = _ask(task)
        except EOFError:  # perhaps by chance: killed for lack of memory
            try:
                succeeded, value = _ask(task)
            except EOFError as error:
                raise _died(*error.args) from None
    if not succeeded:
        raise value
    return value  # type: ignore[no-any-return]


def _ask(task: object) -> Any:
    """Return a process's answer; EOFError with its exit code if it has ended instead."""
    process = _take()
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018
    try:
        _send(process.stdin, task)
        answer = _receive(process.stdout)
    except (OSError, EOFError):
        raise EOFError(_end(process)) from None
    except BaseException:  # this side no longer waits for the answer
        _end(process)
        raise
    with _lock:
        _idle.append(process)
    return answer


def _end(process: subprocess.Popen[bytes]) -> int:
    """End a process, close its pipes, and return its exit code."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):
            pipe.close()  # type: ignore[union-attr]
    return process.wait()


def _take() -> subprocess.Popen[bytes]:
    """Return a process that waits for work, or a new one; some may have been killed since."""
    with _lock:
        while _idle:
            if (process := _idle.pop()).poll() is None:
                return process
            _end(process)
        return _start()


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


def _send(pipe: IO[bytes], message: object) -> None:
    data = pickle.dumps(message)
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    """Return the next message; EOFError if there is none, because the other side is gone."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (size,) = _LENGTH.unpack(head)
    if len(data := pipe.read(size)) < size:
        raise EOFError
    return pickle.loads(data)  # noqa: S301 -- written by this file


def _serve() -> None:
    """Call what is asked for, until the other side closes the pipe, even in the midst of a call."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    blocks = Path(__file__).resolve().parent.parent
    for name, folder in ((_PACKAGE, blocks.parent), (f"{_PACKAGE}.blocks", blocks)):
        package = types.ModuleType(name)  # without what the real one imports: Prefect
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_work, args=[tasks, answers], daemon=True).start()
    try:
        while True:
            tasks.put(_receive(sys.stdin.buffer))
    except EOFError:
        os._exit(0)


def _work(tasks: queue.SimpleQueue[Any], answers: IO[bytes]) -> None:
    try:
        importlib.import_module(f"{_PACKAGE}.blocks.media.reader")
        while True:
            _send(answers, _answer(*tasks.get()))
    finally:
        os._exit(_BROKEN)


def _answer(
    module: str, name: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[bool, Any]:
    try:
        return True, getattr(importlib.import_module(module), name)(*arguments, **options)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301 -- its own
        except Exception:
            return False, RuntimeError(f"{type(error).__name__}: {error}")
        return False, error


if __name__ == "__main__":
    _serve()
