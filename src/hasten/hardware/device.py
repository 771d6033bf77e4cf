"""What a workload runs on: compute units, memory levels, links, each figure with a unit and a source.

A device is data: a TOML file that pydantic checks. Nothing in it is executed. docs/devices.md shows how
to write one.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import re
from collections.abc import Callable
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hasten import dtypes
from hasten.errors import HastenError
from hasten.exports import Written, decorated
from hasten.files import named_path, parse_toml, read_text, write_aside
from hasten.hardware.achieved import Achieved, families
from hasten.hardware.curve import Curve
from hasten.hardware.forms import forms
from hasten.hardware.quantity import (
    Bandwidth,
    Bytes,
    EnergyPerByte,
    EnergyPerOperation,
    Power,
    Quantity,
    Rate,
    Seconds,
    WeightRate,
)

__all__ = [
    "CallCost",
    "ComputeUnit",
    "Device",
    "Link",
    "MemoryLevel",
    "devices",
    "load_device",
    "one_of_each",
    "read_device",
]

Kind = Literal["contraction", "vector"]
_NOTHING = Quantity(0.0, "0 s", "not charged")


def packed_key(bits: float, rounded: str = "") -> str:
    """How `Device.packed` names products of weights of so many bits, with rows that are rounded to a format.

    Weights in blocks count with their scales:

    >>> packed_key(4), packed_key(6.5625, "int8")
    ('4', '6.5625 int8')
    """
    return f"{bits:g} {rounded}" if rounded else f"{bits:g}"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class ComputeUnit(_Part):
    """Something that computes.

    Args:
        name: unique in its device.
        runs: which Einsums it executes: ``contraction`` (matrix products, convolutions), ``vector``
            (everything with a scalar operation a point), or both.
        peak: number format -> FLOP/s; a multiply-add is two.
        energy: number format -> J/FLOP.
    """

    name: str
    runs: tuple[Kind, ...] = Field(min_length=1)
    peak: dict[str, Rate] = Field(min_length=1)
    energy: dict[str, EnergyPerOperation] = {}

    @field_validator("peak", "energy")
    @classmethod
    def _known_formats(cls, table: dict[str, Quantity]) -> dict[str, Quantity]:
        for dtype in table:
            if dtype not in dtypes.BITS:
                raise ValueError(f"unknown number format {dtype!r}, expected one of {', '.join(dtypes.BITS)}")
        return table


class MemoryLevel(_Part):
    """A level of memory: all of the device's instances of it together.

    Args:
        name: e.g. ``L2`` or ``HBM3``.
        capacity: bytes.
        bandwidth: B/s towards the compute units; of reading alone where ``write_bandwidth`` is given.
        write_bandwidth: B/s from the compute units; None where both directions share one figure.
        energy: J/B.
        keeps: whether what one kernel leaves there is there for the next: a cache does, the scratchpad
            of a GPU's core does not.
    """

    name: str
    capacity: Bytes
    bandwidth: Bandwidth
    write_bandwidth: Bandwidth | None = None
    energy: EnergyPerByte
    keeps: bool = True

    @property
    def writing(self) -> float:
        """B/s of writing."""
        return float(self.bandwidth if self.write_bandwidth is None else self.write_bandwidth)


class Link(_Part):
    """A connection to other devices or to the host: B/s and seconds."""

    name: str
    bandwidth: Bandwidth
    latency: Seconds


class CallCost(_Part):
    """What a call of a network takes beyond what it computes.

    Args:
        call: seconds of a call, whatever the network computes.
        step: seconds of each layer in it, however small, but for convolutions.
        convolution: seconds of each convolution in it, however small.
    """

    call: Seconds
    step: Seconds = _NOTHING
    convolution: Seconds = _NOTHING


class Device(_Part):
    """A chip, or a machine: everything a cost model asks for, in SI.

    Args:
        name: what a user writes to choose it.
        title: for people.
        kind: ``cpu``, ``gpu``, ``fpga`` or ``asic``.
        family: the kind of device whose shares of the peaks are this one's too (`hasten.hardware.achieved`); empty
            where none is known.
        achieved: shares of the peaks that are its own.
        count: devices that work together; every figure is of one of them.
        compute: compute units.
        memory: memory levels, innermost first; the last is the main memory.
        links: connections.
        launch_overhead: seconds that an eager framework spends to start one operator.
        module_overhead: seconds that a call of a module adds where the host's own work is not hidden.
        view_overhead: seconds of looking at a tensor in another shape, likewise.
        fork_overhead: seconds to hand a kernel to the threads and wait for the last, within a compiled
            program.
        idle_power, max_power: watts.
        calls: what runs a network (``eager``, the name of an engine, or of a change to it) -> what its calls take.
        packed: bits of a weight, and what rows are rounded to where they are (`packed_key`) -> weights a second that a
            product with one row reads and unpacks.
        packed_row: the same -> time of each further row, as a share of the first one's.
        curves: measured times of operators, where the device was probed.
        identity: what a probe found out about this machine.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    title: str
    kind: Literal["gpu", "cpu", "fpga", "asic"]
    family: str = ""
    achieved: Achieved = Field(default_factory=Achieved)
    count: int = Field(default=1, ge=1)
    compute: tuple[ComputeUnit, ...] = Field(min_length=1)
    memory: tuple[MemoryLevel, ...] = Field(min_length=1)
    links: tuple[Link, ...] = ()
    launch_overhead: Seconds
    module_overhead: Seconds = _NOTHING
    view_overhead: Seconds = _NOTHING
    fork_overhead: Seconds = _NOTHING
    idle_power: Power
    max_power: Power
    calls: dict[str, CallCost] = {}
    packed: dict[str, WeightRate] = {}
    packed_row: dict[str, float] = {}
    curves: tuple[Curve, ...] = ()
    identity: dict[str, str] = {}

    def calls_of(self, way: str) -> CallCost | None:
        """What calls of networks take that are run in a way: a name and settings, of which the name alone may be known.

        None where neither is.
        """
        return self.calls.get(way) or self.calls.get(way.partition(" ")[0])

    @model_validator(mode="after")
    def _consistent(self) -> Device:
        names = [*(unit.name for unit in self.compute), *(level.name for level in self.memory)]
        if len(names) != len(set(names)):
            raise ValueError("compute units and memory levels must have different names")
        largest = max(float(level.capacity) for level in self.memory)
        if self.main_memory.capacity < largest or not self.main_memory.keeps:
            raise ValueError("memory: levels must be listed innermost first, main memory last")
        for kind in ("contraction", "vector"):
            if not any(kind in unit.runs for unit in self.compute):
                raise ValueError(f"compute: no unit runs {kind!r}")
        if self.idle_power > self.max_power:
            raise ValueError("idle_power: is above max_power")
        if self.family and self.family not in families():
            raise ValueError(f"family: {self.family!r} is none, expected one of {', '.join(families())}")
        if self.count > 1 and not self.links:
            raise ValueError("links: several devices need a link between them, add [[links]]")
        return self

    @property
    def main_memory(self) -> MemoryLevel:
        """The outermost level."""
        return self.memory[-1]

    @property
    def on_chip(self) -> float:
        """Bytes of the outermost level inside main memory; 0 where there is none."""
        return float(self.memory[-2].capacity) if len(self.memory) > 1 else 0.0

    @property
    def reached(self) -> Achieved:
        """Shares of the peaks: its own, and its family's where it has none. A probed device's figures are reached."""
        if self.curves or not self.family:
            return self.achieved
        return self.achieved.over(families()[self.family].achieved)

    @cached_property
    def curve_table(self) -> dict[tuple[str, str], Curve]:
        """(operation, dtype) -> the measured curve."""
        return {(c.operation, c.dtype): c for c in self.curves}

    def unit(self, runs: Kind, dtype: str) -> tuple[ComputeUnit, float, str]:
        """The unit that does work of this kind and format soonest.

        A format that no unit computes in is widened to the narrowest one that holds its values; where no
        format does (fp32 on a chip of integers), the widest there is stands in.

        Returns:
            The unit, its FLOP/s, and the format it computes in.
        """
        choices = [(u, float(rate), d) for u in self.compute if runs in u.runs for d, rate in u.peak.items()]
        exact = [c for c in choices if c[2] == dtype]
        if exact:
            return max(exact, key=lambda c: c[1])
        wider = [c for c in choices if _holds(c[2], dtype)]
        if wider:
            return min(wider, key=lambda c: (dtypes.BITS[c[2]], -c[1]))
        return max(choices, key=lambda c: (dtypes.BITS[c[2]], c[1]))

    def save(self, path: str | Path) -> None:
        """Writes the device as TOML: aside first, then renamed, so that no reader sees half a file.

        Raises:
            HastenError: the file cannot be written.
        """
        write_aside(
            path, to_toml(self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)), "device file"
        )


