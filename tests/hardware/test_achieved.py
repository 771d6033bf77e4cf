from __future__ import annotations

from pathlib import Path

import pytest

from hasten.errors import HastenError
from hasten.hardware import devices, load_device, read_device
from hasten.hardware.achieved import Achieved, families, of_format
from hasten.hardware.device import several_of
from hasten.hardware.forms import forms

OWN = """
name = "toy"
title = "a toy"
kind = "gpu"
family = "geforce"
launch_overhead = { value = "1 us", source = "made up" }
idle_power = { value = "1 W", source = "made up" }
max_power = { value = "10 W", source = "made up" }

[achieved.bandwidth]
bf16 = { value = "50 %", source = "made up" }

[[compute]]
name = "array"
runs = ["contraction", "vector"]
[compute.peak]
fp32 = { value = "1 GFLOP/s", source = "made up" }

[[memory]]
name = "DRAM"
capacity = { value = "1 GB", source = "made up" }
bandwidth = { value = "1 GB/s", source = "made up" }
energy = { value = "2 pJ/bit", source = "made up" }
"""


def test_own_shares_stand_and_the_familys_fill_in():
    toy = read_device(OWN)
    shares = families()["geforce"].achieved
    assert dict(toy.reached.bandwidth) == {"bf16": 0.5}
    assert toy.reached.product == shares.product
    assert toy.reached.kernel == shares.kernel
    assert not read_device(OWN.replace('family = "geforce"\n', "")).reached.product


@pytest.mark.parametrize("name", families())
def test_every_share_of_a_family_is_of_a_peak_and_says_where_from(name: str):
    found = families()[name].achieved
    for table in (found.bandwidth, found.product, found.convolution, found.training):
        assert table
        assert all(0 < share <= 1 and len(share.source) > 20 for share in table.values())
    assert found.experts
    assert 0 < found.experts <= 1
    assert found.kernel is not None
    assert 0 < found.kernel < 1e-2


def test_every_device_but_the_generic_ones_has_a_family():
    assert {n for n in devices() if not load_device(n).family} == {"cpu2", "u280"}
    assert {load_device(n).family for n in devices()} - {""} == set(families())


def test_a_format_without_a_share_has_the_nearest_ones():
    assert of_format({}, "bf16") == 1
    assert of_format({"bf16": 0.8, "int4": 0.6}, "int5") == 0.6
    assert of_format({"bf16": 0.8, "int4": 0.6}, "fp32") == 0.8


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('"50 %"', '"150 %"', "above 100 %"),
        ('"50 %"', '"0.5"', "expected share"),
        ('bf16 = { value = "50', 'fp17 = { value = "50', "unknown number format 'fp17'"),
        ('"geforce"', '"gforce"', "family: 'gforce' is none"),
    ],
)
def test_a_wrong_share_or_family_is_one_line(before: str, after: str, told: str):
    with pytest.raises(HastenError, match=told) as caught:
        read_device(OWN.replace(before, after), "toy.toml")
    assert "\n" not in str(caught.value)


# -- forms ---------------------------------------------------------------------------------------------


def test_a_form_has_its_own_fields_over_what_all_share():
    shared = {"kind": "gpu", "memory": [{"name": "A", "size": 1}, {"name": "B", "size": 2}], "links": [{"name": "x"}]}
    found = forms({**shared, "forms": [{"name": "one"}, {"name": "two", "memory": {"B": {"size": 3}}, "links": []}]})
    assert found["one"] == {**shared, "name": "one"}
    assert found["two"]["memory"] == [{"name": "A", "size": 1}, {"name": "B", "size": 3}]
    assert found["two"]["links"] == []


@pytest.mark.parametrize("form", [{"name": "a", "memory": {"C": {}}}, {"title": "no name"}])
def test_a_form_of_nothing_is_refused(form: dict[str, object]):
    with pytest.raises(ValueError, match="forms"):
        forms({"memory": [{"name": "A"}], "forms": [form]})


def test_a_users_file_describes_one_device(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(OWN + '\n[[forms]]\nname = "a"\n[[forms]]\nname = "b"\n')
    with pytest.raises(HastenError, match="describes 2 devices"):
        load_device(path)


# -- several of one ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["8x h100", "8xh100", "8x-h100"])
def test_several_of_a_device_have_its_figures(name: str):
    eight = load_device(name)
    assert (eight.count, eight.name) == (8, "8x-h100")
    assert eight.main_memory == load_device("h100").main_memory


def test_several_of_a_users_file_are_loaded_and_saved(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(OWN)
    with pytest.raises(HastenError, match="no link to others"):
        load_device(f"2x {path}")
    link = '\n[[links]]\nname = "bus"\nbandwidth = { value = "1 GB/s", source = "made up" }\n'
    path.write_text(OWN + link + 'latency = { value = "1 us", source = "made up" }\n')
    two = load_device(f"2x {path}")
    two.save(tmp_path / "two.toml")
    assert load_device(tmp_path / "two.toml") == two
    assert several_of(load_device(path), 1) == load_device(path)


def test_several_of_several_are_refused():
    with pytest.raises(HastenError, match="several devices already"):
        load_device("2x 2x h100")


def test_achieved_figures_survive_a_round_trip():
    toy = read_device(OWN)
    assert Achieved.model_validate(toy.achieved.model_dump(mode="json")) == toy.achieved
