"""Element by element, where torch does not tag the operator so; tagged ones need no handler."""

from __future__ import annotations

from hasten.workload.einsum import Op
from hasten.workload.operators.call import Call, register
from hasten.workload.operators.patterns import elementwise, moved


@register("aten::glu")
def _glu(call: Call) -> None:
    moved(call, Op.ELEMENTWISE, call["self"], map="glu", elements=call["self"].numel())


@register(
    "aten::floor_divide", "aten::trunc_divide", "aten::one_hot", "aten::heaviside", "aten::dropout", "aten::polar"
)
def _untagged(call: Call) -> None:
    """Element-wise, though torch does not tag it so."""
    elementwise(call)
