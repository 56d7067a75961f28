"""The errors that a user can meet.

    RenderFarmError
    ├── JobError            the job spec or a flow parameter is wrong; nothing has run
    ├── SetupError          a block, deployment or program that the job names is missing
    ├── WorkerError         a command failed; another attempt may succeed
    │   ├── CommandFailed       it ended with another exit code than 0
    │   ├── CommandTimeout      it ran longer than allowed and was ended
    │   ├── ChunkFileError      it succeeded, but its file is missing or not as planned
    │   ├── WorkerLost          its outcome is unknown, or it never began
    │   │   └── WorkerBusy          it never began: no worker had room, or none was there
    │   └── FatalWorkerError    another attempt would fail in the same way
    │       ├── CommandNotRunnable  the program is missing or may not be executed
    │       ├── WorkerRefused       the worker does not accept our requests
    │       ├── RepeatedFault       its file was wrong twice in the same way
    │       ├── TooManyFailures     more of the job's attempts have failed than it allows
    │       └── WorkStopped         it was ended because its job was stopped
    ├── StorageError        a storage operation failed; another attempt may succeed
    │   ├── StorageRefused      another attempt would fail in the same way
    │   └── ObjectMissing       the object does not exist
    ├── MediaFault          what is wrong with a media file; part of the errors above and below
    └── AssemblyError       the film could not be assembled; the chunks are still there
        ├── StitchInputError    a chunk does not fit the plan or the other chunks
        ├── NotAppendableError  a chunk fits, but cannot be appended to a half-written film
        └── RenderStopped       the chunks that an assembly waits for will not be rendered

The type says whether a failed chunk is worth another attempt: `WorkerError` and `StorageError` are,
`FatalWorkerError` and `StorageRefused` are not.
"""

from __future__ import annotations


class RenderFarmError(Exception):
    """Base of every error raised on purpose by prefect-renderfarm."""


class JobError(RenderFarmError, ValueError):
    """The job spec or a flow parameter is wrong. Raised before any chunk runs."""


class SetupError(RenderFarmError):
    """What the job names is missing or of the wrong kind. Raised before any chunk runs."""


class WorkerError(RenderFarmError):
    """A command failed; another attempt may succeed.

    `worker` says where it ran and `output` how its output ends, as far as they are known.
    """

    worker: str = ""
    output: str = ""


class CommandFailed(WorkerError):
    """A command ended with an exit code other than 0."""


class CommandTimeout(WorkerError):
    """A command ran longer than it was allowed to and was ended."""


class ChunkFileError(WorkerError):
    """A chunk's command succeeded, but its file is missing or is not the planned one."""


class WorkerLost(WorkerError):
    """A worker gave no answer, or could not begin: throttled, out of memory, connection lost."""


class WorkerBusy(WorkerLost):
    """No worker had room for a command, or none was there: it did not begin, and cost nothing.

    `after` is the seconds after which to ask again; None: the worker does not say.
    """

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class FatalWorkerError(WorkerError):
    """A command failed, and another attempt would fail in the same way."""


class CommandNotRunnable(FatalWorkerError):
    """The program of a command does not exist, cannot be executed, or is not allowed.

    Exit codes 127 and 126 say the first two: POSIX, Shell Command Language, section 2.8.2.
    """


class WorkerRefused(FatalWorkerError):
    """A worker does not accept our requests: wrong credentials, no such function or address."""


class RepeatedFault(FatalWorkerError):
    """A chunk's file was wrong twice in the same way; it would be so another time."""


class TooManyFailures(FatalWorkerError):
    """More attempts of a job have failed than its `max_failures` allows."""


class WorkStopped(FatalWorkerError):
    """A command was ended, or not started, because its job was stopped."""


class AssemblyError(RenderFarmError):
    """The film could not be assembled. The chunks stay, and so does an older film."""


class StitchInputError(AssemblyError):
    """A chunk file does not fit the plan or the other chunks."""


class NotAppendableError(AssemblyError):
    """A chunk fits the film, but cannot be appended to it: stitch all chunks at once."""


class RenderStopped(AssemblyError):
    """The chunks that an assembly waits for will not be rendered, or not soon."""


class StorageError(RenderFarmError):
    """A storage operation failed; another attempt may succeed."""


class StorageRefused(StorageError):
    """A storage refuses an operation: wrong credentials, no such bucket. No retry will help."""


class ObjectMissing(StorageError):
    """A storage has no such object."""


class MediaFault(RenderFarmError):
    """A file is not a whole media file, or not the one that was planned. The message says why.

    It does not name the file: whoever knows what the file is for does, in an error of its own.
    """
