"""BlockFFN: a mixture of experts whose router is ReLU and RMSNorm, and what makes neighbours choose alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.kernels.expert_ffn import expert_ffn
from hasten.nn.block import Block, Factory
from hasten.nn.moe import Routing, choose

EPSILON = 1e-5


class BlockFFN(Block):
    """A feed-forward layer of ungated experts behind a ReLU + RMSNorm router (arXiv 2507.08771, section 3.1).

        r = R x,  h = relu(r),  q = h / rms(h),  a = q g,  out = sum_i a_i D_i silu(U_i x)

    A token uses an expert where h > 0, so their number is its own. ReLU comes first: the norm fixes the scale and
    leaves what is inactive at exactly 0.

    Args:
        width: of input and output.
        experts: how many.
        each: inner values of one.
        eps: of the norm.
        device, dtype: as torch's modules take them.

    Shape:
        x (..., width) to the same; with ``return_routing`` the router's `Routing` too, whose logits (..., experts) the
        losses are made of.
    """

    def __init__(
        self,
        width: int,
        experts: int,
        each: int,
        *,
        eps: float = EPSILON,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(width, experts, each) < 1:
            raise ValueError("width, experts and each must be at least 1")
        self.width, self.experts, self.each, self.eps = width, experts, each, eps
        made: Factory = {"device": device, "dtype": dtype}
        self.router = nn.Linear(width, experts, bias=False, **made)
        self.gain = nn.Parameter(torch.empty(experts, **made))
        # Expert by expert; D transposed, so that an expert's rows lie together in both.
        self.up = nn.Parameter(torch.empty(experts * each, width, **made))
        self.down = nn.Parameter(torch.empty(experts * each, width, **made))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.router.reset_parameters()
        self.gain.fill_(1.0)
        nn.init.normal_(self.up, std=self.width**-0.5)
        nn.init.normal_(self.down, std=(self.experts * self.each) ** -0.5)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores a and raw logits r, (..., experts) both."""
        logits = self.router(x)
        return normalized(logits, self.eps) * self.gain, logits

    @overload
    def forward(self, x: Tensor) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, *, return_routing: Literal[True]) -> tuple[Tensor, Routing]: ...
    def forward(self, x: Tensor, *, return_routing: bool = False) -> Tensor | tuple[Tensor, Routing]:
        scores, logits = self.route(x)
        y = expert_ffn(x, scores, self.up, self.down, self._used(logits) if torch.is_grad_enabled() else None)
        return (y, Routing(logits)) if return_routing else y

    if TYPE_CHECKING:
        __call__ = forward

    def _used(self, logits: Tensor) -> Tensor | None:
        """Who is active where a score may be 0 by itself: of a gain of exactly 0 the gradient is not."""
        return active(logits)

    def extra_repr(self) -> str:
        return f"{self.width}, experts={self.experts}, each={self.each}"


def normalized(logits: Tensor, eps: float = EPSILON) -> Tensor:
    """q: ReLU, then RMSNorm over the experts; a row without any active expert stays 0."""
    h = F.relu(logits)
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)


def active(logits: Tensor) -> Tensor:
    """Which experts a token uses, bool."""
    return logits > 0


def token_sparsity(logits: Tensor) -> float:
    """TLS: the share of (token, expert) pairs that are inactive."""
    return 1 - float(active(logits).float().mean())


def chunk_sparsity(logits: Tensor, chunk: int, documents: Tensor | None = None) -> float:
    """CLS: the share of (chunk, expert) pairs in which no token uses the expert (arXiv 2507.08771, section 3.2).

    Args:
        logits: (batch, length, experts).
        chunk: consecutive tokens; chunks are aligned to a document's begin and the last may be shorter.
        documents: (batch, length) int, which document a token is of; one a row when None.
    """
    used, total = 0.0, 0
    for row, marks in zip(active(logits), documents if documents is not None else [None] * len(logits)):
        lengths = [len(row)] if marks is None else torch.unique_consecutive(marks, return_counts=True)[1].tolist()
        for document in row.split(lengths):
            for part in document.split(chunk):
                used += float(part.any(0).float().sum())
                total += part.shape[1]
    return 1 - used / max(total, 1)


def expert_reuse(logits: Tensor) -> float:
    """Of the experts that a token uses, the share that the token before used too; logits (batch, length, experts)."""
    on = active(logits)
    again = (on[:, 1:] & on[:, :-1]).sum()
    return float(again) / max(1.0, float(on[:, 1:].sum()))


def expert_histogram(routers: Sequence[Tensor], bins: int = 10) -> list[int]:
    """How many experts are used by which share of the tokens: collapse shows as experts in the first and last bins.

    Args:
        routers: logits (batch, length, experts) of each layer.
        bins: equal parts of 0 to 1; a share of 1 is in the last.

    Returns:
        Experts of all layers in each bin.
    """
    counts = [0] * bins
    for logits in routers:
        for share in active(logits).float().mean((0, 1)).tolist():
            counts[min(bins - 1, int(share * bins))] += 1
    return counts


