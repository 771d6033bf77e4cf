from __future__ import annotations

import pytest

from hasten.cost.demand import Demand
from hasten.hardware import Quantity
from hasten.hardware.achieved import Achieved


def share(percent: float) -> Quantity:
    return Quantity(percent / 100, f"{percent} %", "made up")


def demand(**changed: object) -> Demand:
    parts: dict[str, object] = {
        "overhead": 1e-6, "compiled": True, "units": (("cores", (("product", "int4", 4e-6), ("other", "", 1e-6))),),
        "measured": None, "waiting": 0.0, "inner": (2e-6, "L2"),
        "outer": (("weights", "int4", 3e-6), ("experts", "int4", 1e-6), ("other", "bf16", 1e-6)), "memory": "HBM",
    }  # fmt: skip
    return Demand(**{**parts, **changed})  # type: ignore[arg-type]


SHARES = Achieved(
    bandwidth={"bf16": share(80), "int4": share(50)},
    product={"bf16": share(60), "int4": share(40)},
    training={"bf16": share(20)},
    experts=share(50),
    kernel=Quantity(3e-6, "3 us", "made up"),
)


def test_at_the_peaks_the_slowest_part_counts():
    seconds, bound = demand().seconds(Achieved())
    assert (seconds, bound) == (pytest.approx(6e-6), "HBM")


def test_each_part_has_the_share_of_its_format():
    seconds, bound = demand().seconds(SHARES)
    outer = 3e-6 / 0.5 + 1e-6 / (0.5 * 0.5) + 1e-6 / 0.8
    arithmetic = 4e-6 / 0.4 + 1e-6
    assert bound == ("HBM" if outer > arithmetic else "cores")
    assert seconds == pytest.approx(1e-6 + 3e-6 + max(outer, arithmetic))


def test_a_training_step_has_a_share_of_its_own():
    quick, slow = demand().seconds(SHARES)[0], demand().seconds(SHARES, training=True)[0]
    assert slow == pytest.approx(4e-6 + 4e-6 / 0.2 + 1e-6)
    assert slow > quick


def test_a_kernel_that_is_launched_alone_takes_the_larger_of_both_times():
    whole = demand().seconds(SHARES)[0]
    assert demand(compiled=False, overhead=9e-6).seconds(SHARES)[0] == pytest.approx(whole - 4e-6 + 9e-6)
    assert demand(compiled=False).seconds(SHARES)[0] == pytest.approx(whole - 1e-6)  # nor is it started in less


def test_what_was_measured_stands_in_the_units_stead():
    assert demand(measured=9e-6, outer=()).seconds(SHARES) == (pytest.approx(4e-6 + 9e-6), "cores")


def test_devices_divide_the_body_and_add_the_sum():
    seconds, bound = demand(parts=2, told=(20e-6, "NVLink")).seconds(Achieved())
    assert (seconds, bound) == (pytest.approx(1e-6 + 2.5e-6 + 20e-6), "NVLink")
