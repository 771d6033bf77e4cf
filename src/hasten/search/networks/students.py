"""Students of a distillation as `ArchitectureSpace`s: MobileBERT-like encoders (AutoDistill's space), and Llamas."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from hasten.cost.latency.modelled import Part
from hasten.errors import HastenError
from hasten.models.language.bottleneck_encoder import (
    BottleneckConfig,
    BottleneckEncoder,
    BottleneckLayer,
    TokenEmbedding,
)
from hasten.models.language.llama import small_llama
from hasten.search.networks.architecture_space import ArchitectureSpace
from hasten.search.space import Params, Space, integer
from hasten.train.distilling import ObservedDecoder

S = TypeVar("S", bound=Any)


class Students(ArchitectureSpace[S]):
    """Networks of a few sizes, each one of a few: what is special to a kind is how it is built.

    Subclasses are frozen dataclasses with a tuple for each size of `kind`, under its name.

    Attributes:
        kind: the frozen dataclass of a student's sizes.
    """

    kind: ClassVar[type[Any]]
    length: int

    def _check(self) -> None:
        """Raises HastenError where sizes do not rise."""
        if any(not c or list(c) != sorted(set(c)) or c[0] < 1 for c in self.choices.values()):
            raise HastenError("a student's sizes are lists of rising numbers of at least 1")

    @property
    def choices(self) -> Mapping[str, tuple[int, ...]]:
        """What each size may be."""
        return {f.name: getattr(self, f.name) for f in fields(self.kind)}

    @abstractmethod
    def build(self, arch: S) -> nn.Module:
        """The student, ids (batch, length) to logits (batch, length, classes), that can be observed."""

    def space(self) -> Space:
        """The same as a `Space` that samplers know: each size's place among its choices, so that they rise evenly."""
        return Space([integer(name, 0, len(choices) - 1) for name, choices in self.choices.items()])

    def from_params(self, params: Params) -> S:
        """The student of a point of `space`."""
        return self.from_numbers([params[name] for name in self.choices])  # type: ignore[misc]

    def to_params(self, arch: S) -> Params:
        """The point of `space` that a student is."""
        return dict(zip(self.choices, self.numbers(arch), strict=True))

    def sample(self, rng: random.Random) -> S:
        return self.kind(**{name: rng.choice(choices) for name, choices in self.choices.items()})

    def mutate(self, arch: S, rng: random.Random, chance: float = 0.1) -> S:
        changed = {name: rng.choice(choices) for name, choices in self.choices.items() if rng.random() < chance}
        return replace(arch, **changed)

    def cross(self, one: S, other: S, rng: random.Random) -> S:
        return self.kind(**{name: rng.choice((getattr(one, name), getattr(other, name))) for name in self.choices})

    def smallest(self) -> S:
        return self.kind(**{name: choices[0] for name, choices in self.choices.items()})

    def largest(self) -> S:
        """The student with every size at its largest."""
        return self.kind(**{name: choices[-1] for name, choices in self.choices.items()})

    def encode(self, arch: S) -> list[float]:
        return [c.index(getattr(arch, name)) / max(1, len(c) - 1) for name, c in self.choices.items()]

    def input_shape(self, arch: S) -> tuple[int, ...]:  # type: ignore[override]
        """Tokens of a text."""
        return (self.length,)

    def example(self, arch: S) -> tuple[nn.Module, Tensor]:
        return self.build(arch).eval(), torch.zeros(1, self.length, dtype=torch.int64)

    def numbers(self, arch: S) -> tuple[int, ...]:
        return tuple(choices.index(getattr(arch, name)) for name, choices in self.choices.items())

    def from_numbers(self, numbers: Sequence[int]) -> S:
        given: Any = numbers
        try:
            pairs = list(zip(self.choices.items(), given, strict=True))
            if any(isinstance(n, bool) or not 0 <= n < len(choices) for (_, choices), n in pairs):
                raise ValueError
            return self.kind(**{name: choices[number] for (name, choices), number in pairs})
        except (TypeError, ValueError):
            raise HastenError(f"{given!r:.80} is no student of this space: give a place for each size") from None