def _holds(wide: str, narrow: str) -> bool:
    """Whether format ``wide`` is at least as wide, and takes fractions where ``narrow`` has them."""
    floats = ("fp", "bf", "tf", "complex")
    if narrow.startswith(floats) and not wide.startswith(floats):
        return False
    return dtypes.BITS[wide] >= dtypes.BITS[narrow]


@cache
def _catalogue() -> dict[str, str]:
    """Name of a device -> the file of the catalogue that describes it."""
    folder = resources.files("hasten.hardware") / "catalogue"
    files = [f.name for f in folder.iterdir() if f.name.endswith(".toml")]
    return {name: file for file in files for name in _described(file)}


@cache
def _described(file: str) -> dict[str, dict[str, Any]]:
    """Name -> the data of each device that a file of the catalogue describes."""
    return forms(parse_toml((resources.files("hasten.hardware") / "catalogue" / file).read_text(encoding="utf-8")))


def devices() -> list[str]:
    """Names of the devices in the catalogue, each a name for `load_device`.

    >>> "h100" in devices()
    True
    """
    return sorted(_catalogue())


def one_of_each() -> list[str]:
    """A few names of `devices`, one of each kind, for a first look.

    >>> set(one_of_each()) <= set(devices())
    True
    """
    return ["h100", "a100", "rtx4090", "m2", "orin", "pi5", "cpu2", "u280"]


