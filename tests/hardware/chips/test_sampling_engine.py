"""Engines for taps that move: files with sources, and mistakes in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.errors import HastenError
from hasten.hardware.chips import sampling_engine as module
from hasten.hardware.chips.sampling_engine import sampling_engine, sampling_engines


def test_every_engine_says_where_its_figures_are_from() -> None:
    assert set(sampling_engines()) == {"codenet-ultra96", "ultra96-dense", "ultra96-depthwise"}
    for name in sampling_engines():
        engine = sampling_engine(name)
        assert engine.name == name
        assert "2006.08357" in engine.source
    assert sampling_engine("codenet-ultra96").pointwise == (16, 16)


def test_a_file_of_ones_own_and_its_mistakes(tmp_path: Path) -> None:
    text = (Path(module.__file__).parent / "engines" / "ultra96-dense.toml").read_text("utf-8")
    mine = tmp_path / "mine.toml"
    mine.write_text(text.replace("clock = 1e8", "clock = 3e8"), "utf-8")
    assert sampling_engine(mine).clock == 3e8
    mine.write_text(text.replace("bandwidth = 1.12e9", "bandwidth = 0.0"), "utf-8")
    with pytest.raises(HastenError, match=r"memory\.bandwidth: Input should be greater than 0"):
        sampling_engine(mine)
    with pytest.raises(HastenError, match="no sampling engine is called 'none': give codenet-ultra96"):
        sampling_engine("none")
