"""How AWS Lambda reports on an invocation: errors of the service, of the function, and its log."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any, Self

from botocore import exceptions as boto

from prefect_renderfarm.blocks.errors import (
    CommandTimeout,
    FatalWorkerError,
    WorkerBusy,
    WorkerError,
    WorkerLost,
    WorkerRefused,
)
from prefect_renderfarm.blocks.processes.masking import NO_SECRETS, Mask

# "The REPORT line", Lambda Developer Guide, "Viewing CloudWatch logs for Python functions".
_BILLED = re.compile(r"Billed Duration: ([\d.]+) ms")
_MEMORY = re.compile(r"Memory Size: (\d+) MB")
_USED = re.compile(r"Max Memory Used: (\d+) MB")
_LAST_LINES = 8
# A function that the kernel ends for lack of memory has often used a little less in the report.
_FULL = 0.95
# Lambda API reference, Invoke, "Errors": a function that is being changed. 429 is throttling.
_CONFLICT = 409
# Errors with status 502 that only a person can fix.
_LASTING = frozenset(
    {"InvalidRuntimeException", "InvalidZipFileException", "KMSAccessDeniedException",
     "KMSDisabledException", "KMSNotFoundException", "InvalidSecurityGroupIDException",
     "InvalidSubnetIDException"}
)  # fmt: skip
_CREDENTIALS = "check the adapter's credentials"
_FIXES = {
    "ResourceNotFoundException": (
        "check the function's name, its qualifier and the region of the credentials"
    ),
    **dict.fromkeys(
        ("AccessDeniedException", "AccessDenied"),
        "the credentials lack the permission lambda:InvokeFunction for it",
    ),
    **dict.fromkeys(
        ("InvalidSignatureException", "UnrecognizedClientException", "ExpiredTokenException",
         "InvalidClientTokenId", "MissingAuthenticationTokenException"),
        _CREDENTIALS,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class LogTail:
    """The last 4 KB of an invocation's log.

    Attributes:
        lines: What the function wrote, without the lines that Lambda adds.
        billed_seconds: What is charged for; None if the log does not say.
        memory_mb: The function's memory, in 1,048,576 bytes; None if the log does not say.
        used_mb: The most that it used, in the same unit; None if the log does not say.
    """

    lines: tuple[str, ...] = ()
    billed_seconds: float | None = None
    memory_mb: int | None = None
    used_mb: int | None = None

    @classmethod
    def decode(cls, encoded: str | None, mask: Mask = NO_SECRETS) -> Self:
        """Return the log tail of an answer, which is Base64, without secrets; empty if none."""
        try:
            text = mask(base64.b64decode(encoded or "").decode(errors="replace"))
        except ValueError:
            return cls()
        lines = text.splitlines()
        report = next((line for line in reversed(lines) if line.startswith("REPORT ")), "")
        billed, memory, used = (rule.search(report) for rule in (_BILLED, _MEMORY, _USED))
        return cls(
            tuple(
                line.rstrip()
                for line in lines
                if line.strip() and not line.startswith(("START ", "END ", "REPORT ", "INIT_"))
            ),
            float(billed[1]) / 1000 if billed else None,
            int(memory[1]) if memory else None,
            int(used[1]) if used else None,
        )

    @property
    def full(self) -> bool | None:
        """Whether the function used all its memory; None if the log does not say."""
        if self.memory_mb is None or self.used_mb is None:
            return None
        return self.used_mb >= _FULL * self.memory_mb

    def __str__(self) -> str:
        last = " / ".join(self.lines[-_LAST_LINES:])
        return f"; the end of its log: {last}" if last else ""


def function_error(payload: Any, log: LogTail, name: str, function: str) -> WorkerError:
    """Return the error for an invocation whose function failed.

    Args:
        payload: The answer's parsed JSON: `errorType` and `errorMessage`.
        log: The invocation's log.
        name: What the invocation was for.
        function: The function's name.
    """
    given = payload if isinstance(payload, dict) else {"errorMessage": str(payload)}
    kind, message = str(given.get("errorType") or ""), str(given.get("errorMessage") or "")
    what = f"{name}: function {function!r}"
    if kind == "Sandbox.Timedout" or "timed out after" in message:
        return CommandTimeout(
            f"{what} ran into its time limit ({message}): give chunks fewer frames, or the "
            f"function a higher limit, up to 900 s{log}"
        )
    ended = kind in ("Runtime.ExitError", "Runtime.OutOfMemory")
    killed = "signal: killed" in message and log.full is not False
    if kind == "Runtime.OutOfMemory" or (ended and (killed or log.full)):
        size = f"of {log.memory_mb:,} MB" if log.memory_mb else "that it has"
        return WorkerError(
            f"{what} was ended, most likely because it used all the memory {size} ({message}): "
            f"give the function more memory{log}"
        )
    if kind == "Function.ResponseSizeTooLarge":
        return FatalWorkerError(
            f"{what} answered with more than the 6 MB that AWS Lambda takes ({message}): let it "
            "answer with the last lines of its output only"
        )
    return WorkerLost(f"{what} failed with {kind or 'an error'}: {message}{log}")


def service_error(error: Exception, name: str, function: str) -> WorkerError:
    """Return the error for what boto3 raised: AWS Lambda did not invoke a function, or not answer.

    It is a `FatalWorkerError` unless another attempt may succeed.
    """
    what = f"{name}: function {function!r}"
    if isinstance(error, boto.ClientError):
        answer: Any = error.response
        code = str(answer.get("Error", {}).get("Code", ""))
        status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        shown = f"{code}: {answer.get('Error', {}).get('Message') or f'HTTP status {status}'}"
        if status == 413 or code == "RequestTooLargeException":
            return FatalWorkerError(f"{what} cannot be asked, the request is too large ({shown})")
        if status == 429:  # AWS Lambda developer guide, "Invoke errors"
            return WorkerBusy(f"{what} is busy ({shown})")
        if (status == _CONFLICT or status >= 500) and code not in _LASTING:
            return WorkerLost(f"{what} gave no answer ({shown})")
        fix = _FIXES.get(code, "check the function's configuration")
        return WorkerRefused(f"{what} cannot be invoked ({shown}): {fix}")
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError):
        return WorkerLost(f"{what} gave no answer: {error}")
    if isinstance(error, boto.BotoCoreError):
        return WorkerRefused(f"{what} cannot be invoked: {error}; {_CREDENTIALS}")
    return WorkerLost(f"{what} gave no answer: {type(error).__name__}: {error}")
