"""Fast Fourier transforms."""

from __future__ import annotations

import math

from hasten.workload.einsum import Op
from hasten.workload.operators.call import Call, register
from hasten.workload.operators.patterns import axes


@register("aten::_fft_r2c", "aten::_fft_c2c", "aten::_fft_c2r")
def _fft(call: Call) -> None:
    """A fast transform: log2(n) butterflies an element along the transformed dimensions."""
    x, output = call["self"], call.outputs[0]
    larger = x if x.numel() >= output.numel() else output
    points = math.prod(larger.shape[d] for d in call["dim"])
    stages = max(1, math.ceil(math.log2(max(2, points))))
    ranks = (*axes(larger.shape), ("stage", stages))
    names = [r for r, _ in axes(larger.shape)]
    call.emit(
        Op.REDUCE,
        ranks,
        [call.read(x, names, x.numel())],
        output,
        names,
        elements=output.numel(),
        map="butterfly",
        reduce="sum",
    )
