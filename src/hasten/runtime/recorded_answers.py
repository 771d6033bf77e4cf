"""Answers of small trained models under kinds of attention, recorded for `cost.serving.recorded_trials` (Kinetics).

Models of several widths learn to follow a permutation that their prompt lists (`hasten.tasks.recall.iterated_map`);
each then answers the same questions many times with sampled tokens, read through the cache by a policy. A prompt asked
for so many steps is a question, and an answer has that many tokens.

    record("trials.jsonl", steps=800)  # minutes; then hasten.cost.serving.recorded_trials.read_records
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.cost.serving.recorded_trials import Answer, Record, RecordedQuestion, write_records
from hasten.models.language.llama import small_llama
from hasten.processes import run_arms
from hasten.runtime.cache import CacheSpec
from hasten.runtime.language_model import LanguageModel
from hasten.runtime.policies import BlockTopKPolicy, LocalWindow, Policy, RandomTokens, StridedBlocks, TopK
from hasten.tasks.recall import iterated_map
from hasten.train.fitting import fit
from hasten.workload.decoder import DecoderSizes

# Steps end before the cycle closes: from there on an answer could be copied from a few tokens back.
SYMBOLS, FILLER, STEPS, LAYERS, BLOCK = 16, 64, 15, 3, 2
# Tokens that every sparse method reads: the first, and the newest.
SINKS, LOCAL = 4, 2 * BLOCK
PROMPT = 2 * SYMBOLS + FILLER + 1
ASKED = (4, 8, 12, 15)
WIDTHS, BUDGETS = (32, 64, 96), (16, 32, 64)
# Kinds of attention, and the keys that a token reads; 0 for all.
METHODS = (
    ("dense", 0),
    *itertools.product(("top-k", "block top-k", "strided blocks", "random", "local"), BUDGETS),
)

Weights = dict[str, Tensor]


def _network(width: int) -> Any:
    return small_llama(
        3 * SYMBOLS, width=width, layers=LAYERS, heads=width // 16, kv_heads=width // 32, head_dim=16, positions=128
    )


def train_follower(width: int, steps: int, seed: int, batch: int = 64) -> Weights:
    """Weights of a model of a width that has learned to follow a permutation given in its prompt."""
    torch.manual_seed(seed)
    network = _network(width)
    generator = torch.Generator().manual_seed(seed + 1)

    def loss(step: int) -> Tensor:
        # From few pairs to all, then scattered.
        share = step / steps
        used = 3 if share < 0.2 else 5 if share < 0.4 else SYMBOLS
        filler = FILLER if share >= 0.5 else 0
        ids, written = iterated_map(
            batch, symbols=SYMBOLS, longest=used - 1, used=used, filler=filler, generator=generator
        )
        logits, wanted = network(ids[:, :-1]).logits, written[:, 1:]
        return torch.nn.functional.cross_entropy(logits[wanted], ids[:, 1:][wanted])

    fit(network, loss, steps=steps, peak=0.32 / width)
    return dict(network.state_dict())


def policy_of(method: str, budget: int) -> Policy | None:
    """What reads ``budget`` keys by one of `hasten.cost.serving.scaling.METHODS`; None for dense attention."""
    if method == "dense":
        return None
    chosen = budget - SINKS - LOCAL
    found: dict[str, Callable[[], Policy]] = {
        "top-k": lambda: TopK(chosen, LOCAL, SINKS),
        "block top-k": lambda: BlockTopKPolicy(chosen // BLOCK, LOCAL // BLOCK, BLOCK, SINKS),
        "strided blocks": lambda: StridedBlocks(chosen // BLOCK, LOCAL // BLOCK, BLOCK, SINKS),
        "random": lambda: RandomTokens(chosen, LOCAL, SINKS),
        "local": lambda: LocalWindow(budget, SINKS),
    }
    return found[method]()


def answers(
    weights: Weights, width: int, methods: Sequence[tuple[str, int]], questions: int, trials: int, seed: int
) -> list[Record]:
    """What one model answers under each kind of attention: every token is really generated.

    Args:
        weights, width: of `train_follower`.
        methods: (kind of attention, keys that a token reads).
        questions: prompts.
        trials: answers to each.
        seed: of prompts and tokens.
    """
    network = _network(width)
    network.load_state_dict(weights)
    generator = torch.Generator().manual_seed(seed + 7)
    ids, _ = iterated_map(questions, symbols=SYMBOLS, longest=STEPS, filler=FILLER, generator=generator)
    decoder = DecoderSizes(
        str(width), layers=LAYERS, hidden=width, heads=width // 16, kv_heads=width // 32, inner=2 * width,
        vocabulary=3 * SYMBOLS, parameters=sum(t.numel() for t in weights.values()),
    )  # fmt: skip
    found = []
    for method, budget in methods:
        model = LanguageModel(network, cache=CacheSpec(policy=policy_of(method, budget)))
        lengths = _right_steps(model, ids.repeat_interleave(trials, 0), seed).view(questions, trials).tolist()
        asked = tuple(
            RecordedQuestion(PROMPT, tuple(Answer(steps, right >= steps) for right in row))
            for steps in ASKED
            for row in lengths
        )
        # The policies leave the first layer dense, and it is charged so.
        found.append(Record(decoder, method, budget, asked, BLOCK, 0 if method == "dense" else 1))
    return found


@torch.inference_mode()
def _right_steps(model: LanguageModel, ids: Tensor, seed: int) -> Tensor:
    """For each row (rows, length) how many sampled steps were right before the first error."""
    torch.manual_seed(seed)
    cache = model.new_cache(len(ids), PROMPT + STEPS)
    logits = model.prefill(ids[:, :PROMPT], cache)
    right = torch.ones(len(ids), dtype=torch.bool)
    lengths = torch.zeros(len(ids), dtype=torch.int64)
    for step in range(STEPS):
        token = torch.multinomial(torch.softmax(logits, -1), 1)
        right &= token[:, 0] == ids[:, PROMPT + step]
        lengths += right
        logits = model(token, past_key_values=cache).logits[:, -1].float()
    return lengths


def record(
    path: str | Path,
    *,
    steps: int = 800,
    questions: int = 64,
    trials: int = 16,
    seed: int = 0,
    widths: Sequence[int] = WIDTHS,
    methods: Sequence[tuple[str, int]] = METHODS,
) -> None:
    """Trains a model of each width and writes what they answered, as `read_records` reads it.

    Args:
        path: the file.
        steps: of each training.
        questions, trials: see `answers`; ``questions`` of each kind of attention are written, spread over `ASKED`.
        seed: of all that is random.
        widths, methods: of the models, and their kinds of attention.
    """
    weights = run_arms(train_follower, [(w, steps, seed) for w in reversed(widths)])[::-1]
    arms = [(w, width, methods, questions, trials, seed) for w, width in zip(weights, widths, strict=True)]
    records = [r for some in run_arms(answers, arms) for r in some]
    write_records(path, [replace(r, questions=r.questions[:: max(1, len(r.questions) // questions)]) for r in records])
