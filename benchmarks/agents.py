"""What agents learn of designs that cannot be had: paid 0, as environments did, and paid less than any design before.

Each agent asks for ``--samples`` designs of a space, is paid minus the first objective, and is told what the others
would be told again. Shown is the share of its last 200 designs that can be had, and the best design of all: fewest and
most, and the median, over seeds.

    python benchmarks/agents.py [--space mapper,soc] [--agent genetic,ppo] [--samples 1200] [--seeds 3] [--json]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from hasten import spaces
from hasten.processes import run_arms
from hasten.search.agents.registry import agents, make_agent
from hasten.search.environments import Log, default_fitness
from hasten.search.exploring import Explorer
from rows import Row, compared, emit

LAST = 200
# What a design that cannot be had is paid, by name; None is `hasten.search.environments.Payment`'s own rule.
PAID: dict[str, float | None] = {"paid 0": 0.0, "paid less": None}


@dataclass(frozen=True)
class Asked:
    """What one agent asked for.

    Args:
        had: the share of its last designs that can be had.
        best: the first objective of its best design; None where none could be had.
    """

    had: float
    best: float | None


def asked(space: str, agent: str, penalty: float | None, samples: int, seed: int) -> Asked:
    """Runs an agent on a space."""
    problem = spaces.build(space)
    objective = problem.objectives[0]
    explorer = Explorer(problem, default_fitness(problem), penalty)
    made = make_agent(agent, explorer.codec.sizes, seed)
    log = Log()
    explorer.run(made, samples, log)
    tried = [{n.removeprefix("value."): v for n, v in row.items() if n.startswith("value.")} for row in log.rows]
    # What cannot be had has no values, or breaks a constraint, which are among them.
    had = [bool(values) and all(values[c] <= 0 for c in problem.constraints) for values in tried]
    best = [values[objective.name] for values, can in zip(tried, had, strict=True) if can]
    return Asked(float(np.mean(had[-LAST:])), min(best, key=lambda v: objective.sign * v) if best else None)


def _told(space: str, agent: str, found: dict[str, list[Asked]], unit: str) -> list[Row]:
    """Rows of an agent: the share that can be had, beside that of payment 0, and its best designs."""
    before = statistics.fmean(a.had for a in found["paid 0"])
    rows = []
    for how, runs in found.items():
        name = f"{agent}, {how}"
        mean = statistics.fmean(a.had for a in runs)
        case = f"{space}: of the last {LAST} designs can be had"
        if how == "paid 0":
            rows.append(Row(case, name, mean, "1"))
        else:
            rows.append(compared(case, name, mean, "1", f"{agent}, paid 0", before, less_is_better=False))
        best = [a.best for a in runs if a.best is not None]
        if best:
            rows.append(Row(f"{space}: best design", name, statistics.median(best), unit))
    return rows


def _share(runs: Sequence[Asked]) -> str:
    low, high = (round(100 * f(a.had for a in runs)) for f in (min, max))
    return f"{low}" if low == high else f"{low} to {high}"


def _best(runs: Sequence[Asked]) -> str:
    best = [a.best for a in runs if a.best is not None]
    return f"{statistics.median(best):.3g}" if best else "none"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="mapper,soc", help="names, with commas between (default mapper,soc)")
    parser.add_argument("--agent", default=",".join(agents()), help="names, with commas between (default all)")
    parser.add_argument("--samples", type=int, default=1200, help=f"of each agent, {LAST} or more (default 1200)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, help="agents at once; as many as torch may use threads if not given")
    parser.add_argument("--json", action="store_true", help="rows as JSON on stdout")
    args = parser.parse_args()
    names, places = args.agent.split(","), args.space.split(",")
    if unknown := sorted(set(names) - set(agents())):
        parser.error(f"no agent is called {', '.join(unknown)}: choose from {', '.join(agents())}")
    if args.samples < LAST or args.seeds < 1:
        parser.error(f"at least {LAST} samples and one seed")
    runs = [
        (space, agent, how, seed) for space in places for agent in names for how in PAID for seed in range(args.seeds)
    ]
    found: dict[tuple[str, str], dict[str, list[Asked]]] = {}

    def each(number: int, one: Asked) -> None:
        space, agent, how, _ = runs[number]
        print(f"{space}: {agent}, {how}: {100 * one.had:.0f} %", file=sys.stderr, flush=True)

    done = run_arms(
        asked, [(space, agent, PAID[how], args.samples, seed) for space, agent, how, seed in runs], each=each,
        processes=args.processes,
    )  # fmt: skip
    for (space, agent, how, _), one in zip(runs, done, strict=True):
        found.setdefault((space, agent), {}).setdefault(how, []).append(one)
    rows: list[Row] = []
    for space in places:
        objective = spaces.build(space).objectives[0]
        table = Table("agent", *(f"{h}: can be had, %" for h in PAID), *(f"{h}: best {objective.name}" for h in PAID))
        for agent in names:
            both = found[space, agent]
            rows += _told(space, agent, both, objective.unit)
            table.add_row(agent, *(_share(both[h]) for h in PAID), *(_best(both[h]) for h in PAID))
        Console(stderr=True, width=120).print(table)
    emit(rows, args.json, [])
    return 0


if __name__ == "__main__":
    sys.exit(main())
