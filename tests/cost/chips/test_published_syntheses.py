"""The rule of reuse, on designs that hls4ml's tools really made."""

from __future__ import annotations

import pytest

from hasten.cost.chips.published_syntheses import SYNTHESES, Synthesis, rule_of_reuse


@pytest.mark.parametrize("row", SYNTHESES, ids=lambda r: f"{r.widths}-{r.bits}-{r.reuse}")
def test_cycles_and_slices_of_published_designs_are_exact(row: Synthesis) -> None:
    assert rule_of_reuse(row.widths, row.bits, row.reuse) == (row.cycles, row.dsp)
