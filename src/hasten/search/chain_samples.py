"""Inputs whose best chains of layers are searched for (CoLa, arXiv 2507.07996), and what can be said of many of them.

Chains for one input each, one chain for all inputs, and a predictor of the chain from the prompt alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.data.text import default_text
from hasten.runtime.decoding.layer_chain import Asked, PathPredictor, ask_exactly, ask_options
from hasten.runtime.language_model import LanguageModel
from hasten.search.layer_chains import (
    Comparison,
    Path,
    Rules,
    by_thirds,
    compare,
    often_right,
    score_by_length,
    search,
    static_chains,
    use_of_layers,
)
from hasten.tasks.questions import additions, facts


@dataclass(frozen=True)
class ChainSample:
    """One input and what each search for a chain saw.

    Args:
        fact: whether it is a question with four options; else a sum to be said exactly.
        right: whether any other path answers rightly.
        state: the prompt's mean state behind two layers.
        found: by each search, at equal evaluations.
        options: different answers that any path gave.
    """

    fact: bool
    right: Callable[[Path], bool]
    state: Tensor
    found: Comparison
    options: int


def usual_rules(layers: int) -> Rules:
    """Chains of three fifths of the layers up to four more: 18 to 34 of 30."""
    return Rules(layers, round(0.6 * layers), layers + 4)


def chain_samples(
    model: LanguageModel, questions: int, sums: int, *, trials: int, seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> list[ChainSample]:  # fmt: skip
    """Every search on facts with four options and on additions to be answered exactly.

    Args:
        model: whose layers are chained.
        questions, sums: inputs of each kind.
        trials: evaluations of each search.
        seed: of inputs and searches.
        progress: told the number of inputs that are done.
    """
    made: list[ChainSample] = []

    def sample(fact: bool, asked: Asked) -> None:
        found = compare(usual_rules(len(model.layers)), asked.right, asked.wrong, trials=trials, seed=seed)
        made.append(ChainSample(fact, asked.right, asked.answers.state, found, len(set(asked.answers.said.values()))))
        progress(len(made))

    for question in facts(seed)[:questions]:
        sample(True, ask_options(model, question))
    for prompt, answer in additions(sums, seed):
        sample(False, ask_exactly(model, prompt, answer, f" {int(answer) + 1}"))
    return made


def one_for_all(some: Sequence[ChainSample], model: LanguageModel, trials: int) -> str:
    """In words what chains do that are the same for every input: leaving early, dropping layers by influence, and the
    best that a search of so many ``trials`` finds."""
    ids = torch.tensor(model.tokenizer(default_text()[:2000])["input_ids"])[None]
    parts = [f"{name} {sum(s.right(path) for s in some)}" for name, path in static_chains(model, ids).items()]
    if trials:
        rules = usual_rules(len(model.layers))
        found = search(rules, lambda p: sum(s.right(p) for s in some) / len(some), trials=trials)
        best = found.ranked[0]
        parts.append(f"the best of {trials} static chains {found.seen[best] * len(some):.0f} with {len(best)} layers")
    before = sum(s.found.tree.right_before for s in some)
    return f"of {len(some)} answers the whole model has {before} right, one chain for all: " + ", ".join(parts)


@dataclass(frozen=True)
class PredictedChains:
    """What a predictor of the chain from the prompt alone does on inputs that it has not learned from.

    Args:
        chains: to choose from.
        known, asked: inputs that it learned from, and others.
        right, before: answers of the others that are right with its chains, and with the whole model.
        layers: of its chains, a mean.
    """

    chains: int
    known: int
    asked: int
    right: int
    before: int
    layers: float

    def __str__(self) -> str:
        return (
            f"a predictor of {self.chains} chains, learned on {self.known} questions: {self.right} of {self.asked}"
            f" others right with {self.layers:.1f} layers, the whole model {self.before}"
        )


def predicted_chains(some: Sequence[ChainSample], *, chains: int = 4, seed: int = 0) -> PredictedChains | None:
    """A `PathPredictor` learned on every second question with options and asked about the others.

    Args:
        some: inputs; only those with options are used.
        chains: so many to choose from, that are most often right.
        seed: of the predictor.

    Returns:
        None where no chain shorter than the model was right for any, or there is nothing to ask.
    """
    questions = [s for s in some if s.fact]
    known, asked = questions[::2], questions[1::2]
    paths = often_right([s.found.tree for s in known], chains)
    if not paths or not asked:
        return None
    whole = questions[0].found.tree.whole
    torch.manual_seed(seed)
    predictor = PathPredictor(len(questions[0].state), paths)
    predictor.fit(torch.stack([s.state for s in known]), torch.tensor([[s.right(p) for p in paths] for s in known]))
    chosen = [predictor.choose(s.state) or whole for s in asked]
    return PredictedChains(
        len(paths), len(known), len(asked),
        sum(s.right(p) for s, p in zip(asked, chosen, strict=True)),
        sum(s.found.tree.right_before for s in asked),
        sum(map(len, chosen)) / len(chosen),
    )  # fmt: skip


def made_of(some: Sequence[ChainSample]) -> str:
    """In words where the best chains skip and repeat, and how paths of each length do."""
    chains = [s.found.tree.best for s in some if s.found.tree.best is not None]
    used = zip(("skipped", "repeated"), use_of_layers(chains, len(some[0].found.tree.whole)), strict=True)
    parts = [f"{name} by {', '.join(f'{m:.0%}' for m in by_thirds(shares))}" for name, shares in used]
    lengths = score_by_length(s.found.tree for s in some)
    listed = [(n, lengths[n]) for n in sorted(lengths)[:: max(1, len(lengths) // 5)]]
    return (
        f"layers of the first, middle and last third are {' and '.join(parts)} of the best chains;"
        f" paths are right by length: {', '.join(f'{n}: {v:.0%}' for n, v in listed)}"
    )
