"""What software reaches of a device's peaks: shares by number format, and a time for each kernel.

No program runs at a data sheet's figures. A share says how much of a peak well-made software reaches in long runs; the
time for each kernel is what a short one takes beyond its bytes and its arithmetic. Shares that a device lacks are
those of its family, whose figures `benchmarks/devices.py` derives from published measurements.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hasten import dtypes
from hasten.files import parse_toml
from hasten.hardware.quantity import Quantity, Seconds, Share

FAMILIES = "families.toml"
"""The file beside this one with the families' shares."""


class Achieved(BaseModel):
    """Shares of a device's peaks, each above 0 and at most 1.

    Args:
        bandwidth: of main memory's, by the format of what is read or written; a format that is not here has the share
            of the nearest in bits.
        product: of the arithmetic peak, in matrix products, by the format of the narrower operand: weights of few bits
            are multiplied in a wider format, whose peak this is a share of.
        convolution: of the arithmetic peak, in convolutions, likewise.
        attention: of the arithmetic peak, in the products within an attention operator.
        training: of the arithmetic peak, in the products of a training step, likewise.
        experts: of the bandwidth that other weights of the format have, for experts that tokens are routed to.
        kernel: seconds of each kernel of a compiled program beyond its bytes and its arithmetic, and the least of one
            that a framework launches.
        launch: seconds that an eager framework spends to start an operator, in `Device.launch_overhead`'s stead.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    bandwidth: dict[str, Share] = {}
    product: dict[str, Share] = {}
    convolution: dict[str, Share] = {}
    training: dict[str, Share] = {}
    attention: Share | None = None
    experts: Share | None = None
    kernel: Seconds | None = None
    launch: Seconds | None = None

    @field_validator("bandwidth", "product", "convolution", "training")
    @classmethod
    def _known(cls, table: dict[str, Quantity]) -> dict[str, Quantity]:
        for dtype in table:
            if dtype not in dtypes.BITS:
                raise ValueError(f"unknown number format {dtype!r}, expected one of {', '.join(dtypes.BITS)}")
        return {dtype: _at_most_one(share) for dtype, share in table.items()}

    @field_validator("experts", "attention")
    @classmethod
    def _share(cls, share: Quantity | None) -> Quantity | None:
        return None if share is None else _at_most_one(share)

    def over(self, family: Achieved) -> Achieved:
        """These figures, and the family's where there are none of these: a table is taken whole."""
        own = {name: value for name in type(self).model_fields if (value := getattr(self, name))}
        return family.model_copy(update=own)


def _at_most_one(share: Quantity) -> Quantity:
    if share > 1:
        raise ValueError(f"{share.text!r} is above 100 %: a share of a peak is at most all of it")
    return share


def of_format(table: Mapping[str, float], dtype: str) -> float:
    """The share of ``dtype``: its own, else that of the nearest format in bits; 1 where the table is empty.

    >>> of_format({"bf16": 0.8, "int4": 0.6}, "fp8")
    0.6
    """
    if dtype in table or not table:
        return float(table.get(dtype, 1.0))
    bits = dtypes.BITS[dtype]
    return float(table[min(table, key=lambda d: (abs(dtypes.BITS[d] - bits), dtypes.BITS[d]))])


class Family(BaseModel):
    """A kind of device whose members reach alike shares of their peaks.

    Args:
        title: for people.
        achieved: the shares.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    achieved: Achieved = Field(default_factory=Achieved)


@cache
def families() -> dict[str, Family]:
    """Name -> family."""
    text = (resources.files("hasten.hardware") / FAMILIES).read_text(encoding="utf-8")
    try:
        return {name: Family.model_validate(table) for name, table in parse_toml(text).items()}
    except ValidationError as error:  # pragma: no cover - the file is ours and tested
        raise RuntimeError(f"{FAMILIES} is broken: {error}") from error
