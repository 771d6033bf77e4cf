from __future__ import annotations

from pathlib import Path

import pytest

from hasten.errors import HastenError
from hasten.hardware import load_device
from hasten.hardware.chips.core_array import core_array, core_arrays, is_core_array


def test_every_array_that_is_here_can_be_read_and_says_where_its_figures_are_from() -> None:
    assert core_arrays()
    for name in core_arrays():
        assert core_array(name).name == name
        assert core_array(name).source


def test_a_name_or_a_file_is_known_as_an_array_of_cores(tmp_path: Path) -> None:
    assert all(is_core_array(name) for name in core_arrays())
    assert not any(is_core_array(name) for name in ("h100", "isaac", "none.toml"))
    mine = tmp_path / "mine.toml"
    mine.write_text('name = "x"\ntitle = "X"\ncores = 2\nmacs = 16\non_chip = 1024\nbandwidth = 1e9\n')
    assert is_core_array(mine), "one with a mistake is one, so that the mistake is told"
    load_device("pi5").save(mine)
    assert not is_core_array(mine)


def test_arrays_that_cannot_be_are_refused_in_a_line(tmp_path: Path) -> None:
    text = 'name = "x"\ntitle = "X"\ncores = 2\nmacs = 16\non_chip = 1024\nbandwidth = 1e9\nclock = 1e8\n'
    path = tmp_path / "x.toml"
    path.write_text(text)
    assert core_array(path).bytes_a_cycle == 10
    for old, new, words in (
        ("bandwidth = 1e9", "bandwidth = 0.0", "bandwidth"),
        ("bandwidth = 1e9", "bandwidth = inf", "bandwidth"),
        ("bandwidth = 1e9", "bandwidth = 1e9\nstall = inf", "stall"),
        ("bandwidth = 1e9", "bandwidth = 1e9\nbyte_energy = 1e400", "byte_energy"),
        ("macs = 16", f"macs = 1{'0' * 30}", "a number of more than 64 bits"),
        ("cores = 2", "cores = 0", "cores"),
        ("on_chip = 1024", "on_chip = -1", "on_chip"),
        ("macs = 16", "mac = 16", "macs"),
        ('title = "X"', 'title = "X"\ndtype = "int12"', "no number format 'int12'"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(HastenError, match=words) as error:
            core_array(path)
        assert "\n" not in str(error.value)
    with pytest.raises(HastenError, match="no array of cores is called 'tpu'"):
        core_array("tpu")
