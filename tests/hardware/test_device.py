from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import HastenError
from hasten.hardware import Curve, Device, Quantity, devices, load_device, read_device
from hasten.hardware.chips.memory_part import memory_part
from hasten.hardware.device import _catalogue
from hasten.hardware.forms import forms
from hasten.hardware.quantity import UNITS, parse

TOY = """
name = "toy"
title = "a toy"
kind = "asic"
launch_overhead = { value = "1 us", source = "made up" }
idle_power = { value = "1 W", source = "made up" }
max_power = { value = "10 W", source = "made up" }

[[compute]]
name = "array"
runs = ["contraction", "vector"]
[compute.peak]
fp32 = { value = "1 GFLOP/s", source = "made up" }
[compute.energy]
fp32 = { value = "2 pJ/FLOP", source = "made up" }

[[memory]]
name = "SRAM"
capacity = { value = "64 KiB", source = "made up" }
bandwidth = { value = "10 GB/s", source = "made up" }
energy = { value = "1 pJ/B", source = "made up" }

[[memory]]
name = "DRAM"
capacity = { value = "1 GB", source = "made up" }
bandwidth = { value = "1 GB/s", source = "made up" }
energy = { value = "2 pJ/bit", source = "made up" }
"""


def test_figures_arrive_in_si_and_keep_their_source():
    toy = read_device(TOY)
    assert toy.launch_overhead == pytest.approx(1e-6)
    assert toy.memory[0].capacity == 65536
    assert toy.main_memory.energy == pytest.approx(16e-12)
    assert toy.compute[0].peak["fp32"].value == 1e9
    assert toy.compute[0].peak["fp32"].source == "made up"
    assert toy.on_chip == 65536
    assert toy.memory[1].writing == 1e9


# -- the catalogue -----------------------------------------------------------------------------------

EXPECTED = {"a100", "cpu2", "h100", "m2", "orin", "pi5", "rtx4090", "u280"}


def test_the_catalogue_holds_the_promised_devices():
    assert set(devices()) >= EXPECTED


@pytest.mark.parametrize("name", devices())
def test_every_figure_of_the_catalogue_has_value_unit_and_source(name: str):
    text = (resources.files("hasten.hardware") / "catalogue" / _catalogue()[name]).read_text("utf-8")
    seen = 0

    def visit(value: object, path: str) -> None:
        nonlocal seen
        if isinstance(value, dict) and "value" in value:
            seen += 1
            assert set(value) == {"value", "source"}, path
            number, unit = value["value"].split()
            assert float(number) >= 0
            assert any(unit in known for known in UNITS.values()), path
            assert len(value["source"].strip()) > 5, path
        elif isinstance(value, dict):
            for key, inner in value.items():
                visit(inner, f"{path}.{key}")
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                visit(inner, f"{path}.{index}")
        else:
            # Names, kinds and switches only: no bare figure anywhere.
            assert isinstance(value, str | bool), f"{path} is a figure without a source"

    visit(forms(tomllib.loads(text))[name], name)
    assert seen >= 12
    device = load_device(name)
    assert device.name == name


def test_the_catalogue_agrees_with_well_known_figures():
    h100 = load_device("h100")
    _, rate, dtype = h100.unit("contraction", "bf16")
    assert (rate, dtype) == (pytest.approx(989.4e12), "bf16")
    assert h100.main_memory.bandwidth == pytest.approx(3.35e12)


def test_a_format_that_no_unit_has_is_widened():
    h100, v100 = load_device("h100"), load_device("v100")
    assert h100.unit("contraction", "int4")[2] in ("fp8", "int8")
    assert v100.unit("contraction", "bf16")[2] in ("fp16", "fp32")
    toy = read_device(TOY)
    assert toy.unit("contraction", "int8")[2] == "fp32"
    assert toy.unit("contraction", "fp64")[2] == "fp32"  # the widest there is
    only_integers = read_device(TOY.replace("fp32 =", "int8 ="))
    assert only_integers.unit("contraction", "bf16")[2] == "int8"


# -- round trip ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", devices())
def test_a_saved_device_reads_back_equal(name: str, tmp_path: Path):
    device = load_device(name)
    device.save(tmp_path / "deeper" / "copy.toml")
    assert load_device(tmp_path / "deeper" / "copy.toml") == device
    assert os.listdir(tmp_path / "deeper") == ["copy.toml"]  # nothing left aside


def test_curves_survive_a_round_trip_and_json(tmp_path: Path):
    curve = Curve(
        operation="mm",
        dtype="fp32",
        axes=("m", "n"),
        grid=((1, 3), (2,)),
        seconds=(1.25e-7, 1 / 3),
        source='measured "here"',
    )
    device = read_device(TOY).model_copy(update={"curves": (curve,), "identity": {"cpu": "a, b = ü"}})
    device.save(tmp_path / "here.toml")
    assert load_device(tmp_path / "here.toml") == device
    assert Device.model_validate_json(device.model_dump_json()) == device


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HastenError, match="cannot write device file") as caught:
        read_device(TOY).save(tmp_path / "file" / "toy.toml")
    assert "\n" not in str(caught.value)


@given(st.floats(1e-15, 1e18), st.sampled_from(sorted(UNITS)))
def test_a_made_quantity_reads_back_as_itself(value: float, dimension: str):
    made = Quantity.make(value, dimension, "measured")
    again = parse({"value": made.text, "source": made.source}, dimension)
    assert again == made
    assert again == pytest.approx(value, rel=1e-8)


