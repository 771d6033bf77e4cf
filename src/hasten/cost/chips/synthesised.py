"""Circuits that were really synthesised and run, as a table: what surrogates of resources learn from.

The table that comes with hasten was made by `scripts/synthesise_designs.py` with the tools that each row names. A
design that a tool gave up is in it too, without figures.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from hasten.cost.estimator import AnalyticEstimator
from hasten.errors import HastenError
from hasten.files import read_text
from hasten.hardware.hls.engines import (
    EngineDesign,
    EngineLayer,
    engine_cycles,
    engine_interval,
    engine_outputs,
    random_numbers,
    read_design,
)
from hasten.hardware.hls.reuse import nearest_reuse
from hasten.hardware.hls.synthesis import SynthesisFailed, hardware_tool, simulate, synthesise

TARGETS = {"lut": "", "ff": "", "dsp": "", "bram": "", "cycles": "cycles", "interval": "cycles"}
"""What is known of a circuit, with units."""
Outcome = Literal["done", "late", "failed"]
_OUTCOMES: tuple[Outcome, ...] = ("done", "late", "failed")
SHIPPED = Path(__file__).parent / "synthesised_designs.csv"
PROCESSOR_SECONDS = 15.0
"""That a synthesis may take: what needs more is a failure, as of a tool that never ends."""
_COLUMNS = (
    "design", "asked", "seed", "outcome", "lut", "ff", "dsp", "bram", "cycles", "interval", "seconds", "yosys",
    "iverilog",
)  # fmt: skip
_INPUTS = 4  # that a circuit is run on, and compared bit for bit


@dataclass(frozen=True)
class SynthesisedDesign:
    """A circuit, and what tools said of it.

    Args:
        design: with valid reuse factors.
        asked: the reuse that was asked for.
        seed: of its numbers (`random_numbers`).
        outcome: ``done``; ``late`` where the synthesis took longer than `PROCESSOR_SECONDS`; or ``failed``.
        values: by `TARGETS`; empty where it is not done.
        seconds: of a processor, that the synthesis took.
        yosys, iverilog: versions.
    """

    design: EngineDesign
    asked: int
    seed: int
    outcome: Outcome
    values: dict[str, float]
    seconds: float
    yosys: str
    iverilog: str

    def row(self) -> list[str]:
        """As a line of the table."""
        figures = [f"{self.values[t]:g}" if self.values else "" for t in TARGETS]
        return [str(self.design), str(self.asked), str(self.seed), self.outcome, *figures, f"{self.seconds:.2f}",
                self.yosys, self.iverilog]  # fmt: skip


def table_text(rows: Sequence[SynthesisedDesign]) -> str:
    """A table as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(r.row() for r in rows)
    return out.getvalue()


def read_synthesised(path: str | Path) -> list[SynthesisedDesign]:
    """The rows of a table.

    Raises:
        HastenError: no such file, another one, or a row that cannot be.
    """
    text = read_text(path, "the table of circuits")
    try:
        head, *lines = list(csv.reader(io.StringIO(text)))
    except (csv.Error, ValueError):
        head, lines = [], []
    if tuple(head) != _COLUMNS:
        raise HastenError(f"{path} is no table of circuits: its first line is {','.join(_COLUMNS)}")
    found = []
    for number, line in enumerate(lines, 2):
        try:
            found.append(_read_row(line))
        except HastenError as error:
            raise HastenError(f"{path}, line {number}: {error}") from None
        except ValueError:
            raise HastenError(f"{path}, line {number}: a figure is missing or no number") from None
    return found


def _read_row(line: Sequence[str]) -> SynthesisedDesign:
    if len(line) != len(_COLUMNS):
        raise ValueError
    text, asked, seed, said, *figures, seconds, yosys, iverilog = line
    outcome = next((o for o in _OUTCOMES if o == said), None)
    if outcome is None:
        raise HastenError(f"a synthesis is done, late or failed, not {said[:20]!r}")
    values = {t: float(v) for t, v in zip(TARGETS, figures, strict=True)} if outcome == "done" else {}
    if not all(0 <= v < float("inf") for v in values.values()):
        raise HastenError("a figure is below 0 or not finite")
    return SynthesisedDesign(
        read_design(text),
        int(asked),
        int(seed),
        outcome,
        values,
        float(seconds),
        yosys,
        iverilog,
    )


@lru_cache(maxsize=1)
def synthesised_designs() -> tuple[SynthesisedDesign, ...]:
    """The circuits that come with hasten."""
    return tuple(read_synthesised(SHIPPED))


