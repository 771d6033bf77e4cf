"""Mixtures of experts, each part written once: routers, balance, shared and zero experts, capacity, products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.kernels.gate import wide
from hasten.nn.block import Block, Factory

Score = Literal["softmax", "sigmoid", "softmax of chosen"]
Gate = Literal["silu", "relu", "gelu"]
_GATES: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "relu": torch.relu, "gelu": F.gelu}
# Below any sum of weights that is not zero.
_TINY = 1e-20


class Routing(NamedTuple):
    """What a router did in one call: returned where it is asked for, so that no layer holds on to a graph.

    Args:
        logits: (tokens or ..., experts), with their gradients: what losses are made of.
        loads: tokens of each expert (experts) int64; None where a layer does not count them.
        open_share: of the gates of used experts the share that is positive; None where a layer has no such gates.
    """

    logits: Tensor
    loads: Tensor | None = None
    open_share: Tensor | None = None


def choose(
    logits: Tensor,
    count: int,
    *,
    score: Score = "softmax",
    bias: Tensor | None = None,
    groups: int = 1,
    kept_groups: int = 1,
    normalized: bool = True,
    factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The ``count`` best experts of each token and their weights.

    Args:
        logits: (tokens, experts).
        count: experts a token.
        score: how a logit becomes a weight: ``softmax`` over all experts (Mixtral, Qwen), ``sigmoid`` (DeepSeek-V3), or
            ``softmax of chosen`` (gpt-oss).
        bias: (experts), added to the scores for choosing alone, so that weights stay the router's own (arXiv
            2408.15664).
        groups, kept_groups: experts stand in groups of equal size, and a token chooses within its best groups alone; a
            group counts by its two best scores (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
        normalized: the weights of a token sum to one, before ``factor``.
        factor: multiplies the weights.

    Returns:
        weights and numbers of experts, (tokens, count) both.
    """
    if score == "softmax":
        scores = logits.softmax(-1)
    elif score == "sigmoid":
        scores = torch.sigmoid(logits)
    else:
        scores = logits
    if bias is None and groups == 1 and score != "softmax":
        # Logits order as their scores do, and stay apart where those have become 1.
        chosen = logits.topk(count, -1).indices
    else:
        ranking = scores if bias is None else scores + bias
        if groups > 1:
            members = ranking.unflatten(-1, (groups, -1))
            best = members.topk(min(2, members.shape[-1]), -1).values.sum(-1)
            kept = torch.zeros_like(best, dtype=torch.bool).scatter(-1, best.topk(kept_groups, -1).indices, True)
            ranking = members.masked_fill(~kept[..., None], -torch.inf).flatten(-2)
        chosen = ranking.topk(count, -1).indices
    if score == "softmax of chosen":
        weights = logits.gather(-1, chosen).softmax(-1)
    elif score == "sigmoid":
        weights = torch.sigmoid(logits.gather(-1, chosen))
    else:
        weights = scores.gather(-1, chosen)
    if normalized and score != "softmax of chosen":
        weights = weights / (weights.sum(-1, keepdim=True) + _TINY)
    return (weights if factor == 1.0 else weights * factor), chosen


def load(chosen: Tensor, experts: int) -> Tensor:
    """How many tokens each expert gets, (experts) int64, of choices (tokens, count)."""
    # Of a known size whatever was chosen, unlike bincount's.
    flat = chosen.flatten()
    return flat.new_zeros(experts).scatter_add_(0, flat, torch.ones_like(flat))


def capacity(tokens: int, count: int, experts: int, factor: float) -> int:
    """Tokens that an expert takes at most: ``factor`` times an equal share, rounded up (arXiv 2101.03961, section 2.2).

    Raises:
        HastenError: a factor that is not positive.
    """
    if factor <= 0:
        raise HastenError("an expert's capacity is a positive multiple of its equal share")
    return math.ceil(factor * tokens * count / experts)


def within_capacity(chosen: Tensor, experts: int, most: int) -> Tensor:
    """Which choices an expert has room for, bool (tokens, count): first choices first, and of those earlier tokens."""
    queue = F.one_hot(chosen.t().flatten(), experts).cumsum(0)
    place = queue.gather(1, chosen.t().flatten()[:, None])[:, 0]
    return (place <= most).view(chosen.shape[1], -1).t()


