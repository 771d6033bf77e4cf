"""An edge of a super-network: of its candidates all are mixed, or one or two drawn, on all channels or a part of them.

DARTS' mixture (arXiv 1806.09055), ProxylessNAS' sampled paths and their logits' gradients (1812.00332, section 3 and
appendix), PC-DARTS' partial channels (1907.05737, section 3).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hasten.errors import HastenError
from hasten.nn.block import Block

Paths: TypeAlias = Literal["mixture", "one", "full", "full_v2", "two"]
PATHS: tuple[Paths, ...] = ("mixture", "one", "full", "full_v2", "two")


class _Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[..., :: self.stride, :: self.stride])


def no_edge(stride: int = 1) -> nn.Module:
    """A candidate that gives zeros: where it is chosen, the edge is not there.

    Args:
        stride: pixels of the input for one of the output, in height and in width.
    """
    return _Zero(stride)


def is_no_edge(candidate: nn.Module) -> bool:
    """Whether a candidate is `no_edge`'s."""
    return isinstance(candidate, _Zero)


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels of (batch, channels, ...) dealt out: the first of each of ``groups`` equal parts, then the second, ...

    >>> shuffled(torch.arange(6).reshape(1, 6, 1, 1), 2).flatten().tolist()
    [0, 3, 1, 4, 2, 5]
    """
    return x.unflatten(1, (groups, x.shape[1] // groups)).transpose(1, 2).flatten(1, 2)


class _GateGradient(torch.autograd.Function):
    """The active candidate's output as it is; backward runs the others without a graph for the gates' gradients."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, gates: Tensor, edge: MixedEdge) -> Tensor:
        ctx.save_for_backward(y, x)
        ctx.edge, ctx.active, ctx.shape = edge, edge.active, gates.shape
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, None]:
        y, x = ctx.saved_tensors
        found = grad.new_zeros(ctx.shape)
        with torch.no_grad():
            for i, candidate in enumerate(ctx.edge.candidates):
                if i == ctx.active:
                    found[i] = (grad * y).sum()
                elif not is_no_edge(candidate):
                    found[i] = (grad * candidate(x)).sum()
        return grad, None, found, None


