"""Medusa's heads and their model trained together (Medusa-2, arXiv 2401.10774, sections 2.2.2 and 2.3.2).

The heads are trained alone first, on the model as it is, since their gradients would hurt it while they know nothing.
Then both move: the model by its own loss and by a share of the heads', each at a rate of its own. With
self-distillation the model's own loss is the divergence from what it said before, so that text which it wrote itself is
enough to learn from.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.nn.packed import PackedEmbedding, PackedLinear
from hasten.runtime.decoding.medusa import MedusaHeads, Tree, head_logits
from hasten.runtime.decoding.medusa_training import rank_accuracy, states_of, tree_speed, written
from hasten.runtime.language_model import LanguageModel
from hasten.train.loop import train
from hasten.train.schedules import WarmupCosine


@dataclass(frozen=True)
class JointRecipe:
    """How heads and model are trained together.

    Args:
        alone: share of the budget in which the heads are trained alone.
        weight: of the heads' loss beside the model's own.
        discount: head k counts ``discount``^k.
        rate: of the model, AdamW's.
        head_rate: of the heads beside it.
        alone_rate: of the heads alone.
        distill: whether the model is held to what it said before, or to the text.
        warmup: share of the joint part in which rates rise.

    Raises:
        HastenError: a share that is not within 0 to 1, or a negative weight or rate.
    """

    alone: float = 0.4
    weight: float = 0.2
    discount: float = 0.8
    rate: float = 1e-4
    head_rate: float = 4e-4
    alone_rate: float = 1e-3
    distill: bool = True
    warmup: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.alone <= 1 or min(self.weight, self.discount, self.rate, self.head_rate, self.alone_rate) < 0:
            raise HastenError("a joint training has a share alone in 0 to 1, and no negative weight or rate")


@dataclass
class Jointly:
    """What a joint training did: the loss of each step of the heads alone, then of each joint step the model's own loss
    (nats a token, or the divergence) and the heads'."""

    alone: list[float] = field(default_factory=list)
    model: list[float] = field(default_factory=list)
    heads: list[float] = field(default_factory=list)


def heads_loss(logits: Tensor, ids: Tensor, discount: float) -> Tensor:
    """Sum over heads of ``discount``^k times the cross-entropy of the token that head k guesses.

    Args:
        logits: (batch, length, heads, vocabulary).
        ids: (batch, length).
        discount: of each further head.
    """
    total = logits.new_zeros(())
    for k in range(logits.shape[2]):
        guessed, right = logits[:, : ids.shape[1] - k - 2, k], ids[:, k + 2 :]
        total = total + discount**k * F.cross_entropy(guessed.flatten(0, 1), right.flatten())
    return total


def why_not(model: LanguageModel) -> str | None:
    """Why the weights of ``model`` cannot be trained; None when they can."""
    if any(isinstance(m, PackedLinear | PackedEmbedding) for m in model.network.modules()):
        return "its weights are packed"
    if any(not p.is_floating_point() for p in model.network.parameters()):
        return "its weights are whole numbers"
    return None


@contextmanager
def _trainable(network: nn.Module) -> Iterator[None]:
    known = [(p, p.requires_grad) for p in network.parameters()]
    network.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, before in known:
            parameter.requires_grad_(before)
            parameter.grad = None


