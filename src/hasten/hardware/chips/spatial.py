"""A template of an accelerator: a square grid of processing elements, a row of vector lanes, one shared buffer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from hasten.errors import HastenError

# Energy of an operation, J (16-bit numbers; FuseMax's published tables, arXiv 2406.10491).
OPERATIONS = {"mac": 17.16e-12, "add": 8.34e-12, "max": 0.028e-12, "exp": 94.65e-12, "div": 36.25e-12}
# An exponential on a plain element: multiply-accumulates, after one subtraction.
EXP_MACS = 6


@dataclass(frozen=True)
class SpatialArray:
    """A chip with a grid of ``side`` x ``side`` elements and a row of ``side`` vector lanes.

    Args:
        name: for people.
        side: elements along an edge, and vector lanes.
        clock: Hz.
        bandwidth: B/s of the memory.
        buffer: bytes of the shared buffer.
        exponential_unit: whether the lanes have a unit for exponentials and the grid has none; otherwise both take
            `EXP_MACS` multiply-accumulates.
        register: J to read a register of an element.
        word: bytes of a number.
        per_byte: J of a byte from memory.
        line: J to read or write 512 B of the buffer, in one access by a whole row.
        operand: J of one number that the lanes read from the buffer or write to it. Not published: it is what FLAT's
            published energy leaves unexplained at one point (BERT, 4096 tokens), divided by its eight accesses.
        area: square metres of parts: ``buffer`` whole, ``mac`` and ``registers`` of an element, ``divider`` and ``exp``
            of a lane.

    Raises:
        HastenError: no elements, clock, bandwidth or buffer, or a number that is not finite.
    """

    name: str
    side: int = 256
    clock: float = 940e6
    bandwidth: float = 400 * 2**30
    buffer: int = 16 * 2**20
    exponential_unit: bool = False
    register: float = 0.65e-12
    word: int = 2
    per_byte: float = 249.6e-12 / 8
    line: float = 485e-12
    operand: float = 75e-12
    area: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not all(0 < n < math.inf for n in (self.side, self.clock, self.bandwidth, self.buffer, self.word)):
            raise HastenError(f"the array {self.name} needs elements, clock, bandwidth, buffer and words above 0")

    def cycles(self, operation: str) -> int:
        """Cycles of a primitive operation on an element or a lane."""
        if operation == "exp":
            return 1 if self.exponential_unit else EXP_MACS
        return 1

    def energy(self, operation: str) -> float:
        """J of a primitive operation."""
        if operation == "exp" and not self.exponential_unit:
            return EXP_MACS * OPERATIONS["mac"]
        return OPERATIONS[{"sub": "add", "times": "mac"}.get(operation, operation)]

    @property
    def elements(self) -> int:
        """Of the grid."""
        return self.side**2

    @property
    def total_area(self) -> float | None:
        """Square metres of all parts whose area is known, without wires and control; None where none is."""
        each = self.area.get
        grid = self.elements * (each("mac", 0.0) + each("registers", 0.0))
        lanes = self.side * (each("divider", 0.0) + each("exp", 0.0))
        return each("buffer", 0.0) + grid + lanes if self.area else None


FUSEMAX = SpatialArray(
    "FuseMax", area={"buffer": 47.1e-6, "mac": 1545e-12, "divider": 23741e-12, "registers": 4256e-12}
)
"""FuseMax's cloud chip: maxima and exponentials on the grid, half of the buffer given up for them."""

FLAT = SpatialArray(
    "FLAT",
    buffer=32 * 2**20,
    exponential_unit=True,
    register=0.29e-12,
    area={"buffer": 94.2e-6, "mac": 1545e-12, "exp": 8240e-12, "divider": 23741e-12, "registers": 1838e-12},
)
"""The chip of FLAT (and of attention left unfused): the grid multiplies, the lanes do the rest."""
