"""Checks of Skip a Layer or Loop it? Test-Time Depth Adaptation of Pretrained LLMs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hasten.papers.experiment import Experiment, Seen, check

if TYPE_CHECKING:
    from torch import Tensor

    from hasten.runtime.decoding.layer_chain import Chains
    from hasten.search.layer_chains import ChainResult, Path


_SHORTEST, _LONGEST, _NEEDS = 18, 34, 60.0


@dataclass(frozen=True)
class _Sample:
    """One input: what each arm saw. ``options`` counts the different answers that any path gave.

    ``right`` tells of any other path whether it answers rightly, ``state`` is the prompt's mean state behind two layers.
    """

    fact: bool
    right: Callable[[Path], bool]
    state: Tensor
    tree: ChainResult
    random: ChainResult
    skip: ChainResult
    repeat: ChainResult
    reorder: ChainResult
    control: ChainResult
    options: int


@functools.cache
def _samples(budget: float, seed: int) -> list[_Sample]:
    """Every arm, at equal evaluations, on facts with four options and on additions to be answered exactly."""
    import torch

    from hasten.methods import WeightOnly, apply_all
    from hasten.models import load_network
    from hasten.runtime import LanguageModel
    from hasten.runtime.decoding.layer_chain import Chains
    from hasten.search.layer_chains import Rules, random_search, search
    from hasten.tasks.questions import additions, facts

    full = budget >= 1500
    trials = 200 if full else 60 if budget >= _NEEDS else 4
    many = (32, 24) if full else (12, 6) if budget >= _NEEDS else (1, 1)
    loaded = load_network()
    tokenizer = loaded.tokenizer
    model = apply_all(LanguageModel(loaded.network, tokenizer), [WeightOnly(16, 16, bf16=True)])
    layers = len(model.layers)
    rules = Rules(layers, _SHORTEST, _LONGEST)
    others = (
        Rules(layers, _SHORTEST, layers, repeat=False),
        Rules(layers, layers, _LONGEST, skip=False),
        replace(rules, reorder=True),
    )

    def arms(right: Callable[[Path], bool], wrong: Callable[[Path], bool], answers: _Answers, fact: bool) -> _Sample:
        tree, chance = (find(rules, right, trials=trials, seed=seed) for find in (search, random_search))
        skip, repeat, reorder = (search(some, right, trials=trials, seed=seed) for some in others)
        control = search(rules, wrong, trials=trials, seed=seed)
        options = len(set(answers.said.values()))
        return _Sample(fact, right, answers.state, tree, chance, skip, repeat, reorder, control, options)

    letters = torch.tensor([tokenizer(f" {c}", add_special_tokens=False)["input_ids"][0] for c in "ABCD"])
    samples = []
    for question in facts(seed)[: many[0]]:
        listed = "".join(f"{c}. {o}\n" for c, o in zip("ABCD", question.options, strict=True))
        ids = torch.tensor(tokenizer(f"Question: {question.text}\n{listed}Answer:")["input_ids"])
        answers = _Answers(Chains(model, ids), letters)
        before = answers(tuple(range(layers)))
        # The control asks for an option that is neither right nor what the whole model says.
        other = next(i for i in range(4) if (i,) not in ((question.answer,), before))
        samples.append(arms(answers.target((question.answer,)), answers.target((other,)), answers, True))
    for prompt, answer in additions(many[1], seed):
        both = [tokenizer(f" {int(answer) + more}", add_special_tokens=False)["input_ids"] for more in (0, 1)]
        asked = tokenizer(prompt)["input_ids"]
        right, wrong = (
            _Answers(Chains(model, torch.tensor(asked + target[:-1])), None, len(target)) for target in both
        )  # fmt: skip
        samples.append(arms(right.target(tuple(both[0])), wrong.target(tuple(both[1])), right, False))
    return samples


class _Answers:
    """What a model says along each path: the best of some tokens, or the best token at each of the last positions."""

    def __init__(self, chains: Chains, among: Tensor | None, last: int = 1) -> None:
        self._chains, self._among, self._last = chains, among, last
        self.state = chains.mean_state()
        self.said: dict[Path, tuple[int, ...]] = {}

    def __call__(self, path: Path) -> tuple[int, ...]:
        if path not in self.said:
            logits = self._chains.logits(path, self._last)
            self.said[path] = tuple((logits if self._among is None else logits[:, self._among]).argmax(-1).tolist())
        return self.said[path]

    def target(self, answer: tuple[int, ...]) -> Callable[[Path], bool]:
        """Whether a path says ``answer``."""
        return lambda path: self(path) == answer


def _shorter(result: ChainResult) -> bool:
    return result.best is not None and len(result.best) < len(result.whole)


def _one_for_all(samples: list[_Sample], trials: int) -> str:
    """What chains do that are the same for every input: leaving early, dropping layers by influence, a searched one."""
    import torch

    from hasten.data.text import default_text
    from hasten.methods.drop_layers import least_important
    from hasten.models import load_network
    from hasten.runtime import LanguageModel
    from hasten.search.layer_chains import Rules, search

    loaded = load_network()
    layers = len(samples[0].tree.whole)
    ids = torch.tensor(loaded.tokenizer(default_text()[:2000])["input_ids"])
    dropped = least_important(LanguageModel(loaded.network), ids[None], 6).layers
    order = [*least_important(LanguageModel(loaded.network), ids[None], 3).layers]
    paths = {
        f"leaving at layer {layers - 3}": tuple(range(layers - 3)),
        f"leaving at layer {layers - 6}": tuple(range(layers - 6)),
        "3 layers of least influence dropped": tuple(i for i in range(layers) if i not in order),
        "6 dropped": tuple(i for i in range(layers) if i not in dropped),
    }
    right = {name: sum(s.right(path) for s in samples) for name, path in paths.items()}
    before = sum(s.tree.right_before for s in samples)
    parts = [f"{name} {count}" for name, count in right.items()]
    if trials:
        found = search(Rules(layers, _SHORTEST, _LONGEST), lambda p: _share(samples, p), trials=trials)
        best = found.ranked[0]
        parts.append(
            f"the best of {trials} static chains {found.seen[best] * len(samples):.0f} with {len(best)} layers"
        )
    return f"of {len(samples)} answers the whole model has {before} right, one chain for all: " + ", ".join(parts)


def _share(samples: list[_Sample], path: Path) -> float:
    return sum(s.right(path) for s in samples) / len(samples)


def _predicted(samples: list[_Sample]) -> str:
    """A predictor of the chain from the prompt alone, learned on half of the questions and asked on the others."""
    import collections

    import torch

    from hasten.runtime.decoding.layer_chain import PathPredictor

    facts = [s for s in samples if s.fact]
    known, asked = facts[::2], facts[1::2]
    whole = len(facts[0].tree.whole)
    often: collections.Counter[Path] = collections.Counter(
        p for s in known for p, score in s.tree.seen.items() if score and len(p) < whole
    )
    paths = [p for p, _ in often.most_common(4)]
    if not paths or not asked:
        return "too few chains to learn a predictor from"
    torch.manual_seed(0)
    predictor = PathPredictor(len(facts[0].state), paths)
    predictor.fit(torch.stack([s.state for s in known]), torch.tensor([[s.right(p) for p in paths] for s in known]))
    chosen = [predictor.choose(s.state) or s.tree.whole for s in asked]
    right = sum(s.right(p) for s, p in zip(asked, chosen, strict=True))
    before = sum(s.tree.right_before for s in asked)
    return (
        f"a predictor of {len(paths)} chains, learned on {len(known)} questions: {right} of {len(asked)} others right with"
        f" {sum(map(len, chosen)) / len(chosen):.1f} layers, the whole model {before}"
    )


def _made_of(samples: list[_Sample]) -> str:
    """Where the best chains skip and repeat, and how paths of each length do."""
    from hasten.search.layer_chains import score_by_length, use_of_layers

    layers = len(samples[0].tree.whole)
    chains = [s.tree.best for s in samples if s.tree.best is not None]
    skipped, repeated = use_of_layers(chains, layers)
    third = -(-layers // 3)
    parts = []
    for name, shares in (("skipped", skipped), ("repeated", repeated)):
        means = [sum(shares[i : i + third]) / len(shares[i : i + third]) for i in range(0, layers, third)]
        parts.append(f"{name} by {', '.join(f'{m:.0%}' for m in means)}")
    lengths = score_by_length(s.tree for s in samples)
    some = [(n, lengths[n]) for n in sorted(lengths)[:: max(1, len(lengths) // 5)]]
    return (
        f"layers of the first, middle and last third are {' and '.join(parts)} of the best chains;"
        f" paths are right by length: {', '.join(f'{n}: {v:.0%}' for n, v in some)}"
    )


@check("C1", needs=_NEEDS)
def _shorter_chains(experiment: Experiment) -> Seen:
    every = _samples(experiment.paper_budget, experiment.seed)
    samples = [s for s in every if s.tree.right_before]
    found = [s for s in samples if _shorter(s.tree)]
    share = len(found) / max(1, len(samples))
    saved = sum(len(s.tree.whole) - len(s.tree.best or ()) for s in found) / max(1, len(found))
    best = [len(s.tree.best) for s in every if s.tree.best is not None]
    depth, mean = len(every[0].tree.whole), sum(best) / max(1, len(best))
    value = (
        f"{len(found)} of {len(samples)} right answers kept by a shorter chain ({share:.0%}), {saved:.1f} layers fewer;"
        f" mean length of the best right chains {mean:.1f} of {depth}; an oracle: the search is told the answers"
    )
    detail = ""
    if experiment.paper_budget >= _NEEDS:
        static = 100 if experiment.paper_budget >= 1500 else 0
        detail = "; ".join((_made_of(every), _one_for_all(every, static), _predicted(every)))
    seen = experiment.judge(value, share > 0.75 and mean <= depth, share > 0.2)
    return replace(seen, detail=detail)


@check("C2", needs=_NEEDS)
def _mended(experiment: Experiment) -> Seen:
    samples = [s for s in _samples(experiment.paper_budget, experiment.seed) if not s.tree.right_before]
    parts, shares = [], []
    for fact, name in ((True, "of four options"), (False, "exact sums")):
        some = [s for s in samples if s.fact is fact]
        mended = sum(s.tree.best is not None for s in some)
        control = sum(s.control.best is not None for s in some)
        options = sum(s.options for s in some) / max(1, len(some))
        parts.append(
            f"{name}: {mended} of {len(some)} wrong ones mended, a wrong target reached for {control}"
            f" ({options:.1f} different answers each)"
        )
        shares += [(mended, control, len(some))]
    count = max(1, sum(n for _, _, n in shares))
    gain = sum(m - c for m, c, _ in shares) / count
    value = "; ".join(parts) + f"; mended less control {gain:+.0%}"
    if gain < 0.15:
        value += ": C2 is not supported at this scale"
    return experiment.judge(value, gain >= 0.15 and sum(m for m, _, _ in shares) > 0.6 * count, gain >= 0.15)


@check("C3", needs=_NEEDS)
def _both_actions(experiment: Experiment) -> Seen:
    samples = _samples(experiment.paper_budget, experiment.seed)
    arms = ("tree", "skip", "repeat", "reorder")
    right = {name: sum(getattr(s, name).best is not None for s in samples) for name in arms}
    short = {name: sum(_shorter(getattr(s, name)) for s in samples) for name in arms}
    value = (
        f"of {len(samples)} inputs some chain is right for {right['tree']} (skip and repeat), {right['skip']} (skip),"
        f" {right['repeat']} (repeat); a shorter one for {short['tree']}, {short['skip']}, {short['repeat']}; where runs may"
        f" also trade places {right['reorder']} and {short['reorder']}"
    )
    best = max(right["skip"], right["repeat"])
    return experiment.judge(value, right["tree"] > best, right["tree"] >= best)


@check("C4", needs=_NEEDS)
def _tree_against_random(experiment: Experiment) -> Seen:
    samples = _samples(experiment.paper_budget, experiment.seed)
    tree, chance = (sum(_shorter(getattr(s, name)) for s in samples) for name in ("tree", "random"))
    lengths = [
        (len(s.tree.best), len(s.random.best)) for s in samples if s.tree.best is not None and s.random.best is not None
    ]
    mean = [sum(pair[i] for pair in lengths) / max(1, len(lengths)) for i in (0, 1)]
    value = (
        f"a shorter right chain for {tree} inputs, random search {chance}, at equal evaluations;"
        f" mean length of the best {mean[0]:.1f} against {mean[1]:.1f}"
    )
    return experiment.judge(value, tree >= chance and mean[0] < mean[1], tree >= chance)


@check("C5")
def _compute_saved(experiment: Experiment) -> Seen:
    from hasten.models.loading.network import DEFAULT_MODEL, load_network
    from hasten.runtime import LanguageModel
    from hasten.runtime.decoding.layer_chain import chain

    model = LanguageModel(load_network(DEFAULT_MODEL).network)
    layers = len(model.layers)
    path = [*range(5), *range(8, 20), *range(18, layers)]

    def inside(workload: object) -> tuple[int, int]:
        einsums = [e for p in workload.phases if p.name == "decode" for e in p.cascade.einsums]  # type: ignore[attr-defined]
        mine = [e for e in einsums if ".layers." in e.module or e.module.startswith("layers.")]
        return sum(e.flops for e in mine), sum(workload.state.values())  # type: ignore[attr-defined]

    whole = inside(model.workload(64, 16))
    with chain(model, path):
        short = inside(model.workload(64, 16))
    ratios = [a / b for a, b in zip(short, whole, strict=True)]
    expected = len(path) / layers
    value = f"a chain of {len(path)} of {layers} layers: layer FLOPs {ratios[0]:.4f}, cache {ratios[1]:.4f} of the whole model's ({expected:.4f})"
    return Seen(value, all(abs(r - expected) < 1e-3 for r in ratios))
