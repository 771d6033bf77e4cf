"""Training Medusa's heads on a frozen model (Medusa-1, arXiv 2401.10774, section 2.2.1), and what they are worth.

The model's own text is enough to learn from. `hasten.runtime.decoding.medusa2` trains the model with them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hasten.cost.measuring import alternating
from hasten.errors import HastenError
from hasten.runtime.decoding.medusa import MedusaHeads, Tree, decode, head_logits
from hasten.runtime.language_model import LanguageModel
from hasten.train.loop import train
from hasten.train.schedules import Linear


@torch.inference_mode()
def own_text(model: LanguageModel, prompts: Tensor, new_tokens: int) -> tuple[Tensor, Tensor]:
    """The model's greedy continuations and the states behind their tokens: what heads learn from.

    Args:
        model: any.
        prompts: (n, length).
        new_tokens: of each.

    Returns:
        ids (n, length + new_tokens) and normed last states (n, length + new_tokens, width).
    """
    ids = model.generate(prompts, max_new_tokens=new_tokens, eos_token_id=None, do_sample=False)
    return ids, states_of(model, ids)


@torch.inference_mode()
def states_of(model: LanguageModel, ids: Tensor) -> Tensor:
    """Normed last states (n, length, width) behind the tokens of texts (n, length)."""
    return torch.cat([model.network.model(part, use_cache=False).last_hidden_state for part in ids.split(4)])


def fit(
    heads: MedusaHeads,
    model: LanguageModel,
    ids: Tensor,
    states: Tensor,
    *,
    seconds: float = 60.0,
    rate: float = 1e-3,
    discount: float = 0.8,
    batch: int = 256,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> float:
    """Trains heads on a frozen model's states (Medusa-1); returns the last loss.

    The loss of head k counts ``discount``^k. Only tokens that occur compete in the softmax, which makes a large
    vocabulary affordable.

    Args:
        heads: in place.
        model: whose output head is read.
        ids, states: (n, length) and (n, length, width), as `own_text` gives.
        seconds: to train for.
        rate: AdamW's.
        discount, batch, seed: of the loss, of a step, of the drawing.
        progress: told the share done.

    Raises:
        HastenError: the loss became infinite or NaN.
    """
    head = model.decoder.head
    weight = head.dequantize() if hasattr(head, "dequantize") else head.weight
    known, where = torch.unique(ids, return_inverse=True)
    table = weight[known].detach().float().clone()
    count, reach = len(heads.layers), ids.shape[1] - len(heads.layers) - 1
    generator = torch.Generator().manual_seed(seed)

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(ids), (batch,), generator=generator)
        at = torch.randint(reach, (batch,), generator=generator)
        guessed = heads(states[rows, at].clone()) @ table.t()
        each = [nn.functional.cross_entropy(guessed[:, k], where[rows, at + k + 2]) for k in range(count)]
        return torch.stack([discount**k * value for k, value in enumerate(each)]).sum()

    trained = train(
        heads, loss, optimizer=torch.optim.AdamW(heads.parameters(), rate), seconds=seconds, schedule=Linear(0.02),
        clock=time.perf_counter, progress=lambda moment, value: progress(moment.share),
    )  # fmt: skip
    return trained.finished("training Medusa's heads").loss


@torch.inference_mode()
def rank_accuracy(
    heads: MedusaHeads, model: LanguageModel, ids: Tensor, states: Tensor, ranks: int = 10
) -> list[list[float]]:
    """How often each head's guess of each rank is the token: (heads, ranks), for `Tree.best`."""
    count = len(heads.layers)
    reach = ids.shape[1] - count - 1
    found = torch.zeros(count, ranks)
    total = 0
    for row, state in zip(ids, states, strict=True):
        best = head_logits(model, heads(state[:reach].float())).topk(ranks, -1).indices
        for k in range(count):
            found[k] += (best[:, k] == row[k + 2 : k + 2 + reach, None]).sum(0)
        total += reach
    return (found / total).tolist()


def best_size(expected: Sequence[tuple[int, float]], seconds: Callable[[int], float]) -> int:
    """The number of rows whose expected tokens a second are the most.

    Args:
        expected: (rows, expected tokens a step) of some trees.
        seconds: of a step of so many rows, measured.
    """
    return max(expected, key=lambda pair: pair[1] / seconds(pair[0]))[0]


@dataclass(frozen=True)
class TreeSpeed:
    """How a tree did on some prompts.

    Args:
        tokens_a_step: made, in the mean.
        seconds: a token.
        exact: whether the text was the model's greedy text.
    """

    tokens_a_step: float
    seconds: float
    exact: bool