def synthesised(
    design: EngineDesign, asked: int, seed: int, *, again: bool = False, seconds: float = 3600.0
) -> SynthesisedDesign:
    """Synthesises and runs a circuit with random numbers; its results are compared with the model's bit for bit.

    Args:
        design: with valid reuse factors.
        asked: for the table.
        seed: of the numbers, and of the inputs it is run on.
        again: whether it is synthesised though the cache has it.
        seconds: by the clock, that each tool may take.

    Raises:
        HastenError: a tool is not installed.
        SynthesisFailed: the circuit computes something else, which no circuit may.
    """
    numbers = random_numbers(design, seed)
    half = 1 << (design.bits - 1)
    inputs = torch.from_numpy(np.random.RandomState(seed).randint(-half, half, (_INPUTS, design.given), dtype=np.int64))
    ran = simulate(design, numbers, inputs, seconds=seconds)
    if not torch.equal(ran.outputs, engine_outputs(design, numbers, inputs)):
        raise SynthesisFailed(f"{design} computes something else than its model does")
    outcome: Outcome = "done"
    values: dict[str, float] = {}
    taken, yosys = PROCESSOR_SECONDS, hardware_tool("yosys").version
    try:
        report = synthesise(design, numbers, seconds=seconds, processor_seconds=PROCESSOR_SECONDS, again=again)
    except SynthesisFailed as error:
        outcome = "late" if error.late else "failed"
    else:
        taken = report.seconds
        values = {"lut": report.lut, "ff": report.ff, "dsp": report.dsp, "bram": report.bram,
                  "cycles": ran.cycles, "interval": ran.interval}  # fmt: skip
    return SynthesisedDesign(design, asked, seed, outcome, values, taken, yosys, ran.tool)


_VARIANTS = 4
_MOST_MULTIPLIERS = 40  # of most designs, so that thousands are synthesised in hours
_DEPTHS = (1, 2, 2, 2, 2, 3, 3, 3, 4)


def random_designs(seed: int = 0) -> Iterator[tuple[EngineDesign, int]]:
    """Designs without end, the same for the same seed, with the reuse that was asked for: four of each structure.

    Dense networks of 1 to 4 layers of 4 to 16, and convolutions with a dense layer; 2 to 8 bits. Every tenth design is
    asked to use its multipliers 1 to 4 times, so that some are more than a tool does in its time.
    """
    random = np.random.RandomState(seed)  # its stream never changes, and the table holds what it made
    known: set[EngineDesign] = set()
    structures: set[str] = set()
    number = 0
    while True:
        shape = _structure(random)
        made = 0
        for _ in range(50):
            large = (number + made) % 10 == 9
            bits, asked = (
                int(random.randint(2, 9)),
                round(2.0 ** float(random.uniform(0, 2) if large else random.uniform(1, 7))),
            )
            layers = [
                EngineLayer(i, o, nearest_reuse(i * k[0] * k[1], o, asked), "relu" if relu else "linear", size, k)
                for i, o, relu, size, k in shape
            ]
            design = EngineDesign(tuple(layers), bits)
            multipliers = sum(layer.multipliers for layer in design.layers)
            if design in known or multipliers > (4096 if large else _MOST_MULTIPLIERS):
                continue
            if not made and design.structure in structures:
                break
            structures.add(design.structure)
            known.add(design)
            made += 1
            yield design, asked
            if made == _VARIANTS:
                break
        number += made


_Shape = list[tuple[int, int, bool, tuple[int, int], tuple[int, int]]]


def _structure(random: np.random.RandomState) -> _Shape:
    """Layers as (inputs, outputs, ReLU, map, kernel)."""
    if random.randint(6) == 0:
        flat = bool(random.randint(2))
        size = (1, int(random.randint(6, 13))) if flat else (int(random.randint(3, 6)), int(random.randint(3, 6)))
        kernel = (1, int(random.randint(2, 4))) if flat else (2, int(random.randint(2, 4)))
        channels, filters = int(random.randint(1, 4)), int(random.randint(2, 5))
        results = filters * (size[0] - kernel[0] + 1) * (size[1] - kernel[1] + 1)
        return [
            (channels, filters, True, size, kernel),
            (results, int(random.randint(2, 7)), False, (1, 1), (1, 1)),
        ]
    depth = _DEPTHS[random.randint(len(_DEPTHS))]
    widths = [int(w) for w in random.choice((4, 5, 6, 8, 10, 12, 16), depth + 1)]
    relus = [bool(random.randint(4)) for _ in range(depth)]
    return [(i, o, r, (1, 1), (1, 1)) for i, o, r in zip(widths[:-1], widths[1:], relus, strict=True)]


@dataclass(frozen=True)
class DesignSplit:
    """Circuits parted by structure: no network is on two sides with another reuse or number of bits.

    Args:
        train, test: circuits.
    """

    train: tuple[SynthesisedDesign, ...]
    test: tuple[SynthesisedDesign, ...]


