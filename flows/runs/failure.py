"""How a run fails whose job, setup or chunks are at fault: in a line, without a traceback."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Failed

from prefect_renderfarm.blocks.adapters.remote import WorkerFailure
from prefect_renderfarm.blocks.errors import RenderFarmError
from prefect_renderfarm.blocks.runtime.prefect_api import label_run

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_ERROR_LABEL = "renderfarm.error"


class RunCancelled(Exception):
    """The current run was cancelled, and its work has been ended."""


def failing_in_a_line(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let a flow's run end as Failed, its message being the text of a RenderFarmError.

    Its label `renderfarm.error` is the error's class. One that was cancelled ends as Cancelled.

    Raised, the error would stand behind "Flow run encountered an exception", and its traceback in
    the log. Whoever calls the flow from Python gets the error all the same.
    """

    @functools.wraps(function)
    def run(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        try:
            return function(*arguments, **options)
        except RunCancelled as error:
            return cast(Result, Cancelled(message=str(error)))
        except RenderFarmError as error:
            label_run(_ERROR_LABEL, type(error).__name__)
            return cast(Result, Failed(message=str(error), data=error))

    # Pydantic, which checks a flow's parameters, would look for their types in this module.
    run.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]
    return run


def failure_of(run: FlowRun) -> WorkerFailure | None:
    """Return why a run failed, by what the server knows; None if no RenderFarmError ended it."""
    if (kind := run.labels.get(_ERROR_LABEL)) is None or run.state is None:
        return None
    return WorkerFailure(kind=str(kind), message=run.state.message or "")
