"""The chain of tasks on which SN40L shows what fusion does: a step of a long convolution by Monarch factors."""

from __future__ import annotations

from hasten.errors import HastenError
from hasten.workload.einsum import Cascade
from hasten.workload.notation import parse_cascade

_MONARCH = """
ranks b={batch}, m={rows}, k={inner}, r={columns}, j={inner}
input X[k, b, r] {dtype}
weight F[m, k] {dtype}
weight T[m, r] {dtype}
weight G[m, j] {dtype}
output O
Y[m, b, r] = sum(k) F[m, k] * X[k, b, r]
Z[m, b, r] = times(Y[m, b, r], T[m, r])
W[b, r, m] = Z[m, b, r]
O[b, r, j] = sum(m) W[b, r, m] * G[m, j]
"""


def monarch_chain(
    batch: int = 8, rows: int = 1024, inner: int = 128, columns: int = 128, dtype: str = "bf16"
) -> Cascade:
    """A product, a product element by element, a transposition, and a product: a step of an FFT by Monarch factors.

    SN40L's table I has operational intensities of such a chain, 39.5, 102.6 and 410.4 FLOPs a byte, whose shapes are in
    a figure alone. Bytes in these proportions leave few: three intermediates eight times as large as each of what else
    there is, and contractions of 128. So are the sizes here unless others are given.

    Args:
        batch: of matrices that share the factors ``T``.
        rows, inner, columns: ``F`` is (rows, inner), ``X`` (inner, batch, columns), ``T`` (rows, columns) and ``G``
            (rows, inner).
        dtype: of all tensors.

    Raises:
        HastenError: a size below 1.
    """
    if min(batch, rows, inner, columns) < 1:
        raise HastenError(f"sizes of a chain are {batch}, {rows}, {inner}, {columns}: give numbers from 1")
    return parse_cascade(_MONARCH.format(batch=batch, rows=rows, inner=inner, columns=columns, dtype=dtype))