def fit_jointly(
    heads: MedusaHeads,
    model: LanguageModel,
    ids: Tensor,
    recipe: JointRecipe | None = None,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    batch: int = 8,
    length: int = 64,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> Jointly:
    """Trains heads and the model's own weights, both in place. What the model writes changes with them, and decoding
    stays exact for what it then writes.

    Args:
        heads: new ones, or trained ones with ``alone`` 0.
        model: with plain weights, fp32 or bf16.
        ids: (n, longer than the heads reach) texts: the model's own (`own_text`), or others.
        recipe: the default one when None.
        seconds, steps: the budget of both parts: one of them, or both.
        batch, length: texts a step, and tokens of each.
        seed: of the drawing.
        progress: told the share done.

    Raises:
        HastenError: weights that cannot be trained, texts that are too short, no budget, or a loss that became infinite
            or NaN.
    """
    recipe = recipe or JointRecipe()
    if reason := why_not(model):
        raise HastenError(f"Medusa-2 trains the model's own weights: {reason}; load it unpacked")
    length = min(length, ids.shape[1])
    if length < len(heads.layers) + 2:
        raise HastenError(f"{len(heads.layers)} heads need texts of {len(heads.layers) + 2} tokens, not {length}")
    network, head = model.network, model.decoder.head
    generator = torch.Generator().manual_seed(seed)
    found = Jointly()

    def drawn() -> Tensor:
        rows = torch.randint(len(ids), (batch, 1), generator=generator)
        starts = torch.randint(ids.shape[1] - length + 1, (batch, 1), generator=generator)
        return ids[rows, starts + torch.arange(length)].to(model.device)

    def read(text: Tensor) -> Tensor:
        states: Tensor = network.model(text, use_cache=False).last_hidden_state
        return states

    def guessed(states: Tensor) -> Tensor:
        return head_logits(model, heads(states.float()))

    def alone(step: int) -> Tensor:
        text = drawn()
        with torch.no_grad():
            states = read(text)
        return heads_loss(guessed(states), text, recipe.discount)

    def share(part: float) -> dict[str, float | int | None]:
        return {
            "seconds": None if seconds is None else seconds * part,
            "steps": None if steps is None else round(steps * part),
        }

    if recipe.alone > 0:
        first = train(
            heads, alone, optimizer=torch.optim.AdamW(heads.parameters(), recipe.alone_rate), clip=1.0,
            schedule=WarmupCosine(0.05, 0.1), clock=time.perf_counter, **share(recipe.alone),  # type: ignore[arg-type]
            progress=lambda moment, value: progress(moment.share * recipe.alone),
        )  # fmt: skip
        found.alone = first.finished("training Medusa's heads").losses
    if recipe.alone == 1:
        return found
    teacher = copy.deepcopy(network).requires_grad_(False) if recipe.distill else None

    def joint(step: int) -> Tensor:
        text = drawn()
        states = read(text)
        logits = head(states).float()
        if teacher is not None:
            with torch.no_grad():
                before = F.log_softmax(teacher(text, use_cache=False).logits.float(), -1)
            own = F.kl_div(F.log_softmax(logits, -1), before, reduction="none", log_target=True).sum(-1).mean()
        else:
            own = F.cross_entropy(logits[:, :-1].flatten(0, 1), text[:, 1:].flatten())
        guesses = heads_loss(guessed(states), text, recipe.discount)
        found.model.append(float(own.detach()))
        found.heads.append(float(guesses.detach()))
        return own + recipe.weight * guesses

    both = nn.ModuleDict({"network": network, "heads": heads})
    with _trainable(network):
        groups = [
            {"params": list(network.parameters()), "lr": recipe.rate},
            {"params": list(heads.parameters()), "lr": recipe.head_rate},
        ]
        second = train(
            both, joint, optimizer=torch.optim.AdamW(groups, weight_decay=0.0), clip=1.0,
            schedule=WarmupCosine(recipe.warmup, 0.1), clock=time.perf_counter,
            **share(1 - recipe.alone),  # type: ignore[arg-type]
            progress=lambda moment, value: progress(recipe.alone + moment.share * (1 - recipe.alone)),
        )  # fmt: skip
    second.finished("training the model with Medusa's heads")
    return found


@dataclass(frozen=True)
class RecipeResult:
    """What a recipe gave.

    Args:
        tokens_a_step: made in the mean by the best tree of so many rows on prompts that were not trained on.
        nats, nats_before: of a token of the held-out text, by the model after and before.
        exact: whether decoding gave the trained model's own greedy text.
    """

    tokens_a_step: float
    nats: float
    nats_before: float
    exact: bool


def compare(
    model: LanguageModel, text: Tensor, recipes: Mapping[str, JointRecipe], *, steps: int, heads: int = 3,
    rows: int = 16, prompts: int = 32, made: int = 64, seed: int = 0,
) -> dict[str, RecipeResult]:  # fmt: skip
    """Trains heads by each recipe on what the model writes itself, from the same start and in as many steps.

    Args:
        model: stays as it is.
        text: (n,) tokens: the first 8 in 10 give prompts to train behind, the rest those to judge by.
        recipes: by name.
        steps: of both parts of a training.
        heads, rows: of Medusa, and of a step.
        prompts, made: own texts, each behind 16 tokens and of so many new ones.
        seed: of everything random.
    """
    cut, length = len(text) * 8 // 10, 16
    ids = written(model, text[:cut], prompts, length, made).ids
    held = text[cut : cut + (len(text) - cut) // 64 * 64].view(-1, 64)[:16]
    tests, before = [row[None, :length] for row in held[:4]], nats_of(model, held)
    found = {}
    for name, recipe in recipes.items():
        other = LanguageModel(copy.deepcopy(model.network), model.tokenizer, cache=model.cache)
        torch.manual_seed(seed)
        made_heads = MedusaHeads(int(model.config.hidden_size), heads)
        fit_jointly(made_heads, other, ids, recipe, steps=steps, seed=seed)
        tree = Tree.best(rank_accuracy(made_heads, other, ids, states_of(other, ids).float()), rows - 1)
        greedy = [other.generate(t, max_new_tokens=made, eos_token_id=None, do_sample=False) for t in tests]
        speed = tree_speed(other, made_heads, tree, tests, greedy)
        found[name] = RecipeResult(speed.tokens_a_step, nats_of(other, held), before, speed.exact)
    return found


@torch.inference_mode()
def nats_of(model: LanguageModel, text: Tensor) -> float:
    """Mean loss of the next token of texts (n, length)."""
    logits = model.network(text[:, :-1], use_cache=False).logits.float()
    return float(F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten()))
