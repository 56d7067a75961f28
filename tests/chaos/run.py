"""Kill and break parts of a farm of its own at random moments; every job must be done in the end.

    make chaos                       200 jobs
    python tests/chaos/run.py --help    what else it can do

Kinds: coordinator, batch, merge, storage, requests, suspended, slot, worker, server. It ends with 1
if a promise was broken.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
# deployments/automations.yaml: a run from Python is lost when it is silent for 10 minutes; it may
# have said something just before it was killed, and the server looks once a minute or so.
_LOST_SECONDS = 780.0


def main() -> int:
    """Run the command line."""
    # Not at the top: a forked coordinator imports this file, too, and is to find the same farm.
    sys.path[:0] = [str(TESTS), str(TESTS / "support")]
    from farm_client import PORT, FarmClient
    from http_samples import working
    from storage_samples import serving

    from chaos.faults import ChaosFarm
    from chaos.suite import SHARES, run_suite, shares
    from chaos.trial import Stage

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200, help="number of jobs")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))  # noqa: S311
    parser.add_argument("--kinds", default=",".join(SHARES), help="kinds of faults, with commas")
    parser.add_argument("--lanes", type=int, default=3, help="jobs at a time, where that may be")
    parser.add_argument("--minutes", type=float, default=60, help="then no more jobs are begun")
    parser.add_argument(
        "--final-runs",
        action="store_true",
        help="wait for the automations, and fail if a run stays open",
    )
    parser.add_argument("--keep", type=Path, help="a new folder, for the logs to stay in")
    options = parser.parse_args()
    # The farm is stopped then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        farm = ChaosFarm(folder / "farm")
        stack.callback(farm.down)
        farm.up(port=PORT)
        s3 = stack.enter_context(serving(folder / "s3"))
        log = stack.enter_context((folder / "http-worker.log").open("wb"))
        worker = stack.enter_context(
            working(s3.environment() | {"RENDERFARM_CONCURRENCY": "2"}, log)
        )
        worker.wait_until_ready()
        stage = Stage(FarmClient(farm), s3, worker, folder / "jobs", options.seed)
        print(f"seed {options.seed}", flush=True)
        counts = shares(options.runs, options.kinds.split(","))
        result = run_suite(
            stage, counts, lanes=options.lanes, seconds=60 * options.minutes,
            grace=_LOST_SECONDS if options.final_runs else 0, tell=True,
        )  # fmt: skip
    print(result.table())
    wrong = result.faults()
    if options.final_runs:
        wrong += [f"a flow run is left over: {run}" for run in result.runs]
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
