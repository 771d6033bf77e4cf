"""What torch's own counter (`torch.utils.flop_counter.FlopCounterMode`) says of operators: what their Einsums say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import register_flop_formula

from hasten.workload.operators import TABLE, Call
from hasten.workload.operators.call import bound
from hasten.workload.recorder import Recorder


def flops_of(operator: str) -> Callable[..., int]:
    """The formula of an operator, ``namespace::name``: its multiply-adds, two a point, of real or fake tensors."""
    space, _, name = operator.partition("::")
    schema = getattr(getattr(torch.ops, space), name).default._schema

    def formula(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        outputs = [t for t in tree_leaves(out_val) if isinstance(t, Tensor)]
        recorder = Recorder()
        TABLE[operator](Call(recorder, operator, bound(schema, args, kwargs), outputs or _written(schema, args)))
        return sum(einsum.flops for einsum in recorder.einsums)

    return formula


def _written(schema: Any, args: tuple[Any, ...]) -> list[Tensor]:
    """What an operator without results writes into."""
    places = [a.alias_info is not None and a.alias_info.is_write for a in schema.arguments]
    return [a for a, written in zip(args, places) if written and isinstance(a, Tensor)]


def count_operators() -> None:
    """Makes the counter know every operator of hasten that has Einsums."""
    for operator in TABLE:
        space, _, name = operator.partition("::")
        if space == "hasten":
            register_flop_formula(getattr(torch.ops.hasten, name), get_raw=True)(flops_of(operator))
