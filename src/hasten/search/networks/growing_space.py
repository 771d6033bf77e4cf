"""Spaces whose networks grow into each other: what a controller of growth sees of a network, and the moves."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

from torch import nn

from hasten.cost.growing import DEEPER_NOISE
from hasten.models.vision.densenet import DenseNet
from hasten.models.vision.plain import PlainNet
from hasten.search.networks.gene_space import GeneSpace

A = TypeVar("A", bound=Hashable)


class Grown(NamedTuple):
    """A network after a move, and what it is in its space."""

    arch: Any
    network: nn.Module


class GrowingSpace(GeneSpace[A]):
    """Networks that are widened and deepened without changing what they compute.

    A network is a sequence of layers, some of which are one size below another of the space; blocks of layers can get
    one more. Moves leave the network that they are given as it is.

    Attributes:
        widenings, deepenings: moves of a network in a published episode.
        deepening_noise: on the weights of one more layer.
    """

    widenings: ClassVar[int] = 4
    deepenings: ClassVar[int] = 5
    deepening_noise: ClassVar[float] = DEEPER_NOISE

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Kinds of layers, for an embedding; 0 stands for none."""

    @abstractmethod
    def sequence(self, arch: A) -> list[int]:
        """A network's layers, poolings among them, as numbers from 1 to `tokens` - 1."""

    @abstractmethod
    def widenable(self, arch: A) -> list[bool]:
        """Of each layer of `sequence` whether it can be widened to the next size."""

    @property
    @abstractmethod
    def kernels(self) -> tuple[int, ...]:
        """Of a further layer; one entry where there is nothing to choose."""

    @property
    @abstractmethod
    def most(self) -> int:
        """Layers of the longest block there can be."""

    @abstractmethod
    def layers(self, arch: A) -> list[int]:
        """Layers of each block, behind any of which another may be put; 0 where a block is full."""

    @abstractmethod
    def has_kernel(self, arch: A, block: int) -> bool:
        """Whether a further layer of this block has a kernel."""

    @abstractmethod
    def widened(self, arch: A, network: nn.Module, which: Sequence[bool], *, noise: float, seed: int) -> Grown:
        """Layers of `sequence` widened to their next sizes."""

    @abstractmethod
    def deepened(
        self, arch: A, network: nn.Module, block: int, layer: int, kernel: int, *, noise: float, seed: int
    ) -> Grown:
        """One more layer in a block."""


def moved_at_random(network: PlainNet | DenseNet, moves: int, rng: random.Random) -> PlainNet | DenseNet:
    """A network that so many random moves made: layers widened by two or three, and put in.

    Args:
        network: plain or dense; it stays as it is.
        moves: one after the other.
        rng: what decides.
    """
    grown = network
    for move in range(moves):
        if isinstance(grown, DenseNet):
            block = rng.randrange(len(grown.layers.growths))
            layer = rng.randrange(len(grown.layers.growths[block]))
            wider = {(block, layer): grown.layers.growths[block][layer] + 2}
            grown = grown.widened(wider, seed=move) if rng.random() < 0.5 else grown.deepened(block, layer, seed=move)
            continue
        rows = [*([f for _, f in b] for b in grown.layers.blocks), list(grown.layers.units)]
        block = rng.randrange(len(rows))
        layer = rng.randrange(len(rows[block]))
        if rng.random() < 0.5:
            grown = grown.widened({(block, layer): rows[block][layer] + 3}, seed=move)
        else:
            grown = grown.deepened(block, layer, rng.choice((1, 3, 5)), seed=move)
    return grown
