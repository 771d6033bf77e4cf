"""HELP on its authors' published tables: rank correlation on devices that were held out, beside what learns otherwise.

    python benchmarks/latency_predictor.py HELP/data/fbnet
    python benchmarks/latency_predictor.py HELP/data/nasbench201 --draws 3 --json

The folder is one space of the published data (`hasten.cost.latency.tables.read_help`); devices are parted as in the
paper. Everybody has the same ten measurements of a held-out device: those of the published reference networks, then of
further draws of ten, ``--draws`` in all. Settings are those of `hasten check help`, which take minutes; ``--paper``
takes the paper's episodes, rates and widths, hours of them.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hasten.cost.latency.correlation import spearman
from hasten.cost.latency.meta_settings import EPISODES, LEARNERS, MetaSettings, quick_settings
from hasten.cost.latency.tables import Arch, middle, read_help
from hasten.processes import run_arms
from hasten.search.networks.architecture_space import latency_predictor, open_space
from hasten.search.networks.latency_baselines import all_baselines
from rows import Row, emit

SPACES = {"fbnet": "chain", "nasbench201": "cell"}
BATCHES = {"fbnet": ("1", "32", "64"), "nasbench201": ("1", "32", "256")}
TRAIN = ("silver_4114", "silver_4210r", "samsung_a50", "pixel3", "essential_ph_1", "samsung_s7")
TEST = {
    "fbnet": ("fpga", "raspi4", "eyeriss"),
    "nasbench201": ("titan_rtx_256", "gold_6226", "fpga", "pixel2", "raspi4", "eyeriss"),
}
LEARNED = {"fbnet": 4000, "nasbench201": 900}
PAPER = {"fbnet": 4000, "nasbench201": 2000}  # episodes
Table = Mapping[Arch, float]


def chosen(learner: str, space: str, paper: bool) -> MetaSettings:
    if not paper:
        kind = "graphs" if open_space(SPACES[space]).prefers_graphs else "vectors"
        return quick_settings(learner, EPISODES[kind])
    made = MetaSettings(episodes=PAPER[space], support_from="references")
    return {"HELP": made, "Meta-SGD": made.meta_sgd(), "MAML": made.maml()}[learner]


def learned_scores(
    space: str, learner: str, paper: bool, seed: int, references: Sequence[Arch], train: Mapping[str, Table],
    valid: Mapping[str, Table], test: Mapping[str, Table], asked: Mapping[str, Sequence[Arch]],
) -> dict[str, float]:  # fmt: skip
    """Held-out device -> rank correlation of one learner: an arm."""
    described = open_space(SPACES[space])
    made = latency_predictor(described, references, chosen(learner, space, paper), seed).fit(train, valid)
    return {
        d: spearman(made.adapt({a: table[a] for a in references}).scores(asked[d]), [table[a] for a in asked[d]])
        for d, table in test.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, default=5, help="sets of ten networks, the published one first")
    parser.add_argument("--paper", action="store_true", help="the paper's settings: hours")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    space = given.folder.name
    if space not in SPACES:
        parser.error(f"the folder is called {' or '.join(SPACES)}")
    tables, places = read_help(given.folder)
    count = LEARNED[space]
    first, later = tables.archs[:count], tables.archs[count : count + 1000]
    train = {d: tables.known(d) for d in (*(f"1080ti_{b}" for b in BATCHES[space]), *TRAIN)}
    valid = {d: tables.known(d) for d in (*(f"titanx_{b}" for b in BATCHES[space]), "gold_6240")}
    test = {d: tables.known(d) for d in TEST[space]}
    everywhere = [a for a in first if all(a in t for t in (*train.values(), *valid.values(), *test.values()))]
    sets = [[tables.archs[i] for i in places]] if not {tables.archs[i] for i in places} & set(later) else []
    # Some published references lie among the networks that are asked: a draw stands in.
    rng = random.Random(given.seed)
    sets = [*sets, *(rng.sample(everywhere, 10) for _ in range(given.draws - len(sets)))][: given.draws]
    asked = {d: middle({a: t[a] for a in later if a in t}) for d, t in test.items()}
    arms = []
    for i, references in enumerate(sets):
        use = {*references, *first}
        known = [{d: {a: s for a, s in t.items() if a in use} for d, t in role.items()} for role in (train, valid)]
        arms += [(space, learner, given.paper, given.seed + i, references, *known, test, asked) for learner in LEARNERS]

    def tell(number: int, found: dict[str, float]) -> None:
        mean = statistics.mean(found.values())
        print(f"draw {number // len(LEARNERS)}, {arms[number][1]}: {mean:.3f}", file=sys.stderr, flush=True)

    found: dict[tuple[str, str], list[float]] = {}
    for arm, result in zip(arms, run_arms(learned_scores, arms, each=tell), strict=True):
        for device, value in result.items():
            found.setdefault((arm[1], device), []).append(value)
    for i, references in enumerate(sets):
        for device, table in test.items():
            measured = {a: table[a] for a in references}
            rivals = all_baselines(
                open_space(SPACES[space]), measured, asked[device], list(train.values()), given.seed + i
            )
            for method, scores in rivals.items():
                value = spearman(scores, [table[a] for a in asked[device]])
                found.setdefault((method, device), []).append(value)
    methods = dict.fromkeys(method for method, _ in found)
    rows = [Row(f"{d}: Spearman", m, statistics.mean(found[m, d]), "1") for d in test for m in methods]
    for method in methods:
        means = [statistics.mean(found[method, d][i] for d in test) for i in range(len(sets))]
        case = f"all held-out devices, {len(means)} draws of ten: Spearman"
        rows.append(Row(case, method, statistics.mean(means), "1"))
        if len(means) > 1:
            rows.append(Row(f"{case}, spread of the draws", method, statistics.stdev(means), "1"))
    emit(rows, given.json)


if __name__ == "__main__":
    main()
