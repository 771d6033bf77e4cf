"""Checks of TurboViT: Generating Fast Vision Transformers via Generative Architecture Search."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import optuna

from hasten.models.vision.hiera import PUBLISHED, HieraConfig
from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded
from hasten.processes import one_thread
from hasten.search.networks.members.hiera import HieraChoices, HieraGenes, HieraSpace
from hasten.search.networks.net_score import net_score
from hasten.search.networks.searches.generative import Analytic, ArchitectureGenerator, GenerativeSearch
from hasten.search.networks.searching import BudgetIsUsed, NetworkTrials, until_used
from hasten.tasks.placed_digits import PlacedDigits

# Weights and multiply-accumulates of what the abstract compares with, in millions, and by how much TurboViT is smaller.
_FASTERVIT, _MOBILEVIT = 31.4, 7500.0
_FEWER = (2.47, 3.4)
_WEIGHTS, _PRODUCTS = _FASTERVIT / _FEWER[0], _MOBILEVIT / _FEWER[1]


def _sizes(space: HieraSpace, arch: HieraGenes) -> tuple[float, float]:
    """Millions of weights and of products."""
    config = arch.config(space.config)
    return config.parameters / 1e6, config.products / 1e6


def _capacity(space: HieraSpace, arch: HieraGenes) -> float:
    """What stands for accuracy where nothing is trained: a line through the logarithms of Hiera's published sizes."""
    weights, products = _sizes(space, arch)
    return 82.8 + 2.5 * math.log10(weights / 27.9) + 2.5 * math.log10(products / 4901)


def _admits(space: HieraSpace, arch: HieraGenes) -> bool:
    weights, products = _sizes(space, arch)
    return weights <= _WEIGHTS and products <= _PRODUCTS and len(arch.pools) == 3 and any(arch.local)


@shared(weight=60)
def _generator(experiment: Experiment) -> dict[str, Any]:
    """A generator taught by the analytic model alone, and the networks of 64 seeds that it has not learned from."""
    space = HieraSpace()
    generator: Any = ArchitectureGenerator(space, seed=experiment.seed)
    anchor = PUBLISHED["hiera-tiny-64"]
    prototype = HieraGenes(anchor.widths, anchor.depths, (4,) * 4, anchor.local, 64, (1, 2, 3))
    taught = Analytic(
        generator.near(prototype), lambda arch, _: _capacity(space, arch), lambda arch, _: _admits(space, arch),
        {"least": 0.16, "replay": 0.0, "rate": 5e-3, "entropy": 0.01},
    )  # fmt: skip
    rounds, seen = experiment.at(quick=3, normal=200), 0
    for number in range(rounds):
        experiment.tell("teaching", number / rounds)
        taught.step(list(range(seen, seen + 16)))
        seen += 16
    made = [generator(10**6 + i) for i in range(64)]
    kept = [a for a in made if _admits(space, a)]
    best = max(kept, key=lambda a: _capacity(space, a), default=None)
    return {
        "feasible": len(kept) / len(made), "distinct": len(set(made)), "tried": len(taught.known),
        "best": best and (_sizes(space, best), _capacity(space, best), best),
        "prototype": (_sizes(space, prototype), _capacity(space, prototype)),
    }  # fmt: skip


def _told(found: dict[str, Any]) -> str:
    if not found["best"]:
        return f"none of 64 seeds keeps the requirements after {found['tried']} networks"
    (weights, products), capacity, arch = found["best"]
    return (
        f"{100 * found['feasible']:.0f} % of 64 new seeds keep all requirements, {found['distinct']} are distinct; the"
        f" largest: widths {arch.widths}, depths {arch.depths}, {weights:.2f} M weights, {products / 1e3:.2f} G products,"
        f" {capacity - found['prototype'][1]:+.2f} points of capacity beside the width-64 Hiera-T"
    )


@check("T1", weight=1)
def _weights(experiment: Experiment) -> Seen:
    """A generator that was taught by exact sizes and a fixed stand-in for accuracy; nothing is trained on ImageNet."""
    found = experiment.once(_generator)
    ratio = _FASTERVIT / found["best"][0][0] if found["best"] else 0.0
    value = f"{_told(found)}; {ratio:.2f}x fewer weights than FasterViT-0"
    return experiment.judge(
        value, ratio >= _FEWER[0] and found["feasible"] >= 0.95 and found["distinct"] >= 30, ratio >= _FEWER[0]
    )


@check("T2", weight=1)
def _products(experiment: Experiment) -> Seen:
    """The same networks' multiply-accumulates."""
    found = experiment.once(_generator)
    ratio = _MOBILEVIT / found["best"][0][1] if found["best"] else 0.0
    value = f"{ratio:.2f}x fewer products than MobileViTv2-2.0; " + _told(found)
    return experiment.judge(
        value, ratio >= _FEWER[1] and found["feasible"] >= 0.95 and found["distinct"] >= 30, ratio >= _FEWER[1]
    )