class MixedEdge(Block):
    """Candidates with a logit each, whose softmax is the probability of each.

    `draw` says what the next calls compute:

    - ``mixture``: the sum of all candidates by their probabilities (DARTS).
    - ``one``: one drawn candidate, logits without a gradient: steps of the weights, and REINFORCE by
      `log_probability`.
    - ``full``: one drawn candidate's output, all computed, kept and gated: the gradient of the one-hot gates goes
      through the softmax to the logits as if they were continuous.
    - ``full_v2``: the same numbers; the other candidates run again in the backward pass, without a graph, so that the
      activations of one path are kept. They should not be random themselves.
    - ``two``: two are drawn without replacement, the active one by their probabilities among the two, and only their
      logits learn; `rescale` after the optimizer's step keeps the probabilities of the rest.

    Where the active candidate is `no_edge`'s the logits have no gradient, as in the published code. Gates' gradients
    are exact for candidates that are the same function at each call.

    Args:
        candidates: modules of one input each, whose outputs have one shape. With ``part`` they are made for a share of
            the channels.
        part: the candidates get 1/``part`` of the channels; the rest goes by ``bypass`` and is joined behind them.
        bypass: of the rest; an identity when None. A max-pool where the candidates halve the map.
        random: whether which channels is drawn by `draw`, results back in their places; else the first, and a shuffle
            behind the join lets other edges get others.
        own: whether it has logits itself; without, they come with each call, as those that several cells share.
        device, dtype: of the logits.

    Shapes: as the candidates'.

    Raises:
        HastenError: no candidates, or a part below 1; channels that do not divide into parts, or others than were
            drawn.
    """

    no_decay = ("logits",)

    def __init__(
        self,
        candidates: Sequence[nn.Module],
        part: int = 1,
        bypass: nn.Module | None = None,
        random: bool = False,
        own: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not candidates or part < 1:
            raise HastenError("a mixed edge has candidates, and gives them 1/part of the channels with part from 1 on")
        self.candidates = nn.ModuleList(candidates)
        self.part, self.random = part, random
        self.bypass = nn.Identity() if bypass is None else bypass
        self.logits: nn.Parameter | None = None
        if own:
            self.logits = nn.Parameter(torch.empty(len(candidates), device=device, dtype=dtype))
        self.paths: Paths = "mixture"
        self.active = 0
        self.pair: tuple[int, int] | None = None
        self.order: Tensor | None = None
        self._before: Tensor | None = None
        self._start()

    def _start(self) -> None:
        if self.logits is not None:
            nn.init.normal_(self.logits, std=1e-3)

    def extra_repr(self) -> str:
        return f"paths={self.paths!r}, part={self.part}"

    # -- choosing --------------------------------------------------------------------------------

    @torch.no_grad()
    def draw(
        self, paths: Paths, generator: torch.Generator | None = None, *, evenly: bool = False, channels: int = 0,
        logits: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Says what the next calls compute, and lets go of the candidates' gradients: an optimizer then leaves those
        alone that do not run.

        Args:
            paths: see the class.
            generator: of what is drawn.
            evenly: whether each candidate is as likely as any other: a warm-up.
            channels: of the input, where which of them the candidates get is random.
            logits: where the edge has none.

        Raises:
            HastenError: unknown paths, a pair among fewer than two, or no logits.
        """
        if paths not in PATHS:
            raise HastenError(f"a mixed edge computes {', '.join(PATHS)}: got {paths!r}")
        own = self._logits(logits)
        self.paths, self.pair, self._before = paths, None, None
        for parameter in self.candidates.parameters():
            parameter.grad = None
        chances = torch.ones(len(own)) if evenly else own.detach().float().softmax(0).cpu()
        if paths == "two":
            if len(own) < 2:
                raise HastenError("a pair needs two candidates: draw full_v2 on this edge")
            first, second = torch.multinomial(chances, 2, generator=generator).tolist()
            self.pair, self._before = (first, second), own.detach().clone()
            self.active = self.pair[int(torch.multinomial(chances[[first, second]], 1, generator=generator))]
        elif paths != "mixture":
            self.active = int(torch.multinomial(chances, 1, generator=generator))
        if self.random:
            self.order = torch.randperm(channels, generator=generator) if channels else None

    def choose(self, index: int) -> None:
        """Lets the next calls compute one candidate.

        Raises:
            HastenError: there is no such candidate.
        """
        if not 0 <= index < len(self.candidates):
            raise HastenError(f"an edge of {len(self.candidates)} candidates has none of number {index}")
        self.paths, self.active, self.pair = "one", index, None

    def _logits(self, logits: Tensor | None) -> Tensor:
        found = self.logits if logits is None else logits
        if found is None:
            raise HastenError("this mixed edge has no logits of its own: give them")
        return found

    # -- what logits say -------------------------------------------------------------------------

    def probabilities(self, logits: Tensor | None = None) -> Tensor:
        """Of each candidate (candidates,), with a graph; of a pair those of the two among themselves, the rest 0."""
        own = self._logits(logits)
        if self.paths != "two" or self.pair is None:
            return own.softmax(0)
        pair = torch.tensor(self.pair, device=own.device)
        return torch.zeros_like(own).index_put((pair,), own[pair].softmax(0))

    def log_probability(self, logits: Tensor | None = None) -> Tensor:
        """Of the active candidate, with a graph: what REINFORCE weighs by a reward."""
        return self._logits(logits).log_softmax(0)[self.active]

    @torch.no_grad()
    def rescale(self) -> None:
        """After an optimizer's step on a pair's logits: shifts the two so that the others' probabilities are as before
        it. Elsewhere nothing."""
        if self.pair is None or self._before is None or self.logits is None:
            return
        pair = list(self.pair)
        self.logits[pair] -= self.logits[pair].logsumexp(0) - self._before[pair].logsumexp(0)
        self._before = None

    # -- computing -------------------------------------------------------------------------------

    def forward(self, x: Tensor, logits: Tensor | None = None) -> Tensor:
        if self.part == 1:
            return self._mixed(x, logits)
        channels = x.shape[1]
        if channels % self.part:
            raise HastenError(f"{channels} channels are not {self.part} equal parts: give this edge others")
        if self.order is not None and len(self.order) != channels:
            raise HastenError(f"{channels} channels are not the {len(self.order)} that were drawn: draw again")
        count = channels // self.part
        if self.order is None:
            y = torch.cat([self._mixed(x[:, :count], logits), self.bypass(x[:, count:])], 1)
            return y if self.random else shuffled(y, self.part)
        order = self.order.to(x.device)
        y = torch.cat([self._mixed(x[:, order[:count]], logits), self.bypass(x[:, order[count:]])], 1)
        return y[:, order.argsort()]

    if TYPE_CHECKING:
        __call__ = forward

    def _mixed(self, x: Tensor, logits: Tensor | None) -> Tensor:
        if self.paths == "mixture":
            return self._sum(x, self._logits(logits).softmax(0))
        active = self.candidates[self.active]
        if self.paths == "one" or is_no_edge(active):
            y: Tensor = active(x)
            return y
        shares = self.probabilities(logits)
        # One for the active candidate and else 0, with the gradient of the probabilities.
        gates = shares - shares.detach()
        gates = gates + nn.functional.one_hot(torch.tensor(self.active, device=gates.device), len(gates))
        if self.paths == "full_v2":
            passed: Tensor = _GateGradient.apply(active(x), x, gates, self)
            return passed
        running = range(len(gates)) if self.pair is None else self.pair
        return self._sum(x, gates, {i: i != self.active for i in running})

    def _sum(self, x: Tensor, weights: Tensor, running: dict[int, bool] | None = None) -> Tensor:
        """The sum of candidates by weights.

        Args:
            running: of those that run, whether without a graph; all with one when None.
        """
        total: Tensor | None = None
        for i, candidate in enumerate(self.candidates):
            if is_no_edge(candidate) or (running is not None and i not in running):
                continue
            with torch.set_grad_enabled(torch.is_grad_enabled() and not (running is not None and running[i])):
                y = candidate(x)
            y = weights[i] * y
            total = y if total is None else total + y
        if total is None:
            total = self.candidates[0](x)
        return total


def mixed_edges(module: nn.Module) -> Iterator[MixedEdge]:
    """Every mixed edge in a module, in its order."""
    return (part for part in module.modules() if isinstance(part, MixedEdge))


class MixedNetwork(Block, ABC):
    """A super-network with a `MixedEdge` at each place where it has a choice.

    Subclasses say at which `resolution` it takes images, and `check` what is a choice at each place.
    """

    @property
    @abstractmethod
    def resolution(self) -> int:
        """Height and width of its images."""

    @abstractmethod
    def check(self, chosen: Sequence[int]) -> tuple[int, ...]:
        """A choice at each place, as a tuple.

        Raises:
            HastenError: they are none.
        """

    @property
    def mixed(self) -> list[MixedEdge]:
        """The edge of each place."""
        return list(mixed_edges(self))

    def logits(self) -> list[nn.Parameter]:
        """What the choices are learned by, of each place."""
        return [edge.logits for edge in self.mixed if edge.logits is not None]

    def weights(self) -> Iterator[nn.Parameter]:
        """All parameters but `logits`."""
        own = {id(p) for p in self.logits()}
        return (p for p in self.parameters() if id(p) not in own)

    def best(self) -> tuple[int, ...]:
        """The likeliest choice at each place."""
        return tuple(int(row.argmax()) for row in self.logits())

    def choose(self, chosen: Sequence[int]) -> None:
        """Lets the next calls compute one network.

        Raises:
            HastenError: it is none of the space.
        """
        for edge, choice in zip(self.mixed, self.check(chosen), strict=True):
            edge.choose(choice)
