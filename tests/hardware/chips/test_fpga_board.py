"""FPGAs are data files with sources; a bad one is refused in a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.errors import HastenError
from hasten.hardware.chips.fpga_board import RESOURCES, fpga_board, fpga_boards


def test_boards_are_found_by_name_with_their_published_sizes() -> None:
    assert {"zu3eg", "u280"} <= set(fpga_boards())
    small, large = fpga_board("zu3eg"), fpga_board("u280")
    assert (small.dsp, small.bram18, small.lut, small.ff) == (360, 432, 70560, 141120)
    assert all(getattr(large, r) > getattr(small, r) for r in RESOURCES)
    assert all(fpga_board(name).source for name in fpga_boards())


def test_a_board_of_ones_own_is_a_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('name="m"\ntitle="M"\ndsp=1\nbram18=2\nlut=3\nff=4\nclock=1e8\nsource="me"\n')
    assert fpga_board(mine).bram18 == 2
    mine.write_text(mine.read_text().replace("dsp=1", "dsp=0"))
    with pytest.raises(HastenError, match=r"dsp: .*greater than 0"):
        fpga_board(mine)
    mine.write_text("dsp = [")
    with pytest.raises(HastenError, match="is not TOML"):
        fpga_board(mine)
    with pytest.raises(HastenError, match="no FPGA is called 'nowhere'"):
        fpga_board("nowhere")