@dataclass(frozen=True)
class StudentEncoder:
    """An encoder's sizes, see `BottleneckConfig`."""

    layers: int
    width: int
    bottleneck: int
    heads: int
    feed_forwards: int
    inner: int


@dataclass(frozen=True)
class EncoderSpace(Students[StudentEncoder]):
    """`BottleneckEncoder`s for one task.

    Args:
        vocabulary, classes, length: of the task.
        layers, width, bottleneck, heads, feed_forwards, inner: what may be chosen, rising.

    Raises:
        HastenError: heads that do not divide every bottleneck, or sizes that do not rise.
    """

    kind: ClassVar[type[Any]] = StudentEncoder

    vocabulary: int
    classes: int
    length: int
    layers: tuple[int, ...] = (1, 2, 3, 4, 6)
    width: tuple[int, ...] = (32, 64, 96, 128, 192)
    bottleneck: tuple[int, ...] = (16, 32, 48, 64, 96)
    heads: tuple[int, ...] = (1, 2, 4)
    feed_forwards: tuple[int, ...] = (1, 2, 3, 4)
    inner: tuple[int, ...] = (32, 64, 128, 256)

    def __post_init__(self) -> None:
        self._check()
        if any(b % h for b in self.bottleneck for h in self.heads):
            raise HastenError("every number of heads must divide every bottleneck")

    def config(self, arch: StudentEncoder) -> BottleneckConfig:
        """Its sizes with the task's."""
        return BottleneckConfig(self.vocabulary, self.classes, self.length, *astuple(arch))

    def build(self, arch: StudentEncoder) -> BottleneckEncoder:
        return BottleneckEncoder(self.config(arch))

    def parts(self, arch: StudentEncoder) -> Sequence[Part]:
        config, ids, states = self.config(arch), (self.length,), (self.length, arch.width)
        layer: Part = (astuple(arch)[1:], lambda: BottleneckLayer(config), states)
        embedding: Part = (("embedding", arch.width), lambda: TokenEmbedding(config), ids)
        head: Part = (("head", arch.width), lambda: nn.Linear(config.width, config.classes), states)
        return [embedding, *[layer] * arch.layers, head]


@dataclass(frozen=True)
class StudentDecoder:
    """A decoder's sizes: layers, width of the state and of the MLP, heads."""

    layers: int
    width: int
    inner: int
    heads: int


@dataclass(frozen=True)
class DecoderSpace(Students[StudentDecoder]):
    """Llamas with one tokenizer's vocabulary, for a language model to be distilled into.

    Args:
        vocabulary: of the teacher's tokenizer.
        length: of the texts that they learn from.
        positions: the longest text that they read.
        layers, width, inner, heads: what may be chosen, rising.

    Raises:
        HastenError: heads that leave an odd width or do not divide every width, or sizes that do not rise.
    """

    kind: ClassVar[type[Any]] = StudentDecoder

    vocabulary: int
    length: int
    positions: int = 2048
    layers: tuple[int, ...] = (1, 2, 4, 6)
    width: tuple[int, ...] = (64, 128, 192, 256)
    inner: tuple[int, ...] = (128, 256, 512)
    heads: tuple[int, ...] = (2, 4)

    def __post_init__(self) -> None:
        self._check()
        if any(w % (2 * h) for w in self.width for h in self.heads):
            raise HastenError("every number of heads must divide every width into even ones")

    def build(self, arch: StudentDecoder) -> ObservedDecoder:
        return ObservedDecoder(
            small_llama(
                self.vocabulary, width=arch.width, layers=arch.layers, heads=arch.heads, inner=arch.inner,
                positions=self.positions, tied=True,
            )
        )  # fmt: skip

    def parts(self, arch: StudentDecoder) -> Sequence[Part]:
        return [(arch, lambda: self.build(arch), (self.length,))]
