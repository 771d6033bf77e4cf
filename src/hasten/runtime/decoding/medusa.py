"""Parallel decoding with heads that guess further tokens, verified as a tree in one step (Medusa, arXiv 2401.10774).

Head k guesses the token k + 1 places ahead from the last state. The best guesses of all heads form a tree under the
model's own next token; one step computes every node, and the longest path that the model itself would have written
stays: greedy text does not change, whatever the heads say.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.files import checked_file, write_aside
from hasten.kernels.compiled import MOST_TREE_ROWS
from hasten.kernels.kv_cache import BLOCK, MOST_NEW, RECENT
from hasten.runtime.cache import KVCache
from hasten.runtime.generation import numbers
from hasten.runtime.language_model import LanguageModel
from hasten.train.loop import train
from hasten.train.schedules import Linear

Path_ = tuple[int, ...]


class MedusaHeads(nn.Module):
    """Heads ``lm_head(h + silu(A_k h + b_k))``: at their start every one says what the model's own head says.

    The output matrix is the model's, so that a head takes no more than a square of its width.

    Args:
        width: of the model.
        heads: how many.
    """

    def __init__(self, width: int, heads: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(heads))
        for layer in self.layers:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, h: Tensor) -> Tensor:
        """States (..., width) to those that the model's head reads, (..., heads, width)."""
        return torch.stack([h + nn.functional.silu(layer(h)) for layer in self.layers], -2)

    def save(self, path: str | Path) -> None:
        """Writes the heads as safetensors."""
        write_aside(Path(path), save({n: t.detach().contiguous() for n, t in self.state_dict().items()}), "the heads")

    @classmethod
    def load(cls, path: str | Path) -> MedusaHeads:
        """Heads that `save` wrote.

        Raises:
            HastenError: the file is missing or holds something else.
        """
        try:
            tensors = load_file(checked_file(path, "the heads", 0))
            heads = cls(tensors["layers.0.weight"].shape[0], len(tensors) // 2)
            heads.load_state_dict(tensors)
        except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
            raise HastenError(f"{path} does not hold Medusa heads ({' '.join(str(error).split())[:100]})") from None
        return heads


class Tree:
    """Nodes to try: each is the ranks of the guesses on its way, e.g. (0, 1) for head 1's second after head 0's first.

    Args:
        paths: of the nodes; every node's parent must be among them.

    Raises:
        HastenError: a node without its parent, or more than a step takes.

    Attributes:
        paths: by length, then ranks; node i + 1 of the step (0 is the model's own token).
        parents: step node of each path's parent.
        masks: for each step node the bits of the nodes it sees: its ancestors, itself, the root.
    """

    def __init__(self, paths: Sequence[Path_]) -> None:
        self.paths = sorted(set(paths), key=lambda p: (len(p), p))
        index = {(): 0} | {p: i + 1 for i, p in enumerate(self.paths)}
        if any(p[:-1] not in index for p in self.paths):
            raise HastenError("a tree has every node's parent")
        if len(index) > MOST_TREE_ROWS:
            raise HastenError(f"a tree has at most {MOST_TREE_ROWS - 1} guesses: a step takes {MOST_TREE_ROWS} rows")
        self.parents = [index[p[:-1]] for p in self.paths]
        self.depths = [0, *map(len, self.paths)]
        self.masks = [1]
        for i, parent in enumerate(self.parents):
            self.masks.append(self.masks[parent] | 1 << (i + 1))
        self.children: list[list[int]] = [[] for _ in index]
        for i, parent in enumerate(self.parents):
            self.children[parent].append(i + 1)

    def __len__(self) -> int:
        """Rows of a step: the guesses and the root."""
        return len(self.paths) + 1

    @property
    def depth(self) -> int:
        return max(self.depths)

    @classmethod
    def best(cls, accuracy: Sequence[Sequence[float]], nodes: int) -> Tree:
        """The tree of ``nodes`` guesses with the most expected accepted tokens.

        Args:
            accuracy: for each head how often its guess of rank 0, 1, ... is right.
            nodes: guesses; the one with the largest product of accuracies is added each time.
        """
        chosen: list[Path_] = []
        frontier: dict[Path_, float] = {(0,): accuracy[0][0]}
        while len(chosen) < nodes and frontier:
            path = max(frontier, key=lambda p: frontier[p])
            value = frontier.pop(path)
            chosen.append(path)
            depth, rank = len(path), path[-1]
            if rank + 1 < len(accuracy[depth - 1]) and accuracy[depth - 1][rank] > 0:
                frontier[(*path[:-1], rank + 1)] = value / accuracy[depth - 1][rank] * accuracy[depth - 1][rank + 1]
            if depth < len(accuracy):
                frontier[(*path, 0)] = value * accuracy[depth][0]
        return cls(chosen)

    def expected(self, accuracy: Sequence[Sequence[float]]) -> float:
        """Tokens a step is expected to make, its own one included."""
        return 1 + sum(math.prod(accuracy[d][r] for d, r in enumerate(path)) for path in self.paths)


@dataclass(frozen=True)
class Decoded:
    """What was made: ids (prompt and new), steps after the prompt, seconds of those."""

    ids: Tensor
    steps: int
    made: int
    seconds: float


def guesses(model: LanguageModel, heads: MedusaHeads, hidden: Tensor, ranks: int) -> Tensor:
    """The best ``ranks`` tokens of each head for one state (width): (heads, ranks)."""
    return model.decoder.head(heads(hidden)).topk(ranks, -1).indices


def typical(probabilities: Tensor, token: int, epsilon: float = 0.09, alpha: float = 0.3) -> bool:
    """Whether typical acceptance keeps a token: likely enough for how sure the model is (section 2.3.1)."""
    positive = probabilities[probabilities > 0]
    entropy = float(-(positive * positive.log()).sum())
    return float(probabilities[token]) > min(epsilon, alpha * math.exp(-entropy))


def _typical_at(shares: Tensor, node: int, token: int) -> bool:
    return typical(shares[node], token)


def _likelihood_at(shares: Tensor, node: int, token: int) -> float:
    return float(shares[node, token].log())


def _best_at(best: Sequence[int], node: int, token: int) -> bool:
    return best[node] == token


def accepted(
    tree: Tree,
    tokens: Sequence[int],
    keeps: Callable[[int, int], bool],
    likelihood: Callable[[int, int], float] = lambda node, token: 0.0,
) -> list[int]:
    """The longest path of step nodes, root included, each kept by the node before it.

    Args:
        tree: of the step.
        tokens: of its nodes, or of the first of them.
        keeps: (node, token): whether the model, at a node, may go on with a token.
        likelihood: (node, token): log-likelihood of going on so; of equally long paths the one with the largest sum
            is taken, and the first of equals.
    """
    best, most = [0], 0.0
    stack = [([0], 0.0)]
    while stack:
        path, value = stack.pop()
        if (len(path), value) > (len(best), most):
            best, most = path, value
        children = [c for c in tree.children[path[-1]] if c < len(tokens)]
        going_on = [c for c in reversed(children) if keeps(path[-1], tokens[c])]
        stack += [([*path, c], value + likelihood(path[-1], tokens[c])) for c in going_on]
    return best


def _gather(cache: KVCache, base: int, nodes: Sequence[int]) -> None:
    """Moves the kept nodes' keys and values to where a chain would have put them."""
    moves = [(base + i, base + node) for i, node in enumerate(nodes) if node != i]
    if not moves:
        return
    to, of = torch.tensor(moves).t()
    for layer in cache.layers:
        for which in ("keys", "values"):
            if cache.spec.quantized:
                recent = layer.tensors[f"recent_{which}"]
                recent[:, :, to % RECENT] = recent[:, :, of % RECENT]
            else:
                stored = layer.tensors[which]
                stored[:, :, to] = stored[:, :, of]


def _rows(tree: Tree, cache: KVCache, base: int) -> int:
    """How many of the tree's rows a step behind ``base`` tokens takes: with a rounded cache none that would stand in
    the next block, as it would read this one as it was before rounding, and token by token it is read as codes."""
    if not cache.spec.quantized:
        return len(tree)
    # Nodes stand by their depth.
    return sum(depth < BLOCK - base % BLOCK for depth in tree.depths)


@torch.inference_mode()
def decode(
    model: LanguageModel, heads: MedusaHeads, tree: Tree, ids: Tensor, new_tokens: int, *, temperature: float = 0.0
) -> Decoded:
    """Writes ``new_tokens`` behind one prompt, several a step.

    Args:
        model: one that runs compiled, without a window or a policy.
        heads: trained for it, or any: with temperature 0 the text is the model's greedy text all the same.
        tree: what a step tries.
        ids: (1, prompt) tokens.
        new_tokens: at least so many are made; the rest is cut off.
        temperature: above 0, guesses are kept by typical acceptance at this temperature.

    Raises:
        HastenError: the model does not run compiled, a batch is given, or the output is no number.
    """
    if reason := model.why_not_compiled:
        raise HastenError(f"Medusa needs the compiled step: {reason}")
    if ids.shape[0] != 1 or model.cache.window is not None or model.cache.policy is not None:
        raise HastenError("Medusa decodes one sequence with a cache that keeps everything")
    if len(tree) > MOST_NEW:
        raise HastenError(f"with this cache a step takes {MOST_NEW} rows: a smaller tree, please")
    length = ids.shape[1]
    model.check_fits(length + new_tokens + tree.depth)
    cache, step = model.session(1, length + new_tokens + len(tree) + 1)
    assert step is not None
    ranks = 1 + max((max(p) for p in tree.paths), default=0)
    hidden = torch.empty(len(tree), int(model.config.hidden_size))
    token = int(numbers(model.prefill(ids, cache)).argmax())
    made, steps, drafts = [token], 0, None
    begun = time.perf_counter()
    while len(made) < new_tokens:
        base = cache.lengths[0]
        if drafts is None:
            rows = [token]
            logits = numbers(step(rows, [0], [base], hidden=hidden[:1]))
            path = [0]
        else:
            count = _rows(tree, cache, base)
            rows = [token, *(int(drafts[len(p) - 1, p[-1]]) for p in tree.paths[: count - 1])]
            places = list(range(base, base + count))
            turns = [base + d for d in tree.depths[:count]]
            seen, state = tree.masks[:count], hidden[:count]
            logits = numbers(step(rows, [0] * count, places, turns=turns, masks=seen, hidden=state))
            if temperature > 0:
                shares = torch.softmax(logits / temperature, -1)
                path = accepted(
                    tree, rows, functools.partial(_typical_at, shares), functools.partial(_likelihood_at, shares)
                )
            else:
                best = logits.argmax(-1).tolist()
                path = accepted(tree, rows, functools.partial(_best_at, best))
            _gather(cache, base, path)
        last = path[-1]
        if temperature > 0:
            token = int(torch.multinomial(torch.softmax(logits[last] / temperature, -1), 1))
        else:
            token = int(logits[last].argmax())
        made += [rows[node] for node in path[1:]] + [token]
        cache.advance([len(path)])
        steps += 1
        drafts = guesses(model, heads, hidden[last], ranks)
    seconds = time.perf_counter() - begun
    text = torch.cat((ids, torch.tensor([made[:new_tokens]])), 1)
    return Decoded(text, steps, len(made) - 1, seconds)


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
    ids = model.generate(prompts, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
    states = [model.network.model(part, use_cache=False).last_hidden_state for part in ids.split(4)]
    return ids, torch.cat(states)


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
        best = model.decoder.head(heads(state[:reach])).topk(ranks, -1).indices
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


def chain_tree(depth: int) -> Tree:
    """The tree that is a single chain: every head's best guess."""
    return Tree([tuple(itertools.repeat(0, d)) for d in range(1, depth + 1)])
