"""What torch's own counter (`torch.utils.flop_counter.FlopCounterMode`) says of operators: what their Einsums say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import register_flop_formula

from hasten.workload.operators import TABLE, Call
from hasten.workload.operators.call import bound, written
from hasten.workload.recorder import Recorder


def flops_of(operator: str) -> Callable[..., int]:
    """The formula of an operator, ``namespace::name``: its multiply-adds, two a point, of real or fake tensors."""
    space, _, name = operator.partition("::")
    schema = getattr(getattr(torch.ops, space), name).default._schema

    def formula(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        arguments, recorder = bound(schema, args, kwargs), Recorder()
        outputs = [t for t in tree_leaves(out_val) if isinstance(t, Tensor)]
        outputs = outputs or [t for t in written(schema, arguments) if isinstance(t, Tensor)]
        TABLE[operator](Call(recorder, operator, arguments, outputs))
        return sum(einsum.flops for einsum in recorder.einsums)

    return formula


def count_operators() -> None:
    """Makes the counter know every operator of hasten that has Einsums."""
    for operator in TABLE:
        space, _, name = operator.partition("::")
        if space == "hasten":
            register_flop_formula(getattr(torch.ops.hasten, name), get_raw=True)(flops_of(operator))
