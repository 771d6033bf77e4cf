"""Crossbars of resistive memory: what cells, tiles and converters are like, and chips of them as data files."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt

from hasten.errors import HastenError
from hasten.hardware.chips.data_folder import DataFolder

SETTLED = 20.0
"""Seconds after programming at which conductances are what drift is counted from."""


@dataclass(frozen=True)
class Crossbar:
    """How weights lie in cells and how products are read.

    A weight is the difference of two cells; the larger of a column is at full conductance.

    Args:
        rows, columns: pairs of cells along the two edges of a tile.
        input_bits, adc_bits: of the codes of voltages and of summed currents, 2 to 24; 0: exact.
        adc_range: the largest current that a converter tells apart, in those of a cell at full conductance and full
            voltage, for each square root of the rows that are used: sums of random signs grow so.
        read_noise: standard deviation of a cell's conductance from read to read, as a share of it.
        unformed: probability that a cell was never formed, and conducts nothing.
        programming_noise: standard deviation of what a cell was programmed to, as a share of full conductance.
        drift, drift_spread: mean and deviation over cells of the exponent by which conductances fall with time.
        age: seconds since `SETTLED` after programming: conductances are ((age + 20) / 20)^-drift of what they were.
        full: the largest conductance, microsiemens.

    Raises:
        HastenError: a setting that no crossbar has.
    """

    rows: int = 512
    columns: int = 512
    input_bits: int = 8
    adc_bits: int = 8
    adc_range: float = 1.0
    read_noise: float = 0.0
    unformed: float = 0.0
    programming_noise: float = 0.0
    drift: float = 0.0
    drift_spread: float = 0.0
    age: float = 0.0
    full: float = 25.0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise HastenError(f"a tile of {self.rows} x {self.columns} cells is none: give at least 1 x 1")
        for bits in (self.input_bits, self.adc_bits):
            if bits != 0 and not 2 <= bits <= 24:
                raise HastenError(f"converters have 2 to 24 bits, or 0 for exact ones, not {bits}")
        for name in ("read_noise", "programming_noise", "drift", "drift_spread", "age"):
            if not 0 <= getattr(self, name) < math.inf:
                raise HastenError(f"{name} is {getattr(self, name)}: it must be 0 or more, and finite")
        if not 0 <= self.unformed <= 1:
            raise HastenError(f"unformed is {self.unformed}: a probability is from 0 to 1")
        for name in ("adc_range", "full"):
            if not 0 < getattr(self, name) < math.inf:
                raise HastenError(f"{name} is {getattr(self, name)}: it must be above 0, and finite")


class CrossbarChip(BaseModel):
    """A chip of crossbar tiles that work side by side, with converters and digital sums.

    Args:
        name, title: short, and for people.
        rows, columns: pairs of cells along the edges of a tile.
        tiles: of the chip.
        read: seconds of a read: one bit of every input.
        cell_energy: J of a pair of cells whose row is driven, in a read.
        row_energy: J to drive a row of a tile, in a read.
        adcs: converters of a tile: its columns take turns.
        adc_rate: conversions a second of one of them.
        adc_energy: J of a conversion.
        sum_energy: J to add what was converted to a sum.
        buffer_energy: J to move a byte to or from the buffer.
        buffer_rate: B/s of all buffers together.
        cell_area, tile_area: square metres of a pair of cells, and of what a tile has beside its cells.
        source: where the figures are from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    name: str
    title: str
    rows: PositiveInt
    columns: PositiveInt
    tiles: PositiveInt
    read: PositiveFloat
    cell_energy: NonNegativeFloat
    row_energy: NonNegativeFloat
    adcs: PositiveInt
    adc_rate: PositiveFloat
    adc_energy: NonNegativeFloat
    sum_energy: NonNegativeFloat
    buffer_energy: NonNegativeFloat
    buffer_rate: PositiveFloat
    cell_area: PositiveFloat
    tile_area: NonNegativeFloat
    source: str


_CHIPS = DataFolder("crossbars", CrossbarChip, "crossbar chip")
crossbar_chips, crossbar_chip = _CHIPS.readers()
"""Names of the chips that are here; a chip by name, or from a TOML file of the same form (`DataFolder.read`)."""
is_crossbar_chip = _CHIPS.describes
"""Whether a name or a path is that of a chip of crossbars (`DataFolder.describes`)."""