_MADE: dict[str, Callable[[], Device]] = {}
_Maker = TypeVar("_Maker", bound=Callable[..., "Device"])


def named(name: str) -> Callable[[_Maker], _Maker]:
    """Makes `load_device` call the decorated function for ``name``: a device that no file describes.

    The function takes no arguments, or none that it must be given.
    """

    def add(make: _Maker) -> _Maker:
        _MADE[name] = make
        return make

    return add


@cache
def _folder() -> dict[str, Written]:
    """Names that the files of this folder make devices for, and which file: it is imported for its device alone."""
    return decorated(str(__package__), named.__name__)


_SEVERAL = re.compile(r"([1-9][0-9]{0,4})x[ -]?(\S.*)")


def load_device(name_or_path: str | Path) -> Device:
    """A device of the catalogue, one described in a TOML file, or this machine; or several of one.

    Args:
        name_or_path: a name that `devices` lists, a path, or ``here`` for this machine, probed. ``8x h100`` is eight
            that share a model's work over their first link.

    Raises:
        HastenError: no such device or file, not TOML, a missing or unknown field, a figure without a
            unit or a source, with the wrong unit, negative or not a number, several of one without a link. The
            message names the file, the field and what is expected.

    >>> load_device("8x h100").count
    8
    """
    name = str(name_or_path)
    if isinstance(name_or_path, str) and (several := _SEVERAL.fullmatch(name)) and name not in devices():
        return several_of(load_device(several[2]), int(several[1]))
    if name in _MADE:
        return _MADE[name]()
    if isinstance(name_or_path, str) and name in devices():
        return _of_catalogue(name)
    if name in _folder():
        importlib.import_module(_folder()[name].module)
        return _MADE[name]()
    path = named_path(name_or_path, "device file")
    if not path.is_file():
        near = difflib.get_close_matches(name.lower(), devices(), 4, 0.5)
        listed = f"{', '.join(dict.fromkeys((*near, 'h100')))} (all: hasten.devices())"
        if path.suffix == ".toml" or os.sep in name:
            raise HastenError(f"no device file {name}: give a path to a TOML file, here, or a name such as {listed}")
        raise HastenError(f"no device is called {name!r}: give here, a name such as {listed}, or a .toml file")
    text = read_text(path, "device file")
    return read_device(text, name)


