"""FPGAs as what a circuit is made of: DSP slices, block RAMs, lookup tables, flip-flops; data files, with sources."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from hasten.hardware.chips.data_folder import DataFolder

RESOURCES = ("dsp", "bram18", "lut", "ff")


class FpgaBoard(BaseModel):
    """An FPGA.

    Args:
        name, title: short, and for people.
        dsp: DSP slices.
        bram18: block RAMs of 18 Kb.
        lut, ff: lookup tables of six inputs, and flip-flops.
        clock: Hz that circuits are built for.
        source: where the figures are from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    name: str
    title: str
    dsp: PositiveInt
    bram18: PositiveInt
    lut: PositiveInt
    ff: PositiveInt
    clock: PositiveFloat
    source: str


fpga_boards, fpga_board = DataFolder("boards", FpgaBoard, "FPGA").readers()
"""Names of the boards that are here; a board by name, or from a TOML file of the same form (`DataFolder.read`)."""
