"""HELP on its authors' published tables: rank correlation on devices that were held out.

    python benchmarks/latency_predictor.py HELP/data/fbnet --episodes 4000
    python benchmarks/latency_predictor.py HELP/data/fbnet --quick

The folder is one space of the published data (`hasten.cost.latency_tables.read_help`); devices are parted as in the
paper. Without options it is the paper's setting, at ten measurements.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np

from hasten.cost.latency_predictor import LatencyPredictor, MetaSettings, spearman
from hasten.cost.latency_tables import read_help
from hasten.models.cell_network import CellConfig
from hasten.models.mobile_chain import ChainConfig
from rows import Row, emit

BATCHES = {"fbnet": ("1", "32", "64"), "nasbench201": ("1", "32", "256")}
TRAIN = ("silver_4114", "silver_4210r", "samsung_a50", "pixel3", "essential_ph_1", "samsung_s7")
TEST = {
    "fbnet": ("fpga", "raspi4", "eyeriss"),
    "nasbench201": ("titan_rtx_256", "gold_6226", "fpga", "pixel2", "raspi4", "eyeriss"),
}
LEARNED = {"fbnet": 4000, "nasbench201": 900}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--learner", choices=("help", "meta-sgd", "maml"), default="help")
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--query", type=int, default=200)
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--cosine", action="store_true")
    parser.add_argument("--inner-rate", type=float, default=1e-3)
    parser.add_argument("--mix", type=float, default=0.0, help="share of devices that are two in one")
    parser.add_argument("--warm", type=int, default=0, help="steps without the inner loop before the episodes")
    parser.add_argument("--quick", action="store_true", help="settings for minutes, those of `hasten check help`")
    parser.add_argument("--random", action="store_true", help="ten further measurements instead of the references")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.quick:
        given.episodes, given.rate, given.query, given.hidden, given.cosine = 150, 3e-3, 64, 64, True
        given.inner_rate, given.mix, given.warm = 1e-2, 0.5, 6000
    space = given.folder.name
    if space not in BATCHES:
        parser.error(f"the folder is called {' or '.join(BATCHES)}")
    tables, places = read_help(given.folder)
    learned = LEARNED[space]
    references = [tables.archs[i] for i in places]
    first, asked = tables.archs[:learned], tables.archs[learned : learned + 1000]
    if any(a in set(asked) for a in references):  # the published ones reach beyond what is learned from
        references = [first[i] for i in np.random.default_rng(given.seed).permutation(len(first))[:10]]
    settings = MetaSettings(
        hidden=given.hidden, episodes=given.episodes, rate=given.rate, query=given.query, cosine=given.cosine,
        inner_rate=given.inner_rate, mix=given.mix, warm=given.warm,
        support_from="random" if given.random else "references",
    )  # fmt: skip
    settings = {"help": settings, "meta-sgd": settings.meta_sgd(), "maml": settings.maml()}[given.learner]
    graphs = space == "nasbench201"
    codes = (CellConfig() if graphs else ChainConfig()).codes
    predictor = LatencyPredictor(codes, references, labels=8 if graphs else 0, settings=settings, seed=given.seed)

    def known(device: str) -> dict[tuple[int, ...], float]:
        table = tables.known(device)
        return {a: table[a] for a in dict.fromkeys((*references, *first)) if a in table}

    train = {d: known(d) for d in (*(f"1080ti_{b}" for b in BATCHES[space]), *TRAIN)}
    valid = {d: known(d) for d in (*(f"titanx_{b}" for b in BATCHES[space]), "gold_6240")}
    predictor.fit(
        train, valid, progress=lambda e, loss: print(e, f"{loss:.4f} {predictor.history[-1][2]:.4f}", file=sys.stderr)
    )
    rows = []
    for device in TEST[space]:
        table = tables.known(device)
        ordered = sorted((a for a in asked if a in table), key=lambda a: table[a])
        kept = ordered[len(ordered) // 10 : len(ordered) - len(ordered) // 10]
        measured = [*references]
        if given.random:
            measured += [first[i] for i in np.random.default_rng(given.seed + 1).permutation(len(first))[:10]]
        scores = predictor.adapt({a: table[a] for a in measured}).scores(kept)
        rows.append(Row(device, given.learner, spearman(scores, [table[a] for a in kept]), "1"))
    rows.append(Row("mean", given.learner, statistics.mean(r.value for r in rows), "1"))
    emit(rows, given.json)


if __name__ == "__main__":
    main()
