"""Published measurements that predictions are compared with: what they say, how they are divided and scored."""

from __future__ import annotations

import math
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hasten.cost import estimate
from hasten.cost.demand import Demand
from hasten.hardware import load_device
from hasten.hardware.achieved import Achieved, families

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The rows, imported as `python benchmarks/devices.py` would."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    from published import rows

    yield rows
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


@pytest.fixture
def script(published: Any) -> Any:
    return __import__("devices")


def compared(published: Any) -> list[Any]:
    return [row for row in published.rows() if not row.left_out]


def test_every_row_names_a_device_a_model_and_a_source(published: Any) -> None:
    rows = published.rows()
    assert len({row.id for row in rows}) == len(rows) >= 150
    for row in rows:
        load_device(row.on)
        assert row.source, row.id
        assert row.address.startswith("http"), row.id
        assert row.value > 0, row.id
        if not row.left_out:
            assert row.model in published.configs() or row.model in published.NETWORKS, row.id
            assert row.seconds > 0, row.id


def test_what_scope_and_suspect_say_is_left_out(published: Any) -> None:
    why = Counter(row.left_out for row in published.rows() if row.left_out)
    assert set(why) >= {"suspect: framework", "suspect: overhead", "suspect: tp-communication", "scope: serving"}
    assert all(not row.suspect for row in compared(published))


def test_every_configuration_says_where_it_is_from(published: Any) -> None:
    for name, entry in published.configs().items():
        assert len(entry["source"]) > 10, name
        assert entry["config"]["model_type"], name


def _meets(rows: list[Any], family: dict[str, str]) -> bool:
    sides = {side: [row for row in rows if row.side == side] for side in ("judged", "fitted")}
    sources: dict[str, set[str]] = {}
    for row in rows:
        sources.setdefault(family[row.id], set()).add(row.source)
    spoken = {f for f, named in sources.items() if len(named) > 1}
    judged = sides["judged"]
    return (
        len(judged) >= 60
        and len({row.device_as_named for row in judged}) >= 20
        and len({frozenset(row.phase for row in half) for half in sides.values()}) == 1
        and all(spoken <= {family[row.id] for row in half} for half in sides.values())
    )


def test_no_source_is_on_both_sides_and_the_split_is_the_first_that_meets_its_conditions(
    published: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: dict[str, set[str]] = {}
    for row in compared(published):
        sides.setdefault(row.source, set()).add(row.side)
    assert all(len(found) == 1 for found in sides.values())
    chosen, rows = published.SALT, compared(published)
    family = {row.id: load_device(row.on).family for row in rows}
    meeting = []
    for salt in range(chosen + 1):
        monkeypatch.setattr(published, "SALT", salt)
        meeting += [salt] if _meets(rows, family) else []
    assert meeting == [chosen]


def test_values_become_seconds_of_one_step_prompt_or_pass(published: Any) -> None:
    known = {row.id: row for row in published.rows()}
    assert known["m001"].seconds == pytest.approx(1 / 67.79)
    assert known["m002"].seconds == pytest.approx(1024 / 10342.63)
    assert known["m035"].seconds == pytest.approx(8 / 829.754)
    assert known["m073"].seconds == pytest.approx(1024 / 6356.02)
    assert known["m081"].seconds == pytest.approx(18.94e-3)
    assert known["m107"].seconds == pytest.approx(1 / 3.83)
    assert known["m300"].seconds == pytest.approx(81 * 2048 / 1953)


def _kernels(seconds: float) -> Counter[Demand]:
    one = Demand(
        overhead=0.0, compiled=True, units=(("cores", (("product", "bf16", seconds / 4),)),), measured=None,
        waiting=0.0, inner=(0.0, "L2"), outer=(("weights", "bf16", seconds),), memory="HBM",
    )  # fmt: skip
    return Counter({one: 10})


def test_a_score_counts_errors_and_ranks(script: Any, published: Any) -> None:
    rows = [row for row in published.rows() if row.phase == "decode" and row.unit == "tokens/s"][:4]
    items = [
        script.Priced(row, load_device(row.on), {"decode": (1.0, _kernels(row.seconds / 10))}, 0.0) for row in rows
    ]
    assert [item.roofline for item in items] == pytest.approx([row.seconds for row in rows])
    score = script.Score.of(items, lambda item: 1.1 * item.roofline)
    assert (score.rows, score.median, score.within, score.rank) == (4, pytest.approx(0.1), 1.0, pytest.approx(1.0))
    assert script.Score.of(items, lambda item: 3 * item.roofline).within == 0


def test_a_row_is_priced_as_estimate_prices_it(script: Any, published: Any) -> None:
    row = next(row for row in published.rows() if row.id == "m083")
    item, device = script.priced(row), load_device(row.on)
    cost = estimate(published.workload_of(row), device, schedule="fused")
    assert script.ours(item) == pytest.approx(cost.latency)
    peak = estimate(published.workload_of(row), device, schedule="fused", at_peak=True)
    assert item.seconds(Achieved()) == pytest.approx(peak.latency)
    assert peak.latency < cost.latency


def test_a_fit_finds_the_shares_that_rows_were_made_with(script: Any, published: Any) -> None:
    """Each row is what a device that reaches 60 % of its bandwidth would have given."""
    from dataclasses import replace

    from published.shares import fit

    rows = [row for row in published.rows() if row.on in ("rtx4090", "a100") and row.unit == "tokens/s"]
    items = []
    for number, row in enumerate(rows[:8]):
        seconds = 1e-2 * (1 + number)
        made = replace(row, value=0.6 / seconds, batch=1, phase="decode", scope="")
        items.append(script.Priced(made, load_device(row.on), {"decode": (1.0, _kernels(seconds / 10))}, 0.0))
    found = fit(items)
    for family in {item.device.family for item in items}:
        assert float(found[family].bandwidth["bf16"]) == pytest.approx(0.6, abs=0.05)
        assert float(found[family].product["bf16"]) == pytest.approx(0.5, abs=0.05)  # nothing was said of it


def test_the_families_are_those_that_a_fit_gives(published: Any) -> None:
    from published.shares import GROUPS

    assert set(GROUPS) == set(families())


@pytest.mark.slow
def test_the_judged_half_is_predicted(script: Any, published: Any) -> None:
    items = [script.priced(row) for row in compared(published) if row.side == "judged"]
    mine, plain = script.Score.of(items, script.ours), script.Score.of(items, script.plain)
    assert mine.rows >= 60
    assert mine.devices >= 20
    assert mine.median <= 0.2
    assert mine.rank >= 0.95
    assert mine.median < plain.median / 2
    assert statistics.median(abs(math.log(script.ours(i) / i.row.seconds)) for i in items) < math.log(1.25)