def by_expert(
    x: Tensor,
    weights: Tensor,
    chosen: Tensor,
    experts: int,
    run: Callable[[int, Tensor], Tensor],
    taken: Tensor | None = None,
) -> Tensor:
    """Sum over each token's experts of weight times output: tokens are gathered by expert, one product for each.

    Args:
        x: (tokens, width).
        weights, chosen: (tokens, count), see `choose`; numbers from ``experts`` on add nothing here.
        experts: how many there are.
        run: expert number and its tokens (n, width) to their outputs (n, width).
        taken: (tokens, count) bool, see `within_capacity`; None for all.
    """
    if not x.shape[0]:
        return run(0, x)  # nothing, of this shape and with gradients
    out = torch.zeros_like(x)
    for number in range(experts):
        here = chosen == number
        rows, slot = (here if taken is None else here & taken).nonzero(as_tuple=True)
        # Traced, an expert runs for however many tokens there are, also none.
        if torch.compiler.is_compiling() or len(rows):
            out = out.index_add(0, rows, (weights[rows, slot, None] * run(number, x[rows])).to(out.dtype))
    return out


class BiasController:
    """Balances experts without a loss: a bias rises where an expert gets too little, and falls where too much.

    Args:
        bias: (experts) fp32, changed in place; see `choose`.
        rate: of a step.
        rule: ``sign``, a step of ``rate`` up or down (arXiv 2408.15664); ``proportional``, ``rate`` times what is
            missing of the share of all choices (LongCat-Flash, arXiv 2509.01322, section 2.1).
        zero: experts at the end that compute nothing; their bias stays.
        used: ``proportional``: the share of all choices that is wanted for experts that compute.
    """

    def __init__(
        self,
        bias: Tensor,
        *,
        rate: float = 1e-3,
        rule: Literal["sign", "proportional"] = "sign",
        zero: int = 0,
        used: float = 1.0,
    ) -> None:
        self.bias, self.rate, self.rule, self.zero, self.used = bias, rate, rule, zero, used

    @torch.no_grad()
    def step(self, loads: Tensor) -> None:
        """Takes a batch's `load` (experts), summed over all ranks."""
        real = len(self.bias) - self.zero
        shares = loads.float() / loads.sum().clamp(min=1)
        if self.rule == "sign":
            wanted = shares[:real].mean()
            self.bias[:real] += self.rate * torch.sign(wanted - shares[:real])
        else:
            self.bias[:real] += self.rate * (self.used / real - shares[:real])


