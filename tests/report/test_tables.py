"""Tables: plain where no terminal is, Rich on one, and the numbers in them."""

import io

import pytest
from rich.console import Console

from hasten.cost.estimate import EinsumCost, Estimate, PhaseCost
from hasten.report import (
    asset_table,
    check_table,
    comparison_table,
    paper_table,
    print_table,
    print_tune,
    tune_table,
)
from hasten.report.tables import Table, ladder_table


def cost(latency, bound, repeats=1):
    return EinsumCost("e", "m", "linear", latency, 1e-3, bound, 100, {"HBM": 1e6}, repeats=repeats)


def estimate(device, latency, fits=True, notes=()):
    prefill = PhaseCost("prefill", 1, latency, 0.5, {"HBM": 1e6}, (cost(latency, "tensor cores"),))
    decode = PhaseCost("decode", 10, latency * 2, 1.5, {"HBM": 2e6}, (cost(latency / 5, "HBM", repeats=10),))
    return Estimate("net", device, (prefill, decode), 3e9, 1.5e6, fits, notes)


def test_comparison_is_sorted_and_says_what_bounds_and_fits():
    table = comparison_table([estimate("slow", 2.0, fits=False, notes=("no bf16",)), estimate("fast", 0.01)])
    assert [r[0] for r in table.rows] == ["fast", "slow"]
    row = dict(zip(table.columns, table.rows[0]))
    assert row[">latency"] == "30.0 ms"
    assert (row[">prefill"], row[">decode"]) == ("10.0 ms", "20.0 ms")
    assert row["bound by"] == "HBM (67 %)"
    assert row[">traffic / bound"] == "2.00"
    assert row[">energy"] == "2.00 J"
    assert [r[table.columns.index("fits")] for r in table.rows] == ["yes", "NO"]
    assert table.notes == ("no bf16",)


def test_plain_text_lines_up():
    table = Table("t", ("name", ">n"), (("a", "1"), ("longer", "1,000")), notes=("end",))
    assert table.plain() == "t\nname        n\n------  -----\na           1\nlonger  1,000\nend"
    assert Table("", ("name",), ()).plain() == "name\n----"


def test_plain_without_a_terminal_and_rich_on_one(monkeypatch):
    table = Table("t", ("name", ">n"), (("[bold]x[/bold]", "1"),), marked=frozenset({0}))
    out = io.StringIO()
    print_table(table, out)
    assert out.getvalue() == table.plain() + "\n"
    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    console.print(table.rich())
    shown = console.file.getvalue()
    assert "[bold]x[/bold]" in shown  # a user's text is not read as markup
    assert "\x1b[" in shown


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_a_narrow_terminal_has_records_for_a_wide_table(width):
    row = {
        "device": "rtx4090", "method": "int4 weights, head int8 + window 1024+4", ">first token": "188 ms",
        "bound by": "tensor cores (80 %)", ">tokens/s": "194", "bound by ": "GDDR6X (53 %)", ">energy": "64.0 J",
        ">weights": "2.47 GB", ">memory": "3.18 GB",
    }  # fmt: skip
    table = Table("what it costs", tuple(row), (tuple(row.values()),) * 2, notes=("as the configuration says",))
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    console.print(table.rich(width))
    shown = [line.rstrip() for line in console.file.getvalue().splitlines()]
    text = " ".join(" ".join(shown).split())
    assert max(map(len, shown)) <= width
    for word in ("rtx4090", "188 ms", "194", "64.0 J", "2.47 GB", "3.18 GB", "as the configuration says"):
        assert any(word in line for line in shown), word  # in one piece
    if width < 100:
        assert text.count("rtx4090, int4 weights, head int8 + window 1024+4 first token 188 ms") == 2
        assert any("bound by tensor cores (80 %)" in line for line in shown)
    else:
        assert " · " not in text


def test_tune_table_and_summary(result):
    out = io.StringIO()
    print_tune(result, out)
    text = out.getvalue()
    best = next(line for line in text.splitlines() if line.startswith("★ "))
    for part in (
        "int8 weights + prompt lookup",
        "290 ms",
        "313 ms",
        "205",
        "2.97×",
        "2.93×",
        "21.4",
        "+0.2 %",
        "173 MB",
    ):
        assert part in best, part
    marks = [row[0] for row in tune_table(result).rows]
    assert marks == ["★", "●✗", "●✗", "●", "●", "", "", "", "", "", ""]
    assert "transformers generate, fp32" in text
    assert "15.6× the rate of transformers' own generate in fp32" in text
    assert "5.16× that of the unchanged model" in text
    assert "Of 10 combinations 8 were measured, and 6 of those stay within the quality floor." in text
    assert "drop 20 layers: leaves fewer than 12 layers" in text


def test_what_each_method_gave(result):
    whole = ladder_table(result)
    out = io.StringIO()
    print_tune(result, out)
    assert [row[0] for row in whole.rows] == ["int8 weights", "prompt lookup (3-gram, 8 drafted)"]
    assert whole.rows[0][1] == "3.02×"  # decoding took 1.612 s unchanged, 0.533 s with the first method
    assert whole.rows[1][1] == "1.70×"
    assert whole.rows[1][4] == "±0.0 %"
    assert whole.plain() in out.getvalue()
    assert ladder_table(result.model_copy(update={"combinations": []})).rows == ()


def test_a_long_table_is_cut_and_says_so(result):
    table = tune_table(result, limit=3)
    assert len(table.rows) == 4  # three and transformers
    assert "and 7 more, in the report" in table.notes


def test_the_unchanged_model_may_win(result):
    alone = result.model_copy(update={"combinations": []})
    out = io.StringIO()
    print_tune(alone, out)
    assert "The unchanged model is the fastest that stays within the quality floor." in out.getvalue()
    assert tune_table(alone).rows[0][0] == "★"


def test_lists():
    papers = paper_table([{"slug": "fusemax", "title": "FuseMax", "field": "hardware", "status": "card", "year": 2024}])
    assert papers.rows == (("fusemax", "2024", "hardware", "card", "FuseMax"),)
    checks = check_table(
        "fusemax",
        [
            {"claim": "speed-up", "paper": 5.5, "seen": 4.9182, "verdict": "holds", "seconds": 12.0},
            {"claim": "energy", "paper": None, "seen": None, "verdict": "not checkable here: no chip", "seconds": 0},
        ],
    )
    assert checks.rows[0] == ("speed-up", "5.50", "4.92", "holds", "12.0 s")
    assert checks.rows[1][1:4] == ("–", "–", "not checkable here: no chip")
    assert checks.marked == {0}
    assets = asset_table(
        [{"name": "brown", "title": "Brown corpus", "bytes": 3.3e6, "licence": "free", "cached": True}]
    )
    assert assets.rows == (("brown", "3.30 MB", "yes", "free", "Brown corpus"),)
