"""A user's own network, grown by named moves and kept: what it computes stays, and training goes on from there.

The moves are those of `hasten.cost.growing` (Net2Net, arXiv 1511.05641; EAS, 1707.04873).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hasten.cost.growing import DEEPER_NOISE, WIDER_NOISE, calibrate, deepen, traced, widen
from hasten.cost.preserving import difference
from hasten.errors import HastenError
from hasten.models.loading import checkpoint
from hasten.runtime.network import Network, file_and_name, make_network


@dataclass(frozen=True)
class GrowthMoves:
    """How a network is made larger.

    Args:
        widths: convolution or linear layer -> its number of outputs.
        deeper: layers that get another of their kind behind their activation.
        kernel: of new convolutions.
        noise: whether new weights have the paper's noise, which lets copies part in training.
        seed: of copies and noise.

    Raises:
        HastenError: no move, a kernel that is not odd, or a width below 1.
    """

    widths: Mapping[str, int]
    deeper: Sequence[str] = ()
    kernel: int = 3
    noise: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.widths and not self.deeper:
            raise HastenError("a network grows by a move: name a layer to widen, or one to put another behind")
        if self.kernel < 1 or self.kernel % 2 == 0 or min(self.widths.values(), default=1) < 1:
            raise HastenError("a grown network has odd kernels and layers of one output or more")


@dataclass(frozen=True)
class GrownNetwork:
    """A network after its moves.

    Args:
        module: it, in evaluation mode.
        apart: how far its answers lie from the old one's, of the largest.
    """

    module: nn.Module
    apart: float


def grown(network: Network, moves: GrowthMoves) -> GrownNetwork:
    """A copy that computes what the network does, but for noise: wider layers first, then more of them.

    Args:
        network: with inputs; new normalizations get the statistics of what they read of these.

    Raises:
        HastenError: a layer is not there, or is read by something that does not keep channels apart; inputs that can be
            given by name alone.
    """
    inputs = _by_place(network)
    with torch.random.fork_rng(devices=[]):
        made = network.module
        if moves.widths:
            made = widen(made, moves.widths, inputs, noise=moves.noise * WIDER_NOISE, seed=moves.seed).network
        order = [str(node.target) for node in traced(made, inputs).nodes if node.op == "call_module"]
        # The last first: a layer that is put into a list moves the numbers of those behind it.
        for name in sorted(moves.deeper, key=lambda n: -order.index(n) if n in order else 0):
            made = deepen(made, name, inputs, kernel=moves.kernel, noise=moves.noise * DEEPER_NOISE, seed=moves.seed)
        calibrate(made, inputs)
        with torch.no_grad():
            return GrownNetwork(made.eval(), difference(network.module, made, inputs))


def _by_place(network: Network) -> tuple[Any, ...]:
    """The network's inputs in the order of its arguments."""
    given = network.inputs
    if not given.kwargs:
        return given.args
    known = inspect.signature(network.module.forward)
    for name in given.kwargs:
        if name not in known.parameters or known.parameters[name].kind is inspect.Parameter.KEYWORD_ONLY:
            raise HastenError(f"{network.name} takes {name} by name alone: growth follows inputs by place")
    bound = known.bind(*given.args, **given.kwargs)
    bound.apply_defaults()
    return bound.args


def save_grown(folder: str | Path, module: nn.Module, source: str, moves: GrowthMoves) -> None:
    """Writes a grown network's weights, and how it is made again.

    Args:
        source: of `hasten.runtime.network.make_network`: what it was grown from.
    """
    checkpoint.save(
        folder,
        module,
        {
            "grown_from": source, "widths": dict(moves.widths), "deeper": list(moves.deeper), "kernel": moves.kernel,
            "seed": moves.seed,
        },
    )  # fmt: skip


def load_grown(folder: str | Path, source: str | None = None) -> nn.Module:
    """Reads what `save_grown` wrote: the source is made, grown and filled; in evaluation mode.

    Args:
        source: what makes the network that it was grown from, as `make_network` takes it. It must be given where that
            is ``file.py:build``: what the folder says is not run otherwise.

    Raises:
        HastenError: a file is missing or broken, the source is another network now, or is code that nobody named.
    """
    read = checkpoint.read_config(folder)
    try:
        moves = GrowthMoves(
            {str(name): int(size) for name, size in read["widths"].items()}, [str(n) for n in read["deeper"]],
            int(read["kernel"]), False, int(read["seed"]),
        )  # fmt: skip
        known = str(read["grown_from"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise HastenError(f"{folder} holds no grown network: hasten grow writes one") from None
    if source is None and file_and_name(known) is not None:
        raise HastenError(
            f"{folder} was grown from {known[:120]}, which is code: say that it may run, by giving it as source"
        )
    made = grown(make_network(known if source is None else source).network, moves).module
    checkpoint.fill(made, checkpoint.read_tensors(folder), folder)
    return made.eval()