def _of_catalogue(name: str) -> Device:
    file = _catalogue()[name]
    return _device(_described(file)[name], file)


def several_of(device: Device, count: int) -> Device:
    """``count`` of ``device``, which share the work over its first link.

    Raises:
        HastenError: it has no link, or is several already.
    """
    if device.count > 1:
        raise HastenError(f"{device.name} is several devices already: give one number")
    if count > 1 and not device.links:
        raise HastenError(f"{device.name} has no link to others of its kind: describe one under [[links]] in its file")
    if count == 1:
        return device
    renamed = {"name": f"{count}x-{device.name}", "title": f"{count} of {device.title}", "count": count}
    return device.model_copy(update=renamed)


def read_device(text: str, origin: str = "device") -> Device:
    """A device from the text of a TOML file; ``origin`` names it in messages.

    Raises:
        HastenError: as `load_device`.
    """
    try:
        data = parse_toml(text)
    except ValueError as error:
        raise HastenError(f"device file {origin} is not TOML: {error}") from error
    try:
        described = forms(data)
    except ValueError as error:
        raise HastenError(f"device file {origin}: {error}") from error
    if len(described) != 1:
        raise HastenError(f"device file {origin} describes {len(described)} devices: give each a file of its own")
    return _device(next(iter(described.values())), origin)


def _device(data: dict[str, Any], origin: str) -> Device:
    try:
        return Device.model_validate(data)
    except ValidationError as error:
        raise HastenError(f"device file {origin}: {_first_problem(error)}") from error


def _first_problem(error: ValidationError) -> str:
    """The first thing wrong, in one line: the field, then what is expected."""
    problem = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{field} is missing: add this field"
    if problem["type"] == "extra_forbidden":
        return f"{field} is not a field of a device: remove it or correct its spelling"
    message = problem["msg"].removeprefix("Value error, ").replace("\n", " ")
    return f"{field}: {message}" if field else message


def to_toml(data: dict[str, Any]) -> str:
    """``data`` as TOML: plain fields first, then tables, then arrays of tables."""
    lines: list[str] = []
    _write(lines, data, ())
    return "\n".join(lines).strip() + "\n"


def _write(lines: list[str], table: dict[str, Any], path: tuple[str, ...]) -> None:
    later: list[tuple[str, Any]] = []
    for key, value in table.items():
        if _inline(value):
            lines.append(f"{_key(key)} = {_value(value)}")
        else:
            later.append((key, value))
    for key, value in later:
        inner = (*path, _key(key))
        if isinstance(value, dict):
            lines.extend(("", f"[{'.'.join(inner)}]"))
            _write(lines, value, inner)
        else:
            for item in value:
                lines.extend(("", f"[[{'.'.join(inner)}]]"))
                _write(lines, item, inner)


def _inline(value: object) -> bool:
    if isinstance(value, dict):
        return set(value) == {"value", "source"}
    return not (isinstance(value, list) and value and isinstance(value[0], dict))


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)
