"""What an Einsum computes at a point, as an expression: the operators that Einsums name, in a handful of functions.

An expression is a nested tuple: ``("read", i)`` is the value of the i-th tensor read, ``("acc",)`` the folded value,
``("const", c)`` a number, ``("upto", a, b, x)`` is x where rank a is at most rank b and minus infinity elsewhere,
``("below", a, n, x, y)`` is x where rank a is below n and y elsewhere, and anything else a function of `FUNCTIONS` with
its arguments. What this module has no expression for is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import HastenError
from hasten.workload.einsum import Einsum, Op

Expression = tuple[Any, ...]

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "tanh": np.tanh,
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
    "neg": np.negative,
    "abs": np.abs,
    "pow": np.power,
    "select": lambda condition, yes, no: np.where(condition != 0, yes, no),
}
"""The functions of expressions, by name."""

FOLD = {"sum": "add", "max": "max", "min": "min"}
"""The function by which a reduction folds."""

ACC: Expression = ("acc",)


@dataclass(frozen=True)
class Arithmetic:
    """What an Einsum computes.

    Args:
        value: at a point of its iteration space, of what is read.
        finish: of a folded value (``ACC``), once for each element of the output; what is read there must not be
            indexed by a rank that is folded away.
    """

    value: Expression
    finish: Expression = ACC


def read(index: int) -> Expression:
    return ("read", index)


def const(value: float) -> Expression:
    return ("const", float(value))


def ranks_of(expression: Expression) -> set[str]:
    """Ranks whose places an expression asks for."""
    return {r for part in walk(expression) if part[0] in ("upto", "below") for r in part[1:3] if isinstance(r, str)}


def walk(expression: Expression) -> Iterator[Expression]:
    """An expression and all its parts."""
    yield expression
    for part in expression[1:]:
        if isinstance(part, tuple):
            yield from walk(part)


def substitute(expression: Expression, change: Callable[[Expression], Expression | None]) -> Expression:
    """The expression with every part replaced for which ``change`` gives another."""
    changed = change(expression)
    if changed is not None:
        return changed
    return tuple(substitute(p, change) if isinstance(p, tuple) else p for p in expression)


def evaluate(
    expression: Expression,
    reads: Sequence[Any],
    acc: Any = None,
    ranks: Mapping[str, Any] | None = None,
) -> NDArray[np.float64]:
    """The expression's value, element by element.

    Args:
        reads: what each tensor that is read gives, arrays of one shape.
        acc: the folded values.
        ranks: rank -> where it stands, for ``upto``.
    """
    kind, *parts = expression
    if kind == "read":
        return np.asarray(reads[parts[0]])
    if kind == "acc":
        return np.asarray(acc)
    if kind == "const":
        return np.asarray(parts[0])
    if kind == "upto":
        low, high, inner = parts
        assert ranks is not None
        return np.where(ranks[low] <= ranks[high], evaluate(inner, reads, acc, ranks), -np.inf)
    if kind == "below":
        rank, limit, *either = parts
        assert ranks is not None
        return np.where(ranks[rank] < limit, *(evaluate(e, reads, acc, ranks) for e in either))
    return np.asarray(FUNCTIONS[kind](*(evaluate(p, reads, acc, ranks) for p in parts)))


def _sigmoid(x: Expression) -> Expression:
    return ("div", const(1), ("add", const(1), ("exp", ("neg", x))))


def _inverse_root(x: Expression) -> Expression:
    return ("div", const(1), ("sqrt", x))


def _gelu(x: Expression, approximate: str) -> Expression:
    if approximate == "tanh":
        cubed = ("mul", const(0.044715), ("mul", x, ("mul", x, x)))
        inner = ("mul", const(math.sqrt(2 / math.pi)), ("add", x, cubed))
        return ("mul", ("mul", const(0.5), x), ("add", const(1), ("tanh", inner)))
    return ("mul", ("mul", const(0.5), x), ("add", const(1), ("erf", ("mul", const(math.sqrt(0.5)), x))))


def _clamp(x: Expression, low: float | None, high: float | None) -> Expression:
    x = x if low is None else ("max", x, const(low))
    return x if high is None else ("min", x, const(high))


def _power(x: Expression, exponent: float) -> Expression:
    exact: dict[float, Expression] = {
        1.0: x, 2.0: ("mul", x, x), 3.0: ("mul", x, ("mul", x, x)), 0.5: ("sqrt", x), -0.5: _inverse_root(x),
        -1.0: ("div", const(1), x),
    }  # fmt: skip
    return exact.get(float(exponent), ("pow", x, const(exponent)))


# Of one tensor and the operator's constants.
_UNARY: dict[str, Callable[[Expression, Mapping[str, Any]], Expression]] = {
    "relu": lambda x, c: ("max", x, const(0)),
    "neg": lambda x, c: ("neg", x),
    "exp": lambda x, c: ("exp", x),
    "log": lambda x, c: ("log", x),
    "sqrt": lambda x, c: ("sqrt", x),
    "rsqrt": lambda x, c: _inverse_root(x),
    "reciprocal": lambda x, c: ("div", const(1), x),
    "tanh": lambda x, c: ("tanh", x),
    "erf": lambda x, c: ("erf", x),
    "abs": lambda x, c: ("abs", x),
    "square": lambda x, c: ("mul", x, x),
    "sigmoid": lambda x, c: _sigmoid(x),
    "silu": lambda x, c: ("div", x, ("add", const(1), ("exp", ("neg", x)))),
    "gelu": lambda x, c: _gelu(x, str(c.get("approximate", "none"))),
    "hardtanh": lambda x, c: _clamp(x, c["min_val"], c["max_val"]),
    "clamp": lambda x, c: _clamp(x, c.get("min"), c.get("max")),
    "clamp_min": lambda x, c: _clamp(x, c["min"], None),
    "leaky_relu": lambda x, c: (
        ("max", x, ("mul", const(c["negative_slope"]), x))
        if 0 <= c["negative_slope"] <= 1
        else ("add", ("max", x, const(0)), ("mul", const(c["negative_slope"]), ("min", x, const(0))))
    ),
    "hardsigmoid": lambda x, c: ("div", _clamp(("add", x, const(3)), 0, 6), const(6)),
    "pow": lambda x, c: _power(x, c["exponent"]),
    "copy": lambda x, c: x,
    "cast": lambda x, c: x,
    "clone": lambda x, c: x,
    "identity": lambda x, c: x,
}
_BINARY = {"mul": "mul", "div": "div", "maximum": "max", "minimum": "min", "true_divide": "div"}
_NORMS = (
    "aten::native_layer_norm", "aten::layer_norm", "aten::native_group_norm", "aten::group_norm", "aten::rms_norm",
    "aten::_fused_rms_norm", "aten::native_batch_norm", "aten::_native_batch_norm_legit",
    "aten::_native_batch_norm_legit_no_training", "aten::_batch_norm_with_update", "aten::_batch_norm_no_update",
    "aten::cudnn_batch_norm",
)  # fmt: skip


def arithmetic(einsum: Einsum) -> Arithmetic:
    """What an Einsum that was traced from an operator computes.

    Raises:
        HastenError: an operator whose values are not told by where it reads (a gather, a scan, a sort), or that this
            module has no expression for.
    """
    constants, source = dict(einsum.constants), einsum.source
    if einsum.op in (Op.MATMUL, Op.CONV):
        return _contraction(einsum, constants)
    if source in _NORMS:
        return _norm(einsum, constants)
    if "scaled_dot_product" in source or source.endswith("softmax"):
        return _softened(einsum)
    if source == "aten::cat":
        return Arithmetic(_joined(einsum))
    if einsum.op is Op.REDUCE:
        return _reduction(einsum, constants)
    if einsum.op in (Op.ELEMENTWISE, Op.COPY):
        return Arithmetic(_point(einsum, constants))
    raise _refused(einsum)


def _refused(einsum: Einsum, why: str = "has no expression here") -> HastenError:
    return HastenError(f"{einsum.source or einsum.map} in module {einsum.module or 'forward'!r} {why}")


def _contraction(einsum: Einsum, constants: Mapping[str, Any]) -> Arithmetic:
    if einsum.map != "mul" or einsum.reduce != "sum" or len(einsum.inputs) != 2 or constants.get("transposed"):
        raise _refused(einsum, "is no plain product and sum")
    finish = ACC
    if "scaled_dot_product" in einsum.source and "m" in einsum.output.ranks:
        scale = constants.get("scale")
        finish = ("mul", ACC, const(einsum.sizes["e"] ** -0.5 if scale is None else scale))
        if einsum.source.endswith("(causal)") or constants.get("is_causal"):
            finish = ("upto", "m", "p", finish)
    elif constants.get("alpha", 1) != 1:
        finish = ("mul", ACC, const(constants["alpha"]))
    return Arithmetic(("mul", read(0), read(1)), finish)


def joins(einsum: Einsum) -> list[tuple[str, int, int]]:
    """Of an Einsum that joins tensors, for each of them the rank along which it lies, and its first and last place."""
    along = einsum.output.ranks[int(dict(einsum.constants)["dim"])]
    found, at = [], 0
    for access in einsum.inputs:
        if access.view is None:
            raise _refused(einsum, "was not traced with its layout")
        size = access.view.sizes[int(dict(einsum.constants)["dim"])]
        found.append((along, at, at + size))
        at += size
    return found


def _joined(einsum: Einsum) -> Expression:
    *first, _ = joins(einsum)
    expression: Expression = read(len(first))
    for i in reversed(range(len(first))):
        rank, _, end = first[i]
        expression = ("below", rank, end, read(i), expression)
    return expression


def _softened(einsum: Einsum) -> Arithmetic:
    x: Expression = read(0)
    values: dict[str, Expression] = {
        "identity": x,
        "sub-exp": ("exp", ("sub", x, read(1))),
        "div": ("div", x, read(1)),
    }
    if einsum.map == "sub-log":
        return Arithmetic(("sub", ("sub", x, read(1)), ("log", read(2))))
    if einsum.map == "where":  # a mask of truth values beside the scores
        return Arithmetic(("select", read(1), x, const(-math.inf)))
    if einsum.map == "add":
        return Arithmetic(("add", x, read(1)))
    return Arithmetic(values[einsum.map])


def _norm(einsum: Einsum, constants: Mapping[str, Any]) -> Arithmetic:
    x: Expression = read(0)
    epsilon = constants.get("eps")
    epsilon = float(np.finfo(np.float32).eps) if epsilon is None else epsilon
    count = math.prod(einsum.sizes[r] for r in einsum.reduced)
    mean = ("mul", ACC, const(1 / count))
    if einsum.op is Op.REDUCE:
        if einsum.map == "identity":
            return Arithmetic(x, mean)
        # What is kept is the scale, so that each element costs a product and no root.
        off: Expression = ("sub", x, read(1)) if einsum.map == "sub-square" else x
        return Arithmetic(("mul", off, off), _inverse_root(("add", mean, const(epsilon))))
    centred = "rms" not in einsum.source
    scale: Expression = read(2 if centred else 1)
    running = "batch_norm" in einsum.source and not constants.get("training", "with_update" in einsum.source)
    if running:
        scale = _inverse_root(("add", scale, const(epsilon)))
    value: Expression = ("mul", ("sub", x, read(1)) if centred else x, scale)
    at = 3 if centred else 2
    for name, function in (("weight", "mul"), ("bias", "add")):
        if at < len(einsum.inputs) and not (name in constants and constants[name] is None):
            value = (function, value, read(at))
            at += 1
    if at != len(einsum.inputs):
        raise _refused(einsum)
    return Arithmetic(value)


def _reduction(einsum: Einsum, constants: Mapping[str, Any]) -> Arithmetic:
    name = einsum.source.removeprefix("aten::")
    count = math.prod(einsum.sizes[r] for r in einsum.reduced)
    if einsum.map != "identity" or einsum.reduce not in FOLD or len(einsum.inputs) != 1:
        raise _refused(einsum)
    if "avg_pool" in name:
        if any(_listed(constants.get("padding"))) and not constants.get("count_include_pad", True):
            raise _refused(einsum, "divides by another number at the edges")
        return Arithmetic(read(0), ("mul", ACC, const(1 / (constants.get("divisor_override") or count))))
    if name == "mean":
        return Arithmetic(read(0), ("mul", ACC, const(1 / count)))
    if name in ("sum", "amax", "amin", "max", "min") or "max_pool" in name:
        return Arithmetic(read(0))
    raise _refused(einsum)


def _listed(value: Any) -> Sequence[Any]:
    return () if value is None else value if isinstance(value, tuple) else (value,)


def _point(einsum: Einsum, constants: Mapping[str, Any]) -> Expression:
    name = einsum.map.rstrip("_")
    count = len(einsum.inputs)
    first: Expression = read(0)
    other: Expression | None = read(1) if count == 2 else None
    if count == 1 and isinstance(constants.get("other"), int | float):
        other = const(constants["other"])
    elif count == 1 and isinstance(constants.get("self"), int | float):
        first, other = const(constants["self"]), read(0)
    if name in ("add", "sub", "rsub") and other is not None:
        alpha = constants.get("alpha", 1)
        if name == "rsub":
            first, other = other, first
        if einsum.source in ("aten::addmm", "aten::baddbmm") and (constants.get("beta", 1) != 1):
            other = ("mul", const(constants["beta"]), other)
        elif einsum.source in ("aten::add", "aten::sub", "aten::rsub", "aten::add_", "aten::sub_") and alpha != 1:
            other = ("mul", const(alpha), other)
        return ("add" if name == "add" else "sub", first, other)
    if name in _BINARY and other is not None and constants.get("rounding_mode") is None:
        return (_BINARY[name], first, other)
    if name == "where" and count == 3:
        return ("select", read(0), read(1), read(2))
    if name == "masked_fill" and isinstance(constants.get("value"), int | float):
        return ("select", read(1), const(constants["value"]), read(0))
    if name in _UNARY and count == 1 and (name != "pow" or isinstance(constants.get("exponent"), int | float)):
        return _UNARY[name](read(0), constants)
    raise _refused(einsum)
