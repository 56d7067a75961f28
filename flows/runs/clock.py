"""The clock of this machine beside the server's, by which a run's heartbeats are judged."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from prefect.client.orchestration import get_client
from prefect.runtime import deployment

from prefect_renderfarm.blocks.errors import WorkerLost
from prefect_renderfarm.blocks.runtime.prefect_api import run_log, this_worker

# automations.yaml waits 90 s for a heartbeat, which bears this machine's time and comes each 30 s.
# A heartbeat from the past is awaited for less; one from the future counts from there.
_MOST_SECONDS_BEHIND = 45.0
# The second automation waits 600 s for the first heartbeat, from the server's own time on.
_MOST_SECONDS_AHEAD = 500.0


def check_clock() -> None:
    """Refuse a deployed run on a machine whose clock would make the server take it for lost.

    The server's time is the `Date` of its answer (RFC 9110, section 6.6.1), to the second.

    Raises:
        WorkerLost: The clock is more than 45 s behind, or more than 500 s ahead. That of another
            machine may be right.
    """
    if deployment.id is None:
        return
    try:
        with get_client(sync_client=True) as client:
            before = datetime.now(UTC)
            answer = client.request("GET", "/health")
            here = before + (datetime.now(UTC) - before) / 2
        ahead = (here - parsedate_to_datetime(answer.headers["Date"])).total_seconds()
    except Exception as error:  # a proxy may send no date; a server that is away says so elsewhere
        run_log().debug("the server's time is not known: %s", error)
        return
    which = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'}"
    message = f"the clock of worker {this_worker()} is {which} the server's: correct it (NTP)"
    if not -_MOST_SECONDS_BEHIND <= ahead <= _MOST_SECONDS_AHEAD:
        raise WorkerLost(f"{message}, or the server takes its runs for lost")
    if ahead > _MOST_SECONDS_BEHIND:  # as much is worth a warning
        run_log().warning("%s", message)