def tree_speed(
    model: LanguageModel, heads: MedusaHeads, tree: Tree, prompts: Sequence[Tensor], greedy: Sequence[Tensor]
) -> TreeSpeed:
    """Decodes each prompt (1, length) twice, the faster run counts, and compares with ``greedy`` (1, length + new)."""
    made, steps, seconds, exact = 0, 0, 0.0, True
    for prompt, expected in zip(prompts, greedy, strict=True):
        runs = [decode(model, heads, tree, prompt, expected.shape[1] - prompt.shape[1]) for _ in range(2)]
        exact = exact and all(torch.equal(run.ids, expected) for run in runs)
        made, steps = made + runs[0].made, steps + runs[0].steps
        seconds += min(run.seconds for run in runs)
    return TreeSpeed(made / max(1, steps), seconds / max(1, made), exact)


def step_seconds(model: LanguageModel, sizes: Sequence[int], length: int = 64) -> dict[int, float]:
    """Least seconds of a compiled step of so many rows behind ``length`` tokens, for each of ``sizes``.

    Raises:
        HastenError: the model has no compiled step.
    """
    cache, step = model.session(1, length + max(sizes))
    if step is None:
        raise HastenError(f"no step of several rows can be timed: {model.why_not_compiled}")
    cache.lengths[:] = [length]
    rows = {n: ([1] * n, [0] * n, list(range(length, length + n))) for n in sizes}
    times = alternating({str(n): functools.partial(step, *rows[n]) for n in sizes}, 8)
    cache.clear()
    return {n: min(times[str(n)]) for n in sizes}


@dataclass(frozen=True)
class TriedSizes:
    """Trees of several sizes on the same prompts.

    Args:
        speeds: rows of a step -> how its tree did.
        plain: seconds a token without a tree.
        chosen: the rows that expected tokens and measured times of steps say are best.
    """

    speeds: Mapping[int, TreeSpeed]
    plain: float
    chosen: int

    @property
    def exact(self) -> bool:
        return all(speed.exact for speed in self.speeds.values())

    @property
    def rates(self) -> dict[int, float]:
        """Rows -> times as fast as without a tree."""
        return {rows: self.plain / speed.seconds for rows, speed in self.speeds.items()}


def try_sizes(
    model: LanguageModel, heads: MedusaHeads, accuracy: Sequence[Sequence[float]], prompts: Sequence[Tensor],
    new_tokens: int, sizes: Sequence[int],
) -> TriedSizes:  # fmt: skip
    """The best tree of each size by `rank_accuracy`, on prompts (1, length) that are continued by ``new_tokens``."""
    greedy = [model.generate(p, max_new_tokens=new_tokens, eos_token_id=None, do_sample=False) for p in prompts]
    seconds = sum(model.measure(p.shape[1], new_tokens, 1, 1, ids=p).phases["decode"].low for p in prompts)
    trees = {rows: Tree.best(accuracy, rows - 1) for rows in sizes}
    speeds = {rows: tree_speed(model, heads, tree, prompts, greedy) for rows, tree in trees.items()}
    cost = step_seconds(model, sizes)
    chosen = best_size([(rows, tree.expected(accuracy)) for rows, tree in trees.items()], lambda rows: cost[rows])
    return TriedSizes(speeds, seconds / (len(prompts) * new_tokens), chosen)


@dataclass(frozen=True)
class OwnText:
    """What a model wrote itself: ids (n, length) and, of the last ones held out, how many."""

    ids: Tensor
    held: int

    @property
    def training(self) -> Tensor:
        """The texts to learn from."""
        return self.ids[: -self.held]

    @property
    def judging(self) -> Tensor:
        """The texts that are held out."""
        return self.ids[-self.held :]


def written(model: LanguageModel, tokens: Tensor, prompts: int, prompt: int, made: int) -> OwnText:
    """The model's greedy continuations of ``prompts`` places of a text (n,), an eighth of them held out."""
    starts = torch.linspace(0, len(tokens) - prompt, prompts).long()
    begun = tokens[starts[:, None] + torch.arange(prompt)]
    parts = [model.generate(part, max_new_tokens=made, eos_token_id=None, do_sample=False) for part in begun.split(16)]
    return OwnText(torch.cat(parts), max(1, prompts // 8))


def trained_heads(
    model: LanguageModel, text: OwnText, heads: int = 3, *, seconds: float, seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[MedusaHeads, list[list[float]]]:  # fmt: skip
    """New heads trained by `fit`, and how often their guesses of each rank are right on the texts held out."""
    torch.manual_seed(seed)
    made = MedusaHeads(int(model.config.hidden_size), heads)
    states = states_of(model, text.ids).float()
    fit(made, model, text.training, states[: -text.held], seconds=seconds, seed=seed, progress=progress)
    return made, rank_accuracy(made, model, text.judging, states[-text.held :])
