"""What a mixture of experts costs a token where memory holds some of them and storage the rest (SmallThinker).

The timeline of a layer (arXiv 2507.20984, section 3): what is missing is read while attention computes, where the
router runs before it, and after it otherwise; then the experts compute. Seconds in memory come from a measured rate
with all experts there, so that all it asks of storage is how many bytes a second it gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasten.cost.serving.expert_routes import share_held
from hasten.errors import HastenError

# (stays, skew) of routes, see `lasting_routes`. That real ones are skewed and last is known, by how much is not, so an
# answer is worth no more than it stays the same over all of these.
ROUTES = tuple((stays, skew) for stays in (0.4, 0.6, 0.8) for skew in (0.5, 0.7, 1.0))


def predicted_step(attention: float, read: float, experts: float, *, prefetch: bool) -> float:
    """Seconds of one layer: reads hide behind attention where they are known before it (the paper's timeline)."""
    return (max(attention, read) if prefetch else attention + read) + experts


@dataclass(frozen=True)
class LittleMemory:
    """A mixture of experts of which memory holds a part.

    Args:
        layers, experts, used: layers, experts of one, and of them for a token.
        bundle: bytes of an expert.
        held: experts that memory holds, of all layers together.
        attention: share of a token's time, with all experts in memory, that is not the experts'.

    Raises:
        HastenError: sizes below 1, or a share outside of 0 to 1.
    """

    layers: int
    experts: int
    used: int
    bundle: float
    held: int
    attention: float

    def __post_init__(self) -> None:
        if min(self.layers, self.experts, self.used, self.held) < 1 or not 0 <= self.attention <= 1:
            raise HastenError("a mixture of experts has sizes of at least 1, and its attention a share of 0 to 1")

    def missing(self, steps: int, seed: int, *, stays: float = 0.6, skew: float = 0.7) -> float:
        """Bytes that a layer's token misses on routes of `lasting_routes`."""
        found = share_held(self.experts, self.used, self.layers, self.held, steps, seed, stays=stays, skew=skew)
        return self.used * (1 - found) * self.bundle

    def rate(self, whole: float, storage: float, missing: float, *, prefetch: bool = True) -> float:
        """Tokens a second.

        Args:
            whole: tokens a second with all experts in memory.
            storage: B/s that it is read at.
            missing: bytes that a layer's token misses.
            prefetch: whether the reads begin before attention.
        """
        layer = 1 / whole / self.layers
        attention = layer * self.attention
        step = predicted_step(attention, missing / storage, layer - attention, prefetch=prefetch)
        return 1 / (self.layers * step)

    def storage_needed(self, whole: float, little: float, missing: float) -> float:
        """B/s of storage with which ``whole`` tokens a second become ``little``, with reads begun before attention.

        Raises:
            HastenError: ``little`` is not below ``whole``: then any fast enough storage will do.
        """
        if not 0 < little < whole:
            raise HastenError(f"{little:g} tokens a second with little memory are not below {whole:g} with all of it")
        layer = 1 / whole / self.layers
        return missing / (1 / little / self.layers - layer + layer * self.attention)


@dataclass(frozen=True)
class CarriedOver:
    """What one model's published rates say about another's on the same device, for one kind of routes.

    Args:
        stays, skew: of the routes, see `lasting_routes`.
        storage: B/s that the known model's rates imply.
        rate: tokens a second of the other model with that storage, reads begun before attention.
        on_demand: likewise, with reads begun when they are needed.
    """

    stays: float
    skew: float
    storage: float
    rate: float
    on_demand: float


def carried_over(
    known: LittleMemory,
    rates: tuple[float, float],
    other: LittleMemory,
    whole: float,
    steps: int,
    seed: int,
    routes: Sequence[tuple[float, float]] = ROUTES,
) -> list[CarriedOver]:
    """The rate of a model in little memory, of a device whose storage nobody has measured, for each kind of routes.

    Args:
        known: a model that was measured on the device.
        rates: its tokens a second with all experts in memory, and with as many as ``known`` holds.
        other: the model in question.
        whole: its tokens a second with all experts in memory.
        steps, seed: of the routes.
        routes: (stays, skew) of each kind.
    """
    found = []
    for stays, skew in routes:
        mine, its = (m.missing(steps, seed, stays=stays, skew=skew) for m in (known, other))
        storage = known.storage_needed(*rates, mine)
        ahead, demand = (other.rate(whole, storage, its, prefetch=p) for p in (True, False))
        found.append(CarriedOver(stays, skew, storage, ahead, demand))
    return found
