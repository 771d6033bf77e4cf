"""Which products the probe times, and what it calls them."""

from __future__ import annotations

from typing import Any

import pytest

from hasten.hardware import memory_rates, operator_curves
from hasten.kernels.compiled import native


@pytest.mark.skipif(native() is None or native().isa() == "generic", reason="no product of blocks is compiled")
def test_products_within_a_step_are_timed_in_every_format(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def once(call: Any, *budget: float) -> float:
        asked.append(call() if len(asked) < 3 else None)
        return 1e-4 if len(asked) == 1 else 2.5e-4

    monkeypatch.setattr(operator_curves, "seconds", once)
    found = {(c.operation, c.dtype): c for c in operator_curves._step_products()}
    kinds = [("", name) for name in ("fp32", "bf16", "int8", "int4")] + [("int8", "int8"), ("int8", "int4")]
    kinds += [(f"{bits:g} int8", "uint8") for bits in memory_rates.blocks_by_bits()]
    assert found.keys() == {
        (f"{rows} {kind}".rstrip(), name) for rows in ("few packed", "prompt") for kind, name in kinds
    }
    # What a call takes that multiplies next to nothing is no part of them, and at most four fifths of any.
    assert max(found["few packed", "fp32"].seconds) == pytest.approx(1.5e-4)
    assert max(found["few packed", "bf16"].seconds) == pytest.approx(0.5e-4)
