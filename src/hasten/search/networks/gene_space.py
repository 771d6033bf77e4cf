"""Spaces of networks whose decisions are parameters of a `Space`: the rest of the contract follows from those."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import TypeVar

from hasten.errors import HastenError
from hasten.search.codec import Codec
from hasten.search.networks.architecture_space import ArchitectureSpace
from hasten.search.parameter import Params
from hasten.search.space import Space

A = TypeVar("A", bound=Hashable)


class GeneSpace(ArchitectureSpace[A]):
    """Networks that are points of a space of whole numbers and categories, one network a point.

    Subclasses say `genes`, `from_params`, `to_params`, `smallest` and what is built.
    """

    @abstractmethod
    def genes(self) -> Space:
        """The parameters."""

    @cached_property
    def codec(self) -> Codec:
        """Of its points."""
        return Codec(self.genes())

    def space(self) -> Space:
        return self.codec.space

    def sample(self, rng: random.Random) -> A:
        return self.from_params(self.space().sample(rng))

    def mutate(self, arch: A, rng: random.Random, chance: float = 0.1) -> A:
        old, found = self.to_params(arch), Params()
        for parameter in self.space():
            if self.space().active(parameter, found):
                kept = parameter.name in old and rng.random() >= chance
                found[parameter.name] = old[parameter.name] if kept else parameter.sample(rng)
        return self.from_params(found)

    def cross(self, one: A, other: A, rng: random.Random) -> A:
        parents, found = [self.to_params(one), self.to_params(other)], Params()
        for parameter in self.space():
            if self.space().active(parameter, found):
                values = [p[parameter.name] for p in parents if parameter.name in p]
                found[parameter.name] = rng.choice(values) if values else parameter.sample(rng)
        return self.from_params(found)

    def encode(self, arch: A) -> list[float]:
        """Of each parameter where its value stands among all, from 0 to 1; of one that is not always there, whether it
        is; of one without an order a number a value."""
        point, row = self.to_params(arch), list[float]()
        for parameter, values in zip(self.space(), self.codec.values, strict=True):
            there = parameter.name in point
            at = values.index(point[parameter.name]) if there else 0
            if parameter.when:
                row.append(float(there))
            if parameter.ordered or parameter.kind != "categorical":
                row.append(at / max(1, len(values) - 1) if there else 0.0)
            else:
                row += [float(there and at == i) for i in range(len(values))]
        return row

    def numbers(self, arch: A) -> tuple[int, ...]:
        """Of each parameter the place of its value, from 0; 0 where it is not there."""
        return self.codec.encode(self.to_params(arch))

    def from_numbers(self, numbers: Sequence[int]) -> A:
        row, sizes = tuple(numbers), self.codec.sizes
        if len(row) != len(sizes) or any(not 0 <= int(n) < size for n, size in zip(row, sizes, strict=True)):
            raise HastenError(f"a network of {self.name} is {len(sizes)} places of values: got {row!r:.80}")
        point = self.codec.decode(row)
        if self.codec.encode(point) != row:
            raise HastenError(f"what is not there in a network of {self.name} has the place 0: got {row!r:.80}")
        return self.from_params(point)