@dataclass(frozen=True)
class Routed:
    """How routers chose, on average over a network's layers.

    Args:
        sparsity: `token_sparsity`.
        chunks: `chunk_sparsity` by the length of a chunk.
        reuse: `expert_reuse`.
        fired: `expert_histogram`, over all layers: a few experts that all tokens use are no sparsity to want.
    """

    sparsity: float
    chunks: dict[int, float]
    reuse: float
    fired: list[int]

    @classmethod
    def of(cls, routers: Sequence[Tensor], chunks: Sequence[int] = (1, 8, 64)) -> Routed:
        """Of raw logits (batch, length, experts) of each layer; zeros for none."""
        count = max(1, len(routers))
        return cls(
            sum(token_sparsity(r) for r in routers) / count,
            {size: sum(chunk_sparsity(r, size) for r in routers) / count for size in chunks},
            sum(expert_reuse(r) for r in routers) / count,
            expert_histogram(routers),
        )


def activation_locality(logits: Tensor, documents: Tensor | None = None, sharpness: float = 100.0) -> Tensor:
    """Loss that neighbours use other experts: cross entropy of sigmoid(k r) with the token's before (section 3.2).

    Args:
        logits: r (batch, length, experts), before the ReLU. Gradients reach both neighbours.
        documents: (batch, length) int; pairs across documents do not count.
        sharpness: k.
    """
    scaled = sharpness * logits.float()
    loss = F.binary_cross_entropy_with_logits(scaled[:, :-1], torch.sigmoid(scaled[:, 1:]), reduction="none").mean(-1)
    if documents is None:
        return loss.mean()
    same = (documents[:, 1:] == documents[:, :-1]).to(loss.dtype)
    return (loss * same).sum() / same.sum().clamp(min=1)


def chunk_sparsification(logits: Tensor, chunk: int = 64, mask: Tensor | None = None, eps: float = EPSILON) -> Tensor:
    """Loss that a chunk uses many experts: the soft probability that one is used at least once (section 3.2).

    Args:
        logits: r (batch, length, experts).
        chunk: consecutive tokens; a last, shorter one counts as if padded.
        mask: (batch, length) bool, False for padding.
    """
    q = normalized(logits.float(), eps)
    p = q / (q.sum(-1, keepdim=True) + eps)
    if mask is not None:
        p = p * mask[..., None]
    p = F.pad(p, (0, 0, 0, -p.shape[1] % chunk))
    parts = p.reshape(p.shape[0], -1, chunk, p.shape[2])
    return 1 - torch.log(1 - parts + eps).sum(2).exp().mean()


class AdaptiveFactor:
    """The weight of `chunk_sparsification`, raised while sparsity stalls and lowered while it improves (section 3.2).

    Constant for ``warmup`` steps. Then, every ``period`` steps, the mean loss of the last period over the one before
    is the ratio: above 1 at least 1.025. The weight moves linearly to weight times ratio over the next period, and
    never above ``limit`` times its start.

    Args:
        start: of the weight.
        warmup, period: steps.
        limit: of the weight, over its start.
    """

    def __init__(self, start: float = 5e-2, *, warmup: int = 1000, period: int = 100, limit: float = 4.0) -> None:
        if warmup < period:
            raise ValueError("the warm-up holds at least one period")
        self.start, self.warmup, self.period, self.limit = start, warmup, period, limit
        self._from = self._to = start
        self._losses: list[float] = []

    def step(self, loss: float) -> float:
        """Takes this step's loss and gives the weight for the next."""
        self._losses.append(loss)
        done = len(self._losses)
        if done >= self.warmup and done % self.period == 0 and done >= 2 * self.period:
            last = sum(self._losses[-self.period :])
            before = sum(self._losses[-2 * self.period : -self.period])
            ratio = last / before if before > 0 else 1.0
            if ratio > 1:
                ratio = max(ratio, 1.025)
            self._from, self._to = self._to, min(self._to * ratio, self.limit * self.start)
        share = (done % self.period) / self.period
        return self._from + (self._to - self._from) * share


class _TopKExperts(BlockFFN):
    """`BlockFFN` with another router; what it says of its routing are the scores."""

    count: int

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.router(x)
        weights, chosen = choose(logits, self.count)
        scores = torch.zeros_like(logits).scatter(-1, chosen, weights.to(logits.dtype))
        return scores, scores

    def _used(self, logits: Tensor) -> Tensor | None:
        return None


class TopKFFN(Block):
    """The same experts behind a softmax and top-k router: what BlockFFN is compared with.

    Args:
        width, experts, each, device, dtype: as for `BlockFFN`.
        count: experts of every token.

    Shape:
        as `BlockFFN`; the logits of its `Routing` are the weights of each token's experts, zeros for the others.
    """

    def __init__(
        self,
        width: int,
        experts: int,
        each: int,
        count: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.inner = _TopKExperts(width, experts, each, device=device, dtype=dtype)
        self.inner.count = self.count = count

    @overload
    def forward(self, x: Tensor) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, *, return_routing: Literal[True]) -> tuple[Tensor, Routing]: ...
    def forward(self, x: Tensor, *, return_routing: bool = False) -> Tensor | tuple[Tensor, Routing]:
        scored: tuple[Tensor, Routing] = self.inner(x, return_routing=True)
        return scored if return_routing else scored[0]

    if TYPE_CHECKING:
        __call__ = forward
