"""Checks of Skip a Layer or Loop it? Test-Time Depth Adaptation of Pretrained LLMs."""

from __future__ import annotations

from hasten.papers.experiment import Experiment, Seen, check, shared
from hasten.papers.language_models import real_model
from hasten.runtime.decoding.layer_chain import chain
from hasten.search.chain_samples import ChainSample, chain_samples, made_of, one_for_all, predicted_chains


@shared(weight=200)
def samples(experiment: Experiment) -> list[ChainSample]:
    """Every search on facts with four options and on additions to be answered exactly."""
    experiment.require(60)
    trials = experiment.at(quick=4, normal=60, long=200)
    questions, sums = experiment.at(quick=(2, 1), normal=(12, 6), long=(32, 24))
    model, seed = experiment.once(real_model), experiment.seed
    count = questions + sums
    return chain_samples(
        model, questions, sums, trials=trials, seed=seed,
        progress=lambda done: experiment.tell(f"{done} of {count} inputs", done / count),
    )  # fmt: skip


@check("C1", weight=15)
def shorter_chains(experiment: Experiment) -> Seen:
    """Right answers that a shorter chain keeps."""
    every = experiment.once(samples)
    right = [s.found.tree for s in every if s.found.tree.right_before]
    found = [t for t in right if t.shorter]
    share = len(found) / max(1, len(right))
    saved = sum(len(t.whole) - len(t.best or ()) for t in found) / max(1, len(found))
    best = [len(s.found.tree.best) for s in every if s.found.tree.best is not None]
    depth, mean = len(every[0].found.tree.whole), sum(best) / max(1, len(best))
    value = (
        f"{len(found)} of {len(right)} right answers kept by a shorter chain ({share:.0%}), {saved:.1f} layers fewer;"
        f" mean length of the best right chains {mean:.1f} of {depth}; an oracle: the search is told the answers"
    )
    static = experiment.at(quick=2, normal=0, long=100)
    predicted = predicted_chains(every) or "too few chains to learn a predictor from"
    detail = "; ".join(
        (made_of(every), one_for_all(every, experiment.once(real_model, "fp32"), static), str(predicted))
    )
    return experiment.judge(value, share > 0.75 and mean <= depth, share > 0.2, detail)


@check("C2", weight=0.1)
def mended(experiment: Experiment) -> Seen:
    """Wrong answers that some chain mends, less those for which some chain reaches a wrong target as well."""
    wrong = [s for s in experiment.once(samples) if not s.found.tree.right_before]
    parts, shares = [], []
    for fact, name in ((True, "of four options"), (False, "exact sums")):
        some = [s for s in wrong if s.fact is fact]
        found = sum(s.found.tree.best is not None for s in some)
        control = sum(s.found.control.best is not None for s in some)
        options = sum(s.options for s in some) / max(1, len(some))
        parts.append(
            f"{name}: {found} of {len(some)} wrong ones mended, a wrong target reached for {control}"
            f" ({options:.1f} different answers each)"
        )
        shares += [(found, control, len(some))]
    count = max(1, sum(n for _, _, n in shares))
    gain = sum(m - c for m, c, _ in shares) / count
    value = "; ".join(parts) + f"; mended less control {gain:+.0%}"
    if gain < 0.15:
        value += ": C2 is not supported at this scale"
    return experiment.judge(value, gain >= 0.15 and sum(m for m, _, _ in shares) > 0.6 * count, gain >= 0.15)


@check("C3", weight=0.1)
def both_actions(experiment: Experiment) -> Seen:
    """Skipping and repeating beside either alone."""
    found = [s.found for s in experiment.once(samples)]
    arms = ("tree", "skip", "repeat", "reorder")
    right = {name: sum(getattr(f, name).best is not None for f in found) for name in arms}
    short = {name: sum(getattr(f, name).shorter for f in found) for name in arms}
    value = (
        f"of {len(found)} inputs some chain is right for {right['tree']} (skip and repeat), {right['skip']} (skip),"
        f" {right['repeat']} (repeat); a shorter one for {short['tree']}, {short['skip']}, {short['repeat']}; where runs may"
        f" also trade places {right['reorder']} and {short['reorder']}"
    )
    best = max(right["skip"], right["repeat"])
    return experiment.judge(value, right["tree"] > best, right["tree"] >= max(1, best))


@check("C4", weight=0.1)
def tree_against_random(experiment: Experiment) -> Seen:
    """The tree beside random chains, at equal evaluations."""
    found = [s.found for s in experiment.once(samples)]
    tree, chance = (sum(getattr(f, name).shorter for f in found) for name in ("tree", "random"))
    best = [(f.tree.best, f.random.best) for f in found]
    lengths = [(len(a), len(b)) for a, b in best if a is not None and b is not None]
    mean = [sum(pair[i] for pair in lengths) / max(1, len(lengths)) for i in (0, 1)]
    value = (
        f"a shorter right chain for {tree} inputs, random search {chance}, at equal evaluations;"
        f" mean length of the best {mean[0]:.1f} against {mean[1]:.1f}"
    )
    return experiment.judge(value, tree >= chance and mean[0] < mean[1], tree >= max(1, chance))


@check("C5", weight=5)
def compute_saved(experiment: Experiment) -> Seen:
    """A chain's described products and cache beside the whole model's."""
    model = experiment.once(real_model, "fp32")
    layers = len(model.layers)
    path = [*range(layers // 6), *range(layers // 6 + 3, 2 * layers // 3), *range(2 * layers // 3 - 2, layers)]

    def inside() -> tuple[int, int]:
        workload = model.workload(64, 16)
        einsums = [e for p in workload.phases if p.name == "decode" for e in p.cascade.einsums]
        mine = [e for e in einsums if ".layers." in e.module or e.module.startswith("layers.")]
        return sum(e.flops for e in mine), sum(workload.state.values())

    whole = inside()
    with chain(model, path):
        short = inside()
    ratios = [a / b for a, b in zip(short, whole, strict=True)]
    expected = len(path) / layers
    value = f"a chain of {len(path)} of {layers} layers: layer FLOPs {ratios[0]:.4f}, cache {ratios[1]:.4f} of the whole model's ({expected:.4f})"
    return experiment.judge(value, all(abs(r - expected) < 1e-3 for r in ratios))
