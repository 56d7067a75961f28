"""Many trials, several at a time where that is possible, and a table of what they came to."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

from chaos.remains import Remains
from chaos.trial import Outcome, Stage

# Of 200 trials. Those of the last three kinds strike all jobs of the farm: each has it to itself.
SHARES = {"coordinator": 72, "batch": 16, "merge": 26, "storage": 36, "requests": 10,
          "suspended": 10, "slot": 6, "worker": 8, "server": 16}  # fmt: skip
# The kinds take turns, so that a suite that is cut short has some of each.
_MOST_TURNS = 20
_ALONE = ("slot", "worker", "server")
# A merge run that waits for chunks of a job that was killed gives up after 60 s.
_GRACE_SECONDS = 90.0


@dataclass
class Result:
    """What all trials came to.

    Attributes:
        seed: Their seed.
        outcomes: What each came to.
        seconds: How long those of each kind took, one after the other.
        processes: Processes that are left over.
        runs: Flow runs that are left over, not final.
    """

    seed: int
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: Counter[str] = field(default_factory=Counter)
    processes: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        """Return what is wrong, in a line each; what flow runs are left over is not told here."""
        found = [f"a process is left over: {line}" for line in self.processes]
        found += [str(outcome) for outcome in self.outcomes if outcome.wrong]
        return found

    def table(self) -> str:
        """Return the table of all kinds, in Markdown."""
        heads = (
            "killed or failing", "jobs", "faults that struck", "runs", "chunks cut off, rendered "
            "again", "published chunks rendered again", "lost chunks", "films seen", "broken films",
            "stuck runs", "seconds",
        )  # fmt: skip
        lines = ["| " + " | ".join(heads) + " |", "|---" + "|--:" * (len(heads) - 1) + "|"]
        for kind in [*SHARES, "all"]:
            some = [outcome for outcome in self.outcomes if kind in (outcome.kind, "all")]
            if some:
                cells = (
                    kind, len(some), sum(o.faults for o in some), sum(o.runs for o in some),
                    sum(o.rendered_again for o in some), sum(len(o.paid_twice) for o in some),
                    sum(o.lost for o in some), sum(o.films for o in some),
                    sum(len(o.broken) for o in some), sum(o.stuck for o in some),
                    round(self.seconds[kind]),
                )  # fmt: skip
                lines.append("| " + " | ".join(map(str, cells)) + " |")
        lines.append("")
        lines.append(
            f"Seed {self.seed}. Left over: {len(self.processes)} processes, {len(self.runs)} flow "
            "runs that are not final."
        )
        return "\n".join(lines)


def shares(runs: int, kinds: Sequence[str]) -> dict[str, int]:
    """Share out a number of trials among some kinds; each has one at least."""
    total = sum(SHARES[kind] for kind in kinds)
    counts = {kind: max(1, round(runs * SHARES[kind] / total)) for kind in kinds}
    largest = max(counts, key=lambda kind: counts[kind])
    counts[largest] = max(1, counts[largest] + runs - sum(counts.values()))
    return counts


def run_suite(
    stage: Stage,
    counts: Mapping[str, int],
    *,
    lanes: int,
    seconds: float = math.inf,
    grace: float = 0.0,
    tell: bool = False,
) -> Result:
    """Do trials of some kinds.

    Args:
        stage: Where.
        counts: How many of each kind.
        lanes: Number of trials at a time.
        seconds: After so long no more trials are begun.
        grace: Seconds in which flow runs that are left over may become final.
        tell: Whether to print how each went.
    """
    result = Result(stage.seed)
    remains = Remains(stage.api, stage.folder)
    begun = time.monotonic()
    together = {kind: count for kind, count in counts.items() if kind not in _ALONE}
    turns = max(1, min(_MOST_TURNS, max(counts.values()) // lanes))  # each fills the lanes

    def trial(kind: str, number: int) -> None:
        started = time.monotonic()
        outcome = stage.run(kind, number)
        result.outcomes.append(outcome)
        result.seconds[kind] += time.monotonic() - started
        if tell:
            print(f"{time.monotonic() - begun:7.1f} s {outcome}", flush=True)

    for turn in range(turns):
        for kinds in [tuple(together), *[(kind,) for kind in _ALONE if kind in counts]]:
            if time.monotonic() - begun > seconds:
                break
            with ThreadPoolExecutor(lanes if kinds == tuple(together) else 1) as pool:
                trials = [
                    pool.submit(trial, kind, number)
                    for kind in kinds
                    for number in range(turn, counts[kind], turns)
                ]
                for each in as_completed(trials):
                    each.result()
    result.seconds["all"] = time.monotonic() - begun
    result.processes = remains.processes(_GRACE_SECONDS)
    result.runs = remains.runs(grace)
    return result
