"""Arrays of equal cores that share a memory on the chip: data files, with sources."""

from __future__ import annotations

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from hasten.hardware.chips.data_folder import DataFolder, NumberFormat


class CoreArray(BaseModel):
    """Cores that multiply, one memory for what passes from stage to stage, and one way off the chip.

    Beside them every core has room for the tiles that it works on, two of each, and exponentials, sums of rows and the
    like are done by units that keep up with the cores.

    Args:
        name, title: short, and for people.
        cores: how many.
        macs: multiply-accumulates of one core in a cycle.
        on_chip: bytes that hold whole tensors between stages, and weights that are read again at each tile.
        bandwidth: B/s to memory off the chip.
        clock: Hz.
        dtype: format of numbers.
        switch: cycles from the end of a stage to the begin of the next: reading an instruction.
        stall: cycles that a core which does not read ahead waits for each word of its operands.
        mac_energy, byte_energy: J of a multiply-accumulate and of a byte from off the chip; 0 where nobody knows.
        source: where the figures are from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    name: str
    title: str
    cores: PositiveInt = Field(le=64)
    macs: PositiveInt
    on_chip: NonNegativeInt
    bandwidth: PositiveFloat
    clock: PositiveFloat
    dtype: NumberFormat = "int16"
    switch: NonNegativeInt = 0
    stall: NonNegativeFloat = 0.0
    mac_energy: NonNegativeFloat = 0.0
    byte_energy: NonNegativeFloat = 0.0
    source: str = ""

    @property
    def bytes_a_cycle(self) -> float:
        """From off the chip."""
        return self.bandwidth / self.clock


_ARRAYS = DataFolder("cores", CoreArray, "array of cores")
core_arrays, core_array = _ARRAYS.readers()
"""Names of the arrays that are here; an array by name, or from a TOML file of the same form (`DataFolder.read`)."""
is_core_array = _ARRAYS.describes
"""Whether a name or a path is that of an array of cores (`DataFolder.describes`)."""
