"""Small networks that were really synthesised, with what the tools reported: for judging estimates of circuits.

Twelve designs of wa-hls4ml (arXiv 2511.05615): hls4ml, Vitis 2023.2, Alveo U250 at 200 MHz, dense layers with ReLU
between, strategy Resource. Each layer's multipliers are used ``reuse`` times; hls4ml takes the nearest reuse that its
engine can have (`hasten.hardware.hls.reuse`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from hasten.hardware.hls.reuse import nearest_reuse


class Synthesis(NamedTuple):
    """A network of dense layers, and its report.

    Args:
        widths: of the input and of each layer.
        bits: of a number.
        reuse: that was asked for.
        cycles: best latency.
        bram: block RAMs of 36 Kb; 0.5 is one of 18.
        dsp, ff, lut: after synthesis.
    """

    widths: tuple[int, ...]
    bits: int
    reuse: int
    cycles: int
    bram: float
    dsp: int
    ff: int
    lut: int


SYNTHESES = (
    Synthesis((24, 56, 72), 8, 1024, 2355, 1, 5, 9773, 14653),
    Synthesis((96, 72, 72), 6, 1024, 2019, 1, 0, 14031, 20269),
    Synthesis((96, 72, 72), 8, 1024, 2019, 1, 12, 13816, 21675),
    Synthesis((96, 72, 72), 8, 4093, 8643, 3, 3, 13838, 18394),
    Synthesis((96, 72, 72), 16, 1024, 2019, 1, 12, 13816, 25650),
    Synthesis((96, 72, 72), 16, 4093, 8643, 3, 3, 13838, 20724),
    Synthesis((96, 72, 80), 2, 1024, 2307, 4, 0, 14163, 17994),
    Synthesis((96, 72, 80), 16, 2047, 3747, 1.5, 7, 14138, 25339),
    Synthesis((96, 72, 88), 8, 1024, 1947, 1, 14, 14449, 22955),
    Synthesis((104, 48, 104, 104), 4, 1024, 2917, 10, 0, 24155, 32468),
    Synthesis((104, 48, 104, 8), 4, 4093, 10821, 5, 0, 20362, 24794),
    Synthesis((104, 48, 112, 120), 4, 2047, 6597, 2.5, 0, 25752, 33554),
)


class RuleOfReuse(NamedTuple):
    """What follows from widths, bits and reuse alone: cycles from input to result, and DSP slices."""

    cycles: int
    dsp: int


def rule_of_reuse(widths: Sequence[int], bits: int, reuse: int) -> RuleOfReuse:
    """Cycles and DSP slices of dense layers by hls4ml: found on published syntheses, exact on all of `SYNTHESES`.

    A layer takes as many cycles as its valid reuse, and all of them 2 a layer less 1 beside; a multiplier is a slice
    from 8 bits on, and lookup tables up to 6. (7 bits are not among the published designs; a slice is said.)
    """
    layers = list(itertools.pairwise(widths))
    valid = [nearest_reuse(inputs, outputs, reuse) for inputs, outputs in layers]
    slices = sum(inputs * outputs // r for (inputs, outputs), r in zip(layers, valid, strict=True))
    return RuleOfReuse(sum(valid) + 2 * len(layers) - 1, slices if bits > 6 else 0)
