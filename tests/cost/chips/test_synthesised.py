"""The table of circuits that were really synthesised: read, parted, and true to what follows from sizes alone."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest

from hasten.cost.chips import synthesised
from hasten.cost.chips.synthesised import (
    TARGETS,
    SynthesisedDesign,
    exact_estimator,
    known_values,
    random_designs,
    read_synthesised,
    resynthesised,
    split_by_depth,
    split_by_structure,
    split_by_width,
    synthesised_designs,
    table_text,
)
from hasten.errors import HastenError
from hasten.hardware.hls.engines import engine_outputs
from hasten.hardware.hls.synthesis import HardwareTool, SimulationReport, SynthesisFailed, hardware_tool

ROWS = synthesised_designs()
DONE = [r for r in ROWS if r.values]


def test_there_are_real_designs_of_every_kind() -> None:
    assert len(DONE) >= 100
    assert {r.yosys for r in ROWS if not r.yosys.startswith("yosys ")} == set()
    assert {len(r.design.layers) for r in DONE} >= {1, 2, 3, 4}
    assert any(layer.convolution for r in DONE for layer in r.design.layers)
    assert len({r.design for r in ROWS}) == len(ROWS)


def test_cycles_of_all_are_those_of_the_rule() -> None:
    rule = exact_estimator()
    for target in ("cycles", "interval"):
        assert rule.predict([r.design for r in DONE], target) == [r.values[target] for r in DONE]


def test_slices_never_grow_and_cycles_never_fall_with_reuse() -> None:
    """Where nothing but reuse differs."""
    same: dict[tuple[str, int], list[SynthesisedDesign]] = {}
    for row in DONE:
        same.setdefault((row.design.structure, row.design.bits), []).append(row)
    pairs = 0
    for rows in same.values():
        for one, other in itertools.permutations(rows, 2):
            reuses = [[layer.reuse for layer in r.design.layers] for r in (one, other)]
            # A layer whose weights are used once multiplies by constants: Yosys needs no slice for some of them.
            if all(a <= b for a, b in zip(*reuses, strict=True)) and min(reuses[0]) > 1:
                pairs += 1
                assert one.values["dsp"] >= other.values["dsp"]
                assert one.values["cycles"] <= other.values["cycles"]
    assert pairs >= 5


def test_lookup_tables_never_shrink_with_bits_while_slices_stay() -> None:
    """Within 3 %: with more bits products go from tables to slices, and tables shrink then."""
    same: dict[str, list[SynthesisedDesign]] = {}
    for row in DONE:
        same.setdefault(row.design.structure, []).append(row)
    pairs = 0
    for rows in same.values():
        for one, other in itertools.permutations(rows, 2):
            alike = [layer.reuse for layer in one.design.layers] == [layer.reuse for layer in other.design.layers]
            if alike and one.design.bits < other.design.bits and one.values["dsp"] == other.values["dsp"]:
                pairs += 1
                assert other.values["lut"] >= 0.97 * one.values["lut"]
    assert pairs >= 5


def test_the_table_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(table_text(ROWS[:5]))
    assert read_synthesised(path) == list(ROWS[:5])
    known = known_values(ROWS)
    assert sum(v is None for v in known.values()) == len(ROWS) - len(DONE)
    assert set(known[DONE[0].design] or {}) == set(TARGETS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "is no table of circuits"),
        (table_text([]) + "8 bits; dense 4 2 /4 relu,4\n", "line 2: a figure is missing"),
        (table_text([]) + "8 bits; dense 4 2 /3 relu,4,0,done,1,1,1,1,1,1,1,y,i\n", "line 2: no engine of 4 inputs"),
        (table_text([]) + "8 bits; dense 4 2 /4 relu,4,0,fine,1,1,1,1,1,1,1,y,i\n", "done, late or failed"),
        (table_text([]) + "8 bits; dense 4 2 /4 relu,4,0,done,1,1,1,1,-1,1,1,y,i\n", "below 0"),
        (table_text([]) + "8 bits; dense 4 2 /4 relu,4,0,done,x,1,1,1,1,1,1,y,i\n", "no number"),
    ],
)
def test_what_is_no_table_is_told_in_a_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(HastenError, match=message) as told:
        read_synthesised(path)
    assert "\n" not in str(told.value)


def test_no_structure_is_on_both_sides() -> None:
    split = split_by_structure(ROWS, 0.7, seed=1)
    train, test = ({r.design.structure for r in part} for part in (split.train, split.test))
    assert not train & test
    assert len(split.train) + len(split.test) == len(ROWS)
    assert 0.6 < len(train) / len(train | test) < 0.8
    assert split_by_structure(ROWS, 0.7, seed=2).train != split.train
    deep = split_by_depth(ROWS, 3)
    assert {len(r.design.layers) for r in deep.test} == {4}
    with pytest.raises(HastenError, match="both sides of 9 layers"):
        split_by_depth(ROWS, 9)
    wide = split_by_width(ROWS, 12)
    sizes = [{max(max(la.inputs, la.outputs) for la in r.design.layers) for r in p} for p in (wide.train, wide.test)]
    assert max(sizes[0]) == 12 < min(sizes[1])
    assert len(wide.train) + len(wide.test) == len(ROWS)
    with pytest.raises(HastenError, match="four structures"):
        split_by_structure(ROWS[:1])


def test_random_designs_are_the_tables() -> None:
    made = list(itertools.islice(random_designs(0), 40))
    assert len({design for design, _ in made}) == 40
    by_number = {r.seed: r for r in ROWS}
    for number, (design, asked) in enumerate(made):
        if number in by_number:
            assert (by_number[number].design, by_number[number].asked) == (design, asked)


def test_a_tool_that_fails_this_time_says_nothing_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    row = DONE[0]
    monkeypatch.setattr(synthesised, "hardware_tool", lambda name: HardwareTool(name, row.yosys))

    def failing(late: bool) -> None:
        def fails(*given: object, **how: object) -> None:
            raise SynthesisFailed("it fails", late)

        monkeypatch.setattr(synthesised, "synthesise", fails)

    def simulate(design: Any, numbers: Any, inputs: Any, *, seconds: float) -> SimulationReport:
        return SimulationReport(engine_outputs(design, numbers, inputs), 1, 1.0, row.iverilog)

    monkeypatch.setattr(synthesised, "simulate", simulate)
    for late, told in ((True, "took too long"), (False, "failed")):
        failing(late)
        with pytest.raises(SynthesisFailed, match=f"{told} this time on"):
            resynthesised([row], 1)


def test_a_row_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("yosys") is None or shutil.which("iverilog") is None:
        pytest.skip("needs the Debian packages yosys and iverilog")
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path))
    version = hardware_tool("yosys").version
    mine = sorted((r for r in DONE if r.yosys == version), key=lambda r: r.seconds)
    if not mine:
        pytest.skip(f"no circuit of the table is of {version}")
    assert resynthesised(mine[:3], 1) == (1, 1)
    with pytest.raises(HastenError, match="no circuit of the table is of"):
        resynthesised([], 1)
