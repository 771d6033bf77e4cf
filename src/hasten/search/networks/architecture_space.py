"""A space of networks: what every search over networks, predictor and latency table may ask of one.

A space is a class of `hasten.search.networks.members`, found by its file and the decorator `architecture_space`. Its
networks are plain values that hash: what they mean is the space's business, and nobody else's.
"""

from __future__ import annotations

import importlib
import pkgutil
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from hasten.cost.latency.meta_settings import MetaSettings
from hasten.cost.latency.modelled import ArrayDevice, EstimatedDevice, Part, modelled_tables
from hasten.cost.latency.predictor import LatencyPredictor
from hasten.cost.latency.regimes import MeasuredRegimes, Regime, measure_regimes
from hasten.cost.latency.tables import Arch, LatencyTables
from hasten.errors import HastenError
from hasten.models.vision.backbone import multiply_accumulates
from hasten.search.parameter import Params
from hasten.search.space import Space

A = TypeVar("A", bound=Hashable)
_KNOWN: dict[str, type[ArchitectureSpace[Any]]] = {}


class ArchitectureSpace(ABC, Generic[A]):
    """The contract. Everything random takes a `random.Random`, and the same one gives the same networks.

    Attributes:
        name: by which `open_space` finds it.
        about: what its networks are, in a line.
        graph_labels: labels of a node in `graphs`; 0 where the space has none.
        prefers_graphs: whether a latency predictor learns better from graphs than from `encode`.
    """

    name: ClassVar[str] = ""
    about: ClassVar[str] = ""
    graph_labels: int = 0
    prefers_graphs: bool = False

    @classmethod
    def for_images(cls, channels: int, size: int, classes: int) -> Self:
        """The space with networks for such images, small enough for a processor to train one in seconds.

        Args:
            channels: of the images.
            size: their height and width.
            classes: that they are of.

        Raises:
            HastenError: its networks are not for images.
        """
        raise HastenError(f"networks of {cls.name or cls.__name__} are not for images of a size: give another space")

    # -- choosing --------------------------------------------------------------------------------

    @abstractmethod
    def sample(self, rng: random.Random) -> A:
        """A network drawn at random."""

    @abstractmethod
    def mutate(self, arch: A, rng: random.Random, chance: float = 0.1) -> A:
        """A network whose every decision is drawn anew with this chance."""

    @abstractmethod
    def cross(self, one: A, other: A, rng: random.Random) -> A:
        """A network whose every decision is that of one or the other."""

    @abstractmethod
    def smallest(self) -> A:
        """A network that no other is faster than by much: where few are within a limit, a search begins near it."""

    def near_smallest(self, rng: random.Random) -> A:
        """A network drawn near the smallest."""
        return self.mutate(self.smallest(), rng, 0.3)

    # -- as points of a `Space`, for the samplers of `hasten.search.samplers` ----------------------

    @abstractmethod
    def space(self) -> Space:
        """The same choices as parameters."""

    @abstractmethod
    def from_params(self, params: Params) -> A:
        """The network of a point of `space`.

        Raises:
            HastenError: the point stands for none.
        """

    @abstractmethod
    def to_params(self, arch: A) -> Params:
        """The point of `space` that a network is."""

    # -- describing ------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, arch: A) -> list[float]:
        """A vector of `features` numbers that tells networks apart, for predictors."""

    @property
    def features(self) -> int:
        """Length of `encode`'s result."""
        return len(self.encode(self.smallest()))

    def counts(self, arch: A) -> list[float]:
        """A coarse description: how often a network has each kind of layer."""
        return self.encode(arch)

    def codes(self, archs: Sequence[A]) -> Tensor:
        """`encode` of several networks, (count, features)."""
        return torch.tensor([self.encode(a) for a in archs]).reshape(len(archs), self.features)

    def graphs(self, archs: Sequence[A]) -> Tensor:
        """Networks as graphs, (count, nodes, graph_labels + nodes): labels of nodes, then the nodes each one hears.

        Raises:
            HastenError: the space describes none.
        """
        raise HastenError(f"networks of {self.name or type(self).__name__} are not described as graphs: use encode")

    # -- building --------------------------------------------------------------------------------

    @abstractmethod
    def build(self, arch: A) -> nn.Module:
        """The network as an ordinary module with random weights, images (batch, channels, height, width) to logits."""

    @abstractmethod
    def input_shape(self, arch: A) -> tuple[int, int, int]:
        """Channels, height and width of an image for it."""

    def example(self, arch: A) -> tuple[nn.Module, Tensor]:
        """The network in evaluation mode, and one image (1, channels, height, width)."""
        return self.build(arch).eval(), torch.randn(1, *self.input_shape(arch))

    def parameters(self, arch: A) -> int:
        """Weights of the network."""
        with torch.device("meta"):
            return sum(p.numel() for p in self.build(arch).parameters())

    def products(self, arch: A) -> int:
        """Multiply-accumulates of its convolutions, linear layers and attention for one image."""
        with torch.device("meta"):
            return multiply_accumulates(self.build(arch), self.input_shape(arch))

    @abstractmethod
    def parts(self, arch: A) -> Sequence[Part]:
        """What its latency is a sum of: a key by which equal parts are known, a maker of the part, and the shape of its
        input for one image."""

    # -- keeping ---------------------------------------------------------------------------------

    @abstractmethod
    def numbers(self, arch: A) -> Arch:
        """The network as whole numbers, by which latency tables and files know it."""

    @abstractmethod
    def from_numbers(self, numbers: Sequence[int]) -> A:
        """The network that `numbers` gave.

        Raises:
            HastenError: they are no network of the space.
        """

    def why_invalid(self, arch: A) -> str:
        """Why this is no network of the space; empty where it is one."""
        try:
            same = self.from_numbers(self.numbers(arch)) == arch
        except (HastenError, AttributeError, TypeError, ValueError) as error:
            return str(error)
        return "" if same else "two descriptions stand for the same network, and this is not the one that is used"

    def valid(self, arch: A) -> bool:
        """Whether this is a network of the space; `why_invalid` has the reason."""
        return not self.why_invalid(arch)

    def to_json(self, arch: A) -> Any:
        """The network as JSON knows it."""
        return list(self.numbers(arch))

    def from_json(self, data: Any) -> A:
        """The network that `to_json` gave.

        Raises:
            HastenError: it is no network of the space.
        """
        if not isinstance(data, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in data):
            raise HastenError(f"a network of {self.name} is a list of whole numbers: got {data!r:.80}")
        return self.from_numbers(data)