def split_by_structure(rows: Sequence[SynthesisedDesign], share: float = 0.7, seed: int = 0) -> DesignSplit:
    """A random share of the structures, of each kind and depth alike, to learn from; the others are asked.

    Raises:
        HastenError: too few structures.
    """
    structures = sorted({r.design.structure for r in rows})
    np.random.RandomState(seed).shuffle(structures)
    structures.sort(key=lambda text: (text.count(";"), "conv" in text))  # keeps the order of equals
    if len(structures) < 4:
        raise HastenError("circuits of at least four structures are parted: synthesise more")
    # A staircase through the sorted ones: every stretch gives its share.
    chosen = {s for i, s in enumerate(structures) if int((i + 1) * share) > int(i * share)}
    return DesignSplit(
        tuple(r for r in rows if r.design.structure in chosen),
        tuple(r for r in rows if r.design.structure not in chosen),
    )


def split_by_depth(rows: Sequence[SynthesisedDesign], deepest: int = 3) -> DesignSplit:
    """Networks of up to ``deepest`` layers to learn from; deeper ones are asked.

    Raises:
        HastenError: one side is empty.
    """
    return _split_above(rows, lambda design: len(design.layers), deepest, "layers")


def split_by_width(rows: Sequence[SynthesisedDesign], widest: int = 12) -> DesignSplit:
    """Networks whose layers have up to ``widest`` inputs and outputs to learn from; wider ones are asked.

    Raises:
        HastenError: one side is empty.
    """
    return _split_above(rows, lambda design: max(max(la.inputs, la.outputs) for la in design.layers), widest, "wide")


def _split_above(
    rows: Sequence[SynthesisedDesign], size: Callable[[EngineDesign], int], most: int, unit: str
) -> DesignSplit:
    small, large = (tuple(r for r in rows if (size(r.design) > most) == above) for above in (False, True))
    if not small or not large:
        raise HastenError(f"there are no circuits on both sides of {most} {unit}: synthesise more")
    return DesignSplit(small, large)


def known_values(rows: Sequence[SynthesisedDesign]) -> dict[EngineDesign, dict[str, float] | None]:
    """Design -> values by target, None of one that was given up: what a surrogate is fitted to."""
    return {r.design: r.values or None for r in rows}


def exact_rule(design: EngineDesign) -> dict[str, float]:
    """What needs no learning: cycles and interval of our engines, and their DSP slices.

    Yosys makes a slice of a product from 9 bits on, which is of two numbers of 5. Where every weight of a layer is used
    once, in one cycle, some products with constants are shifts and sums, and there are fewer slices than is said.
    """
    slices = sum(layer.multipliers for layer in design.layers) if design.bits >= 5 else 0
    return {"cycles": engine_cycles(design), "interval": engine_interval(design), "dsp": slices}


def exact_estimator() -> AnalyticEstimator[EngineDesign]:
    """`exact_rule` as an estimator, valid where no layer's weights are used but once."""
    return AnalyticEstimator(
        exact_rule,
        {t: TARGETS[t] for t in ("cycles", "interval", "dsp")},
        lambda design: all(layer.reuse > 1 for layer in design.layers),
    )


def resynthesised(
    rows: Sequence[SynthesisedDesign], count: int, seed: int = 0, *, seconds: float = 120.0
) -> tuple[int, int]:
    """Synthesises and runs a random few again, whatever the cache has: how many say the same, of how many.

    Rows of other versions of Yosys are left out. A tool that fails or hangs this time says nothing of them.

    Args:
        seconds: by the clock, that each tool may take for a circuit.

    Raises:
        HastenError: a tool is not installed, or no row is of its version.
        SynthesisFailed: a tool failed or took too long, or see `synthesised`.
    """
    hardware_tool("iverilog")
    version = hardware_tool("yosys").version
    mine = [r for r in rows if r.yosys == version and r.values]
    if not mine:
        others = ", ".join(sorted({r.yosys for r in rows}))
        raise HastenError(f"no circuit of the table is of {version}: there are {others}")
    chosen = np.random.RandomState(seed).permutation(len(mine))[:count]
    same = 0
    for row in (mine[i] for i in chosen):
        new = synthesised(row.design, row.asked, row.seed, again=True, seconds=seconds)
        if new.outcome != "done":
            late = new.outcome == "late"
            raise SynthesisFailed(f"{version} {'took too long' if late else 'failed'} this time on {row.design}", late)
        same += new.values == row.values
    return same, len(chosen)


__all__ = [
    "PROCESSOR_SECONDS", "SHIPPED", "TARGETS", "DesignSplit", "SynthesisedDesign", "exact_estimator",
    "exact_rule", "known_values",
    "random_designs", "read_synthesised", "resynthesised", "split_by_depth", "split_by_structure", "split_by_width",
    "synthesised",
    "synthesised_designs", "table_text",
]  # fmt: skip
