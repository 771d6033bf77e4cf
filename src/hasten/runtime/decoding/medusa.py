"""Parallel decoding with heads that guess further tokens, verified as a tree in one step (Medusa, arXiv 2401.10774).

Head k guesses the token k + 1 places ahead from the last state. The best guesses of all heads form a tree under the
model's own next token; one step computes every node, and the longest path that the model itself would have written
stays: greedy text does not change, whatever the heads say. Networks without a compiled step verify trees in plain
torch. Heads are trained by `hasten.runtime.decoding.medusa_training`.
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
from hasten.kernels.kv_cache import BLOCK, RECENT
from hasten.models.decoder_form import own_windows
from hasten.runtime.cache import KVCache
from hasten.runtime.generation_loop import numbers
from hasten.runtime.language_model import LanguageModel
from hasten.runtime.step import CompiledStep

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

    @classmethod
    def published(cls) -> Tree:
        """The 63 paths that Medusa's authors chose for Vicuna-7B: four heads, up to ten ranks (their release's
        ``mc_sim_7b_63``)."""
        children: dict[Path_, int] = {
            (): 10, (0,): 10, (1,): 7, (2,): 3, (3,): 2, **{(r,): 1 for r in range(4, 10)},
            (0, 0): 10, (0, 1): 3, (0, 2): 2, **{(0, r): 1 for r in range(3, 8)}, (1, 0): 2, (2, 0): 1, (0, 0, 0): 2,
        }  # fmt: skip
        return cls([(*path, rank) for path, count in children.items() for rank in range(count)])

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
    return head_logits(model, heads(hidden)).topk(ranks, -1).indices


def head_logits(model: LanguageModel, states: Tensor) -> Tensor:
    """The model's own head on states (..., width), in the format that its weight has."""
    head = model.decoder.head
    weight = getattr(head, "weight", None)
    if isinstance(weight, Tensor) and weight.is_floating_point():
        states = states.to(weight.dtype)
    return head(states).float()


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
                recent[:, :, to % cache.recent] = recent[:, :, of % cache.recent]
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


def why_not(model: LanguageModel) -> str | None:
    """Why ``model`` does not decode trees; None when it does."""
    policy = model.cache.policy
    if model.cache.window is not None or (policy is not None and not policy.drops):
        return "a new token reads a part of its cache only"
    if any(own_windows(model.config, len(model.layers))):
        return "its layers attend to a window of their own"
    return None


def _recent(tree: Tree) -> int:
    """Tokens of a quantized cache that are no codes, so that a step's rows stand beside a block that becomes codes."""
    return max(RECENT, BLOCK * (1 + -(-len(tree) // BLOCK)))


def _compiled(step: CompiledStep, cache: KVCache, tree: Tree, rows: list[int], hidden: Tensor) -> Tensor:
    """Logits of a step's first rows; their states go into ``hidden``. The cache's lengths stay."""
    base, count = cache.lengths[0], len(rows)
    # Tokens that have left the cache count for positions all the same.
    places, turns = list(range(base, base + count)), [base + cache.dropped[0] + d for d in tree.depths[:count]]
    return step(rows, [0] * count, places, turns=turns, masks=tree.masks[:count], hidden=hidden[:count])


def _plain(model: LanguageModel, cache: KVCache, tree: Tree, rows: list[int], hidden: Tensor) -> Tensor:
    """`_compiled` through the network's own forward: a mask of who sees whom, and positions by depth."""
    base, count = cache.lengths[0], len(rows)
    turns = [base + cache.dropped[0] + d for d in tree.depths[:count]]
    seen = torch.ones(count, base + count, dtype=torch.bool)
    seen[:, base:] = torch.tensor([[bool(mask >> i & 1) for i in range(count)] for mask in tree.masks[:count]])
    mask = seen[None, None].to(model.device)
    if model.config._attn_implementation == "eager":  # it adds the mask to the scores
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)
    read: list[Tensor] = []
    hook = model.decoder.head.register_forward_pre_hook(lambda head, given: read.append(given[0]))
    try:
        out = model.network(
            torch.tensor([rows], device=model.device),
            attention_mask=mask,
            position_ids=torch.tensor([turns], device=model.device),
            past_key_values=cache,
        )
    finally:
        hook.remove()
    cache.retract(count)
    hidden[:count] = read[0][0].float()
    return out.logits[0].float().cpu()


@torch.inference_mode()
def decode(
    model: LanguageModel, heads: MedusaHeads, tree: Tree, ids: Tensor, new_tokens: int, *, temperature: float = 0.0
) -> Decoded:
    """Writes ``new_tokens`` behind one prompt, several a step.

    Args:
        model: one without a window; a policy may drop a part of the prompt, as SnapKV does. Steps run compiled where
            they can (`LanguageModel.why_not_compiled`).
        heads: trained for it, or any: with temperature 0 the text is the model's greedy text all the same.
        tree: what a step tries.
        ids: (1, prompt) tokens.
        new_tokens: at least so many are made; the rest is cut off.
        temperature: above 0, guesses are kept by typical acceptance at this temperature.

    Raises:
        HastenError: the model does not read all of its cache, a batch is given, or the output is no number.
    """
    if ids.shape[0] != 1:
        raise HastenError(f"Medusa decodes one sequence, not {ids.shape[0]}: give one after the other")
    if reason := why_not(model):
        raise HastenError(f"Medusa needs a model that reads all of its cache: {reason}")
    length = ids.shape[1]
    model.check_fits(length + new_tokens + tree.depth)
    cache, step = model.session(1, length + new_tokens + len(tree) + 1, _recent(tree))
    hidden = torch.empty(len(tree), int(model.config.hidden_size))
    ranks = 1 + max((max(p) for p in tree.paths), default=0)
    token = int(numbers(model.prefill(ids, cache)).argmax())
    made, steps, drafts = [token], 0, None
    begun = time.perf_counter()
    while len(made) < new_tokens:
        base, rows = cache.lengths[0], [token]
        if drafts is not None:
            rows += [int(drafts[len(p) - 1, p[-1]]) for p in tree.paths[: _rows(tree, cache, base) - 1]]
        if step is not None:
            logits = numbers(_compiled(step, cache, tree, rows, hidden))
        else:
            logits = numbers(_plain(model, cache, tree, rows, hidden))
        if temperature > 0:
            shares = torch.softmax(logits / temperature, -1)
            path = accepted(
                tree, rows, functools.partial(_typical_at, shares), functools.partial(_likelihood_at, shares)
            )
        else:
            path = accepted(tree, rows, functools.partial(_best_at, logits.argmax(-1).tolist()))
        _gather(cache, base, path)
        last = path[-1]
        if temperature > 0:
            token = int(torch.multinomial(torch.softmax(logits[last] / temperature, -1), 1))
        else:
            token = int(logits[last].argmax())
        made += [rows[node] for node in path[1:]] + [token]
        cache.advance([len(path)])
        steps += 1
        drafts = guesses(model, heads, hidden[last].to(model.device), ranks)
    seconds = time.perf_counter() - begun
    text = torch.cat((ids, torch.tensor([made[:new_tokens]])), 1)
    return Decoded(text, steps, len(made) - 1, seconds)


def chain_tree(depth: int) -> Tree:
    """The tree that is a single chain: every head's best guess."""
    return Tree([tuple(itertools.repeat(0, d)) for d in range(1, depth + 1)])