def _small() -> HieraSpace:
    """Digits on canvases of 32 x 32: 8 x 8 tokens, mask units of 4 x 4."""
    like = HieraConfig(
        (16,) * 3, (1,) * 3, (1,) * 3, (False, True, True), (True, True, False), (2,) * 3, 4, 7, 4, 32, 1, 10
    )
    widths = tuple(range(16, 97, 16))
    return HieraSpace(like, HieraChoices((widths,) * 3, ((1, 2, 3, 4),) * 3, heads=(16, 32)))


def _requirement(space: HieraSpace) -> Callable[[HieraGenes], float]:
    """1 where a network keeps all requirements, and 2 where it does not."""

    def asked(arch: HieraGenes) -> float:
        weights, products = _sizes(space, arch)
        return 1.0 if weights <= 0.2 and products <= 4 and len(arch.pools) == 2 and any(arch.local) else 2.0

    return asked


def _scaled(space: HieraSpace) -> list[HieraGenes]:
    """Hiera's form at every width: doubled from stage to stage where the choices allow it, one block each and two."""
    found = []
    for depth in ((1, 1, 1), (1, 2, 1), (1, 1, 2), (1, 2, 2)):
        for first in (16, 32, 48):
            widths = tuple(min(96, first * 2**i) for i in range(3))
            found.append(HieraGenes(widths, depth, (4,) * 3, (True, True, False), 16, (1, 2)))
    asked = _requirement(space)
    return [a for a in found if asked(a) == 1]


def _searched(kind: str, quick: bool, budget: int, steps: int, again: int, seed: int) -> tuple[float, float, int]:
    """NetScore of the winner after a longer training, its accuracy on test canvases, and trainings of the search."""
    space = _small()
    task = PlacedDigits((64, 64, 64) if quick else (4000, 500, 750))
    made: dict[str, Any] = {"seed": seed, "steps": steps, "batch": 32, "rate": 3e-3}
    trials: Any = NetworkTrials(task, space, _requirement(space), 1.0, trainings=budget, **made)

    def utility(arch: HieraGenes, accuracy: float) -> float:
        weights, products = _sizes(space, arch)
        return net_score(max(accuracy, 1e-3), 1e6 * weights, 1e6 * products)

    if kind in ("generator", "genes only"):
        search = GenerativeSearch(trials, utility, probes=kind == "generator", batch_of=3)
        until_used(trials, search.step)
    elif kind == "random":
        until_used(trials, lambda: trials.score(trials.drawn(lambda: space.sample(trials.rng), 100_000)))
    elif kind == "scaled":
        for arch in _scaled(space)[:budget]:
            trials.score(arch)
    else:
        _by_optuna(space, trials, utility, seed)
    best = max(trials.scores, key=lambda a: utility(a, trials.scores[a]))
    longer: Any = NetworkTrials(task, space, _requirement(space), 1.0, trainings=1, **{**made, "steps": again})
    longer.score(best)
    with one_thread():
        accuracy = task.evaluate(longer.best[2], "test")
    return utility(best, accuracy), accuracy, trials.trained


def _by_optuna(space: HieraSpace, trials: Any, utility: Callable[[HieraGenes, float], float], seed: int) -> None:
    """Optuna's TPE, which is told of requirements that are not kept as of a score far below all others."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    for _ in range(3000):
        trial = study.ask()
        arch = space.from_params(space.space().suggest(trial))
        try:
            study.tell(trial, utility(arch, trials.score(arch)) if trials.admits(arch) else -100.0)
        except BudgetIsUsed:
            return


@shared(weight=280)
def _searches(experiment: Experiment) -> dict[str, list[tuple[float, float, int]]]:
    """Every search at as many trainings, its winner trained again for longer."""
    budget, steps, again = experiment.at(quick=(4, 2, 2), normal=(experiment.steps(12), 80, 250), long=(200, 150, 600))
    kinds = ("generator", "genes only", "random", "optuna", "scaled")
    plan = {
        f"{k}/{s}": (k, experiment.quick, budget, steps, again, s) for s in experiment.seeds(3, long=5) for k in kinds
    }
    found, _ = succeeded(experiment.arms(_searched, plan), plan)
    return {k: [row for name, row in found.items() if name.startswith(f"{k}/")] for k in kinds}


@check("T4", weight=1, needs=240)
def _better(experiment: Experiment) -> Seen:
    """NetScore of each search's winner on digits of any size anywhere: half a decibel over random search in the median,
    and over Hiera's form at every width. The dossier's 40 trainings of 150 steps are 12 of 80 at the usual budget."""
    arms = experiment.once(_searches)
    middle = {k: statistics.median(score for score, *_ in rows) for k, rows in arms.items()}
    value = "; ".join(
        f"{k} {middle[k]:.1f} dB ({min(s for s, *_ in rows):.1f} to {max(s for s, *_ in rows):.1f}),"
        f" {100 * statistics.mean(a for _, a, _ in rows):.1f} %, {statistics.mean(n for *_, n in rows):.0f} trainings"
        for k, rows in arms.items()
    )
    over = middle["generator"] - middle["random"], middle["generator"] - middle["scaled"]
    return experiment.judge(value, over[0] >= 0.5 and over[1] > 0, over[0] > 0 and over[1] > 0)