# -- bad files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "field", "message"),
    [
        ('"1 GB/s"', '"1 GB"', "memory.1.bandwidth", "expected bytes per second such as '3.35 TB/s'"),
        ('"1 GB/s"', '"1 furlong"', "memory.1.bandwidth", "wrong unit"),
        ('"1 GB/s"', '"fast"', "memory.1.bandwidth", "cannot read 'fast'"),
        ('"1 GB/s"', '"-1 GB/s"', "memory.1.bandwidth", "must be a positive finite figure"),
        ('"1 GB/s"', '"nan GB/s"', "memory.1.bandwidth", "must be a positive finite figure"),
        ('"1 GB/s"', '"inf GB/s"', "memory.1.bandwidth", "must be a positive finite figure"),
        ('"1 GB/s"', '"0 GB/s"', "memory.1.bandwidth", "must be a positive finite figure"),
        ('"1 us"', '"-1 us"', "launch_overhead", "must be a non-negative finite figure"),
        ('{ value = "1 us", source = "made up" }', "1e-6", "launch_overhead", "needs a unit and a source"),
        ('{ value = "1 us", source = "made up" }', '{ value = "1 us" }', "launch_overhead", "no source"),
        ('"1 us", source = "made up"', '"1 us", source = " "', "launch_overhead", "no source"),
        ('value = "1 us", ', "", "launch_overhead", "no value with a unit"),
        ('value = "1 us"', 'value = 1, unit = "us"', "launch_overhead", "unknown field 'unit'"),
        ('title = "a toy"', "", "title", "is missing"),
        ('name = "SRAM"', "", "memory.0.name", "is missing"),
        ('title = "a toy"', 'title = "a toy"\ncolour = "red"', "colour", "is not a field of a device"),
        ('name = "SRAM"', 'name = "SRAM"\nwidth = 3', "memory.0.width", "is not a field"),
        ('fp32 = { value = "1 G', 'fp33 = { value = "1 G', "compute.0.peak", "unknown number format 'fp33'"),
        ('"asic"', '"toaster"', "kind", "'gpu', 'cpu', 'fpga' or 'asic'"),
        ('["contraction", "vector"]', '["contraction"]', "compute", "no unit runs 'vector'"),
        ('"64 KiB"', '"2 GB"', "memory", "innermost first"),
        ('"1 W"', '"11 W"', "idle_power", "above max_power"),
        ('name = "DRAM"', 'name = "SRAM"', "", "different names"),
        ('name = "toy"', 'name = "Toy device"', "name", "pattern"),
    ],
)
def test_a_bad_file_is_one_line_naming_file_field_and_what_is_expected(
    old: str, new: str, field: str, message: str, tmp_path: Path
):
    assert old in TOY
    path = tmp_path / "bad.toml"
    path.write_text(TOY.replace(old, new, 1))
    with pytest.raises(HastenError) as caught:
        load_device(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    assert field in text
    assert message in text


def test_not_toml_names_the_file(tmp_path: Path):
    path = tmp_path / "bad.toml"
    path.write_text("name = ")
    with pytest.raises(HastenError, match=r"bad.toml is not TOML"):
        load_device(path)


@pytest.mark.parametrize("text", ["a = " + "[" * 10_000, ".".join("a" * 2_000) + " = 1", "a = 1" + "0" * 5000])
def test_what_no_parser_can_hold_is_one_line(tmp_path: Path, text: str):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(HastenError, match=r"bad.toml is not TOML") as told:
        load_device(path)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 300 + len(str(path))


@pytest.mark.parametrize("use", [load_device, memory_part])
def test_a_name_of_5000_letters_is_one_line(use: Callable[[str], object]):
    with pytest.raises(HastenError, match="too long") as told:
        use("a" * 5000)
    assert len(str(told.value)) < 300


@pytest.mark.parametrize("text", ["a = " + "[" * 10_000, ".".join("a" * 2_000) + " = 1"])
def test_a_memory_part_nested_deep_is_one_line(tmp_path: Path, text: str):
    path = tmp_path / "part.toml"
    path.write_text(text)
    with pytest.raises(HastenError, match="not TOML: it is nested deeper"):
        memory_part(path)


def test_not_text_names_the_file(tmp_path: Path):
    path = tmp_path / "bad.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HastenError, match=r"bad.toml is not UTF-8"):
        load_device(str(path))


@pytest.mark.parametrize("name", ["gone.toml", "/nowhere/at/all", "h1000"])
def test_a_missing_device_lists_what_there_is(name: str):
    with pytest.raises(HastenError, match="h100"):
        load_device(name)


def test_a_device_that_is_made_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from hasten.hardware import device

    monkeypatch.setattr(device, "_MADE", dict(device._MADE))
    made = read_device(TOY)
    device.named("mine")(lambda: made)
    assert load_device("mine") is made
    assert "here" in {*device._MADE, *device._folder()}


def test_who_makes_this_machine_is_told_without_loading_torch() -> None:
    code = (
        "import sys; from hasten.hardware import load_device; load_device('h100')\n"
        "from hasten.hardware.device import _folder\n"
        "print(_folder()['here'].module, 'torch' in sys.modules, 'hasten.hardware.probing' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert told == ["hasten.hardware.probing", "False", "False"]
