"""What an access takes, from three figures."""

from __future__ import annotations

import pytest

from hasten.cost.chips.oblivious_access import ObliviousAccess
from hasten.errors import HastenError


def test_three_points_give_the_figures_back() -> None:
    there = ObliviousAccess(2e-6, 1e-6, 1e9)
    assert there.seconds(1.0, 1000) == 2e-6
    assert there.seconds(0.5, 1000) == pytest.approx(2e-6 + 1e-6 + 2e-6)
    points = [(t, size, there.seconds(t, size)) for t, size in ((0.0, 100), (1.0, 100), (0.5, 2000))]
    found = ObliviousAccess.fitted(points)
    assert (found.base, found.round_trip, found.bandwidth) == pytest.approx((2e-6, 1e-6, 1e9))
    for few in (points[:2], [(t, 100, s) for t, _, s in points]):
        with pytest.raises(ValueError, match="several shares and sizes"):
            ObliviousAccess.fitted(few)
    with pytest.raises(ValueError, match="finite"):
        ObliviousAccess.fitted([*points, (0.5, 100, float("nan"))])
    with pytest.raises(HastenError, match="bandwidth above 0"):
        ObliviousAccess.fitted([(t, size, 0.0) for t, size, _ in points])


def test_no_bandwidth_is_refused_in_a_line() -> None:
    for bandwidth in (0.0, -1.0, float("inf")):
        with pytest.raises(HastenError, match="bandwidth above 0") as refusal:
            ObliviousAccess(1e-6, 1e-6, bandwidth)
        assert "\n" not in str(refusal.value)
