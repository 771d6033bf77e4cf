"""Expressions of Einsums: their values, their parts, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.workload.arithmetic import ACC, arithmetic, const, evaluate, read, substitute, walk
from hasten.workload.tracing import trace_cascade


def test_values_are_element_by_element() -> None:
    x, y = np.array([1.0, -2.0]), np.array([3.0, 4.0])
    assert evaluate(("mul", ("add", read(0), const(1)), read(1)), [x, y]).tolist() == [6.0, -4.0]
    assert evaluate(("max", ACC, const(0)), [], acc=x).tolist() == [1.0, 0.0]
    ranks = {"m": np.array([0, 2]), "p": np.array([1, 1])}
    assert evaluate(("upto", "m", "p", read(0)), [x], ranks=ranks).tolist() == [1.0, -np.inf]
    assert evaluate(("select", read(0), read(1), const(9)), [np.array([0.0, 1.0]), y]).tolist() == [9.0, 4.0]


def test_parts_are_found_and_replaced() -> None:
    expression = ("add", ("exp", read(0)), ACC)
    assert [p[0] for p in walk(expression)] == ["add", "exp", "read", "acc"]
    assert substitute(expression, lambda p: const(2) if p == ACC else None) == ("add", ("exp", read(0)), const(2))


def test_constants_of_a_call_are_in_its_einsums_and_no_part_of_what_is_equal() -> None:
    one, other = (trace_cascade(nn.Hardtanh(-1, top), (torch.zeros(3),)).cascade for top in (1.0, 2.0))
    assert dict(other.einsums[0].constants)["max_val"] == 2.0
    assert one == other, "a cascade says how much is computed, not with which numbers"
    assert arithmetic(one.einsums[0]) != arithmetic(other.einsums[0])


def test_layouts_are_those_of_the_views() -> None:
    cascade = trace_cascade(lambda x: x[:, 1:].t() * 2, (torch.zeros(3, 4),)).cascade
    view = cascade.einsums[0].inputs[0].view
    assert view is not None
    assert view == ((3, 3), (1, 4), 1)
    assert cascade.results[0].tensor == cascade.einsums[-1].output.tensor


@pytest.mark.parametrize("function", [lambda x: x.cumsum(0), lambda x: x.sort()[0], lambda x: x % 2, torch.lgamma])
def test_what_has_no_expression_is_refused_by_name(function: object) -> None:
    cascade = trace_cascade(function, (torch.zeros(3),)).cascade  # type: ignore[arg-type]
    with pytest.raises(HastenError, match=r"aten::(cumsum|sort|remainder|lgamma) in module 'forward'"):
        arithmetic(cascade.einsums[0])
