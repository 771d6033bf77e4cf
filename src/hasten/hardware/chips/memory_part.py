"""DRAM parts: timing in cycles of their clock, currents, how addresses spread over banks; data files, with sources."""

from __future__ import annotations

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from hasten.hardware.chips.data_folder import DataFolder
from hasten.kernels.dram_controller import check_times


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Timing(_Data):
    """Minimum distances between commands, in clock cycles; ``_s`` between bank groups, ``_l`` within one.

    Args:
        banks, groups: how many there are.
        rcd, rp, ras: activate to column, precharge to activate, activate to precharge.
        cl, cwl: column command to data, reading and writing.
        ccd_s, ccd_l, rrd_s, rrd_l: between columns, between activates.
        faw: window in which at most four activates fall.
        wr, wtr, rtp: end of written data to precharge and to a read; read to precharge.
        rfc, refi: a refresh, and how often one is due.
        burst: cycles of data of a column command.
    """

    banks: int = Field(ge=1, le=64)
    groups: int = Field(ge=1, le=64)
    rcd: PositiveInt
    cl: PositiveInt
    cwl: PositiveInt
    rp: PositiveInt
    ras: PositiveInt
    ccd_s: PositiveInt
    ccd_l: PositiveInt
    rrd_s: PositiveInt
    rrd_l: PositiveInt
    faw: PositiveInt
    wr: PositiveInt
    wtr: PositiveInt
    rtp: PositiveInt
    rfc: PositiveInt
    refi: PositiveInt
    burst: PositiveInt

    @model_validator(mode="after")
    def _bounded(self) -> Timing:
        check_times(self.model_dump())
        return self


class Current(_Data):
    """V, and A of one chip: activating and precharging, waiting closed and open, reading, writing, refreshing."""

    vdd: PositiveFloat
    idd0: NonNegativeFloat
    idd2n: NonNegativeFloat
    idd3n: NonNegativeFloat
    idd4r: NonNegativeFloat
    idd4w: NonNegativeFloat
    idd5: NonNegativeFloat


class MemoryPart(_Data):
    """A DRAM module.

    Args:
        name, title: short, and for people.
        clock: Hz.
        chips: that work in step.
        capacity: bytes of all together.
        row: bytes of a row of all chips.
        burst_bytes: of one column command.
        source: where the figures are from.
    """

    name: str
    title: str
    clock: PositiveFloat
    chips: PositiveInt
    capacity: PositiveInt
    row: PositiveInt
    burst_bytes: PositiveInt
    source: str
    timing: Timing
    current: Current

    def energies(self) -> dict[str, float]:
        """J of one command of all chips, from the difference of currents that it makes, and W of waiting.

        The current-based method of memory vendors' power notes: an activate with its precharge costs what IDD0 draws
        over waiting open, then closed; a read or write what its current draws over waiting open, for its burst.
        """
        c, t = self.current, self.timing
        scale = c.vdd * self.chips / self.clock
        activate = c.idd0 * (t.ras + t.rp) - c.idd3n * t.ras - c.idd2n * t.rp
        return {
            "activate": scale * activate,
            "read": scale * (c.idd4r - c.idd3n) * t.burst,
            "write": scale * (c.idd4w - c.idd3n) * t.burst,
            "refresh": scale * (c.idd5 - c.idd3n) * t.rfc,
            "open": c.vdd * self.chips * c.idd3n,
            "closed": c.vdd * self.chips * c.idd2n,
        }

    @property
    def bandwidth(self) -> float:
        """B/s at most."""
        return self.burst_bytes / self.timing.burst * self.clock


memory_parts, memory_part = DataFolder("memories", MemoryPart, "DRAM part").readers()
"""Names of the parts that are here; a part by name, or from a TOML file of the same form (`DataFolder.read`)."""
