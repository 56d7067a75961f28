"""The render farm's worker as an AWS Lambda function; `handler.handler` is its entry point.

Its variables limit jobs: RENDERFARM_PROGRAMS lists what commands may begin with, such as
`ffmpeg,/opt/blender/blender`; RENDERFARM_URL_HOSTS and RENDERFARM_URL_SCHEMES say which URLs it
fetches (see `prefect_renderfarm.blocks.http.url_rules`).
"""

from __future__ import annotations

import os
from typing import Any

from prefect_renderfarm.blocks import LocalAdapter
from prefect_renderfarm.blocks.adapters.remote import answer_payload
from prefect_renderfarm.blocks.processes.programs import PROGRAMS_VARIABLE, listed_programs

# Reserved of the function's remaining time, so that the handler ends a command that takes too long,
# and answers so: this part of it, at most so many seconds.
MARGIN, MAX_MARGIN_SECONDS = 0.15, 20.0
_INSTANCE_CHARACTERS = 8


def handler(event: Any, context: Any) -> dict[str, Any]:
    """Do what a payload of `AwsLambdaAdapter` asks for; return the answer, ready for JSON.

    The payload is `event`; see `prefect_renderfarm.blocks.adapters.remote`. ValueError means that
    it or an allowed program is not valid.
    """
    left = context.get_remaining_time_in_millis() / 1000
    margin = min(MARGIN * left, MAX_MARGIN_SECONDS)
    limit = round(left - margin, 1)
    # SIGTERM, then SIGKILL, have to end within the margin.
    programs = listed_programs(os.environ.get(PROGRAMS_VARIABLE, ""))
    adapter = LocalAdapter(timeout=limit, grace=margin / 4, programs=programs)
    command = event.get("command") if isinstance(event, dict) else None
    if isinstance(command, dict) and isinstance(command.get("timeout"), int | float):
        event = event | {"command": command | {"timeout": min(command["timeout"], limit)}}
    return answer_payload(event, adapter, worker_name(context)).model_dump(mode="json")


def worker_name(context: Any) -> str:
    """Return the names of the function and of its instance, from the name of its log stream.

    The name of a log stream is like `2026/11/24/[$LATEST]0a1b…`.
    """
    stream = str(context.log_stream_name or context.aws_request_id)
    return f"{context.function_name}/{stream.rpartition(']')[2][:_INSTANCE_CHARACTERS]}"
