"""FPGAs as what a circuit is made of: DSP slices, block RAMs, lookup tables, flip-flops; data files, with sources."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError

from hasten.errors import HastenError
from hasten.files import named_path, parse_toml, read_text

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

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    title: str
    dsp: PositiveInt
    bram18: PositiveInt
    lut: PositiveInt
    ff: PositiveInt
    clock: PositiveFloat
    source: str


def fpga_boards() -> list[str]:
    """Names of the boards that are here."""
    folder = resources.files("hasten.hardware.chips") / "boards"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def fpga_board(name_or_path: str | Path) -> FpgaBoard:
    """A board by name (`fpga_boards`), or from a TOML file of the same form.

    Raises:
        HastenError: no such board or file, or a figure missing, misspelt or impossible.
    """
    name = str(name_or_path)
    if name in fpga_boards():
        text = (resources.files("hasten.hardware.chips") / "boards" / f"{name}.toml").read_text("utf-8")
    else:
        path = named_path(name, "the FPGA")
        if not path.is_file():
            raise HastenError(f"no FPGA is called {name!r}: give {', '.join(fpga_boards())}, or a .toml file")
        text = read_text(path, "the FPGA")
    try:
        data = parse_toml(text)
    except ValueError as error:
        raise HastenError(f"the FPGA {name} is not TOML: {error}") from None
    try:
        return FpgaBoard.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise HastenError(f"the FPGA {name}: {where}: {first['msg']}") from None
