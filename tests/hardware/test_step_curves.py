"""What is timed of a compiled step beside its products: which curves there are, and that steps really run."""

from __future__ import annotations

from typing import Any

import pytest

from hasten.hardware import step_curves
from hasten.kernels.compiled import native

pytestmark = pytest.mark.skipif(native() is None or native().isa() == "generic", reason="no step is compiled")


def test_attention_is_timed_in_every_format_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[object] = []

    def once(call: Any, *budget: float) -> float:
        ran.append(call())
        return 0.25

    monkeypatch.setattr(step_curves, "seconds", once)
    for name, kept in (
        ("_KEYS", (64,)),
        ("_SIZES", (64,)),
        ("_SHARED", (1, 4)),
        ("_ROWS", (1, 32)),
        ("_MOST_LAYERS", 2),
    ):
        monkeypatch.setattr(step_curves, name, kept)
    found = {(c.operation, c.dtype): c for c in step_curves.step_curves()}
    assert found.keys() == {("step meeting", "fp32")} | {
        ("step attention", n) for n in ("fp32", "fp16", "int8", "int4")
    }
    assert found["step attention", "fp32"].grid == ((4,), (1, 4), (1, 32), (64,), (64,))
    assert found["step attention", "int8"].grid == ((4,), (1, 4), (1,), (64,), (64,))
    # Of a step and of one that attends to itself alone nothing is left but what noise may hide.
    assert set(found["step attention", "int8"].seconds) == {0.1 * 0.25 / 2}
    assert len(ran) == 2 + 2 * (2 * 2 + 3 * 2)


@pytest.mark.parametrize("cache", step_curves.CACHES)
def test_a_step_is_a_real_one(cache: str) -> None:
    small = step_curves.SmallStep(2, 2, 32, cache, 128, layers=2)
    for rows, before in ((1, 0), (1, 127), (8, 64)):
        small.step(rows, before)()
    with pytest.raises(IndexError, match="a position outside the cache"):
        small.step(1, 128)()
