"""Every instruction set that this machine runs, in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from hasten.kernels.compiled import native

ISAS = native().isas() if native() is not None else []


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The compiled kernels of one instruction set; the best one again afterwards."""
    module = native()
    assert module is not None
    best = module.isa()
    module.use_isa(request.param)
    yield request.param
    module.use_isa(best)


@pytest.fixture
def alone_as_beside_others(isa: str) -> Callable[[object, torch.Tensor, int], None]:
    """Asserts that a compiled matrix gives each row of x (rows, in) the same ``out`` numbers whoever is beside it."""
    assert isa
    return _compare


def _compare(matrix: object, x: torch.Tensor, out: int) -> None:
    module = native()
    assert module is not None
    alone = torch.empty(len(x), out)
    for row, found in zip(x, alone):
        module.linear(matrix, row.data_ptr(), 1, found.data_ptr(), 2)
    assert torch.isfinite(alone).all()
    for rows in (2, 3, 11, 32, 33, len(x)):
        beside = torch.full((rows + 1, out), 7.0)
        module.linear(matrix, x.data_ptr(), rows, beside.data_ptr(), 2)
        assert torch.equal(beside[:rows], alone[:rows])
        assert torch.equal(beside[rows], torch.full((out,), 7.0))