class Router(Block):
    """Logits of experts, and who is chosen; settings as for `choose`. It works in fp32.

    Args:
        width: of its input.
        experts: that are chosen from, zero experts among them.
        count: experts a token.
        balanced: there is a bias for choosing, a buffer that a `BiasController` moves.
        device, dtype: as torch's modules take them; the bias stays fp32.

    Shape:
        x (tokens, width) to logits (tokens, experts), weights and numbers (tokens, count).
    """

    def __init__(
        self,
        width: int,
        experts: int,
        count: int,
        *,
        score: Score = "softmax",
        balanced: bool = False,
        groups: int = 1,
        kept_groups: int = 1,
        normalized: bool = True,
        factor: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 < count <= experts:
            raise HastenError(f"a token uses 1 to {experts} experts, not {count}")
        if experts % groups or not 0 < kept_groups <= groups or count > experts // groups * kept_groups:
            raise HastenError(f"{count} experts of {experts} cannot come from {kept_groups} of {groups} equal groups")
        self.experts, self.count, self.score = experts, count, score
        self.groups, self.kept_groups, self.normalized, self.factor = groups, kept_groups, normalized, factor
        self.weight = nn.Parameter(torch.empty(experts, width, device=device, dtype=dtype))
        self.bias: Tensor | None
        bias = torch.empty(experts, device=device, dtype=torch.float32) if balanced else None
        self.register_buffer("bias", bias)
        self._start()

    def _start(self) -> None:
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kind = wide(x.dtype)
        logits = F.linear(x.to(kind), self.weight.to(kind))
        weights, chosen = choose(
            logits, self.count, score=self.score, bias=self.bias, groups=self.groups, kept_groups=self.kept_groups,
            normalized=self.normalized, factor=self.factor,
        )  # fmt: skip
        return logits, weights, chosen

    if TYPE_CHECKING:
        __call__ = forward


class GatedExperts(Block):
    """Experts ``down(act(gate x) * up x)`` whose weights lie one behind the other, as transformers keeps them.

    Args:
        width, inner: of one.
        experts: how many.
        gate: activation.
        device, dtype: as torch's modules take them.

    Shape:
        x (tokens, width), weights and numbers of experts (tokens, count), see `by_expert`, to (tokens, width); without
        weights what the first expert makes of every token.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        experts: int,
        gate: Gate = "silu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.experts, self.gate = experts, gate
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, width, device=device, dtype=dtype))
        self.down_proj = nn.Parameter(torch.empty(experts, width, inner, device=device, dtype=dtype))
        self._start()

    def _start(self) -> None:
        for weight in (self.gate_up_proj, self.down_proj):
            nn.init.normal_(weight, std=weight.shape[2] ** -0.5)

    def forward(
        self, x: Tensor, weights: Tensor | None = None, chosen: Tensor | None = None, taken: Tensor | None = None
    ) -> Tensor:
        if weights is None or chosen is None:
            return self.run(0, x)
        return by_expert(x, weights, chosen, self.experts, self.run, taken)

    if TYPE_CHECKING:
        __call__ = forward

    def run(self, number: int, x: Tensor) -> Tensor:
        """What expert ``number`` makes of its tokens."""
        gate, up = F.linear(x, self.gate_up_proj[number]).chunk(2, -1)
        return F.linear(_GATES[self.gate](gate) * up, self.down_proj[number])


class MixtureOfExperts(Block):
    """A feed-forward layer of experts (arXiv 1701.06538), with what later ones have added.

    Args:
        width, inner: of an expert.
        experts, count: how many compute, and how many a token uses.
        router: of ``experts + zero`` and ``count``; a softmax `Router` when None.
        shared: experts that every token uses, as one of so many times the inner width (DeepSeek-MoE, arXiv
            2401.06066).
        zero: experts that return their input, for tokens that need less work (LongCat-Flash, arXiv 2509.01322).
        capacity_factor: an expert takes no more tokens than this times an equal share; the rest goes past it. None for
            no limit.
        gate: activation of all.
        device, dtype: as torch's modules take them; of a given router they are its own.

    Shape:
        x (..., width) to the same; with ``return_routing`` the router's `Routing` too: logits (tokens, experts + zero)
        for a loss, loads (experts + zero) for a `BiasController`.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        experts: int,
        count: int,
        *,
        router: Router | None = None,
        shared: int = 0,
        zero: int = 0,
        capacity_factor: float | None = None,
        gate: Gate = "silu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: Factory = {"device": device, "dtype": dtype}
        router = router or Router(width, experts + zero, count, **made)
        if router.experts != experts + zero or router.count != count:
            raise HastenError(f"the router chooses {router.count} of {router.experts}, not {count} of {experts + zero}")
        self.router, self.zero, self.capacity_factor = router, zero, capacity_factor
        self.experts = GatedExperts(width, inner, experts, gate, **made)
        self.shared_experts = GatedExperts(width, inner * shared, 1, gate, **made) if shared else None

    @overload
    def forward(self, x: Tensor) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, *, return_routing: Literal[True]) -> tuple[Tensor, Routing]: ...
    def forward(self, x: Tensor, *, return_routing: bool = False) -> Tensor | tuple[Tensor, Routing]:
        flat, count = x.reshape(-1, x.shape[-1]), self.experts.experts
        logits, weights, chosen = self.router(flat)
        taken = None
        if self.capacity_factor is not None:
            most = capacity(flat.shape[0], self.router.count, self.router.experts, self.capacity_factor)
            taken = within_capacity(chosen, self.router.experts, most)
        out = self.experts(flat, weights, chosen, taken)
        if self.zero:
            # Room is never short for those that compute nothing.
            idle = (weights * (chosen >= count)).sum(-1, keepdim=True)
            out = out + (idle * flat).to(out.dtype)
        if self.shared_experts is not None:
            out = out + self.shared_experts(flat)
        out = out.reshape(x.shape)
        return (out, Routing(logits, load(chosen, self.router.experts))) if return_routing else out

    if TYPE_CHECKING:
        __call__ = forward

    def extra_repr(self) -> str:
        return f"count={self.router.count}, zero={self.zero}"


def balance_loss(logits: Tensor, count: int, group: int = 1) -> Tensor:
    """``E * sum over experts of f_e P_e``: 1 where all experts get alike.

    f is the share of routed tokens, over all ranks of a group of ``group`` data-parallel ranks, P the mean router
    probability of this rank. Groups that see different texts may specialize (arXiv 2507.20984, section 2).

    Args:
        logits: (tokens, experts) of this rank.
        count: experts a token.
        group: ranks that share f; 1 without a process group. It must divide their number.

    Raises:
        ValueError: a group that does not divide the number of ranks.
    """
    experts = logits.shape[-1]
    routed = load(logits.topk(count, -1).indices, experts).float()
    if group > 1:
        world = distributed.get_world_size()
        if world % group:
            raise ValueError(f"groups of {group} do not divide {world} ranks")
        everyone = [torch.zeros_like(routed) for _ in range(world)]
        distributed.all_gather(everyone, routed)
        first = distributed.get_rank() // group * group
        routed = torch.stack(everyone[first : first + group]).sum(0)
    share = routed / routed.sum()
    return experts * (share * logits.softmax(-1).mean(0)).sum()
