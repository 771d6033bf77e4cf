"""Every instruction set that this machine runs, in turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
