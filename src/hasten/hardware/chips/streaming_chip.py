"""Chips that run whole sections of a graph at once, with three tiers of memory: data files, with sources."""

from __future__ import annotations

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from hasten.errors import HastenError
from hasten.hardware.chips.data_folder import DataFolder, NumberFormat


class StreamingChip(BaseModel):
    """Compute units and memory units in a mesh, fast memory beside them, and a large store behind that.

    Every figure is of one socket; `node` gives several as one chip, as tensor parallelism uses them.

    Args:
        name, title: short, and for people.
        compute_units: that multiply, or compute element by element.
        memory_units: scratchpads on the chip.
        unit_bytes: of one of them.
        flops: FLOP/s of all compute units.
        memory_bytes, bandwidth: of the fast memory, bytes and B/s.
        store_bytes, store_bandwidth: of the store; B/s at which it fills the fast memory.
        host_command: seconds of each of the three commands of a host that launches a section: loading its program,
            loading its arguments, executing it.
        scheduled_launch: seconds from section to section where the chip walks through a schedule that it was given.
        sockets: that are side by side.
        dtype: format of numbers.
        source: where the figures are from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    name: str
    title: str
    compute_units: PositiveInt
    memory_units: NonNegativeInt
    unit_bytes: PositiveInt
    flops: PositiveFloat
    memory_bytes: PositiveInt
    bandwidth: PositiveFloat
    store_bytes: NonNegativeInt
    store_bandwidth: PositiveFloat
    host_command: NonNegativeFloat
    scheduled_launch: NonNegativeFloat
    sockets: PositiveInt = 1
    dtype: NumberFormat = "bf16"
    source: str = ""

    @property
    def on_chip(self) -> int:
        """Bytes of all memory units."""
        return self.memory_units * self.unit_bytes

    def node(self, sockets: int) -> StreamingChip:
        """So many sockets as one chip: links between them cost nothing here.

        Raises:
            HastenError: none, or a part of one.
        """
        if not isinstance(sockets, int) or sockets < 1:
            raise HastenError(f"a node of {sockets} sockets of {self.name} is none: give at least 1")
        times = (
            "compute_units",
            "memory_units",
            "flops",
            "memory_bytes",
            "bandwidth",
            "store_bytes",
            "store_bandwidth",
        )
        changed = {name: getattr(self, name) * sockets for name in times} | {"sockets": self.sockets * sockets}
        return type(self).model_validate(self.model_dump() | changed)


streaming_chips, streaming_chip = DataFolder("streaming", StreamingChip, "streaming chip").readers()
"""Names of the chips that are here; a chip by name, or from a TOML file of the same form (`DataFolder.read`)."""