S = TypeVar("S", bound="type[ArchitectureSpace[Any]]")


def architecture_space(name: str, about: str = "") -> Callable[[S], S]:
    """Registers a class under a name.

    Args:
        name: by which `open_space` and ``hasten search`` find it.
        about: what its networks are, in a line.

    Raises:
        HastenError: another class has it.
    """

    def register(kind: S) -> S:
        if name in _KNOWN and _KNOWN[name].__qualname__ != kind.__qualname__:
            raise HastenError(f"two spaces of networks are called {name!r}: rename one")
        kind.name, kind.about = name, about
        _KNOWN[name] = kind
        return kind

    return register


def architecture_spaces() -> Mapping[str, type[ArchitectureSpace[Any]]]:
    """Every registered space by its name, those in the folder `hasten.search.networks.members` among them."""
    folder = importlib.import_module("hasten.search.networks.members")
    for module in pkgutil.iter_modules(folder.__path__, f"{folder.__name__}."):
        importlib.import_module(module.name)
    return dict(sorted(_KNOWN.items()))


def open_space(name: str, **options: Any) -> ArchitectureSpace[Any]:
    """A space by its name.

    Args:
        name: of `architecture_spaces`.
        options: of its class.

    Raises:
        HastenError: no space has this name.

    >>> open_space("cell").products((3,) * 6) > open_space("cell").products((2,) * 6)
    True
    """
    known = architecture_spaces()
    if name not in known:
        raise HastenError(f"no space of networks is called {name!r}: choose {', '.join(known)}")
    return known[name](**options)


# -- predictors and tables of any space --------------------------------------------------------------


def latency_predictor(
    space: ArchitectureSpace[A], references: Sequence[A], settings: MetaSettings | None = None, seed: int = 0
) -> LatencyPredictor[A]:
    """A predictor of latency for networks of a space, described in the way that the space prefers.

    Args:
        space: of the networks.
        references: networks that every device is known by.
        settings: of meta-learning; the paper's when None.
        seed: of everything random.
    """
    codes, labels = (space.graphs, space.graph_labels) if space.prefers_graphs else (space.codes, 0)
    return LatencyPredictor(codes, references, labels=labels, settings=settings or MetaSettings(), seed=seed)


def modelled_latencies(
    space: ArchitectureSpace[A],
    archs: Sequence[A],
    devices: Sequence[EstimatedDevice | ArrayDevice],
    progress: Callable[[float], None] = lambda share: None,
) -> LatencyTables:
    """Seconds of networks on devices that are modelled, as `modelled_tables`; networks are
    `ArchitectureSpace.numbers`."""

    def parts(numbers: Arch) -> Sequence[Part]:
        return space.parts(space.from_numbers(numbers))

    return modelled_tables(parts, [space.numbers(a) for a in archs], devices, progress)


class _Example:
    """`ArchitectureSpace.example` of networks as numbers, which another process can be handed."""

    def __init__(self, space: ArchitectureSpace[Any]) -> None:
        self.space = space

    def __call__(self, numbers: Arch) -> tuple[nn.Module, Tensor]:
        return self.space.example(self.space.from_numbers(numbers))


def measured_latencies(
    space: ArchitectureSpace[A], archs: Sequence[A], regimes: Sequence[Regime], **options: Any
) -> MeasuredRegimes:
    """Networks measured on this machine, as `measure_regimes` with its options; networks are
    `ArchitectureSpace.numbers`."""
    return measure_regimes(_Example(space), [space.numbers(a) for a in archs], regimes, **options)
