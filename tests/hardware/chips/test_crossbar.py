"""Chips of crossbars are data files: told from other files, refused in a line where a figure cannot be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hasten.errors import HastenError
from hasten.hardware import load_device
from hasten.hardware.chips import crossbar
from hasten.hardware.chips.core_array import core_arrays
from hasten.hardware.chips.crossbar import crossbar_chip, crossbar_chips, is_crossbar_chip


def text_of(name: str) -> str:
    return (Path(crossbar.__file__).parent / "crossbars" / f"{name}.toml").read_text("utf-8")


def test_a_name_or_a_file_is_known_as_a_chip_of_crossbars(tmp_path: Path) -> None:
    assert all(is_crossbar_chip(name) for name in crossbar_chips())
    assert not any(is_crossbar_chip(name) for name in ("h100", "nothing", "none.toml", *core_arrays()))
    mine = tmp_path / "mine.toml"
    mine.write_text(text_of("isaac").replace("tiles = 16128", "tiles = 12"))
    assert is_crossbar_chip(str(mine))
    assert crossbar_chip(mine).tiles == 12
    mine.write_text(text_of("isaac").replace("read = ", "reed = "))
    assert is_crossbar_chip(mine), "one with a mistake is one, so that the mistake is told"
    load_device("pi5").save(mine)
    assert not is_crossbar_chip(mine)
    mine.write_text("rows = [")
    assert not is_crossbar_chip(mine)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("buffer_rate", "0.0"),
        ("adc_rate", "0"),
        ("read", "-1e-9"),
        ("tiles", "0"),
        ("adcs", "0.5"),
        ("read", "inf"),
        ("cell_energy", "1e400"),
        ("cell_area", "nan"),
    ],
)
def test_a_chip_that_cannot_be_is_refused_in_a_line(tmp_path: Path, field: str, value: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(re.sub(rf"^{field} = \S+", f"{field} = {value}", text_of("isaac"), flags=re.MULTILINE))
    with pytest.raises(HastenError, match=f"crossbar chip .*: {field}: ") as refusal:
        crossbar_chip(path)
    assert "\n" not in str(refusal.value)
