from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.hardware.chips.core_array import core_array
from hasten.report import schedules
from hasten.report.schedules import schedule_table, scheduled, schedules_document, write_schedules
from hasten.workload import Workload, trace


@pytest.fixture(scope="module")
def workload() -> Workload:
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    return trace(net, torch.zeros(1, 64), name="<net>")


def test_a_table_and_a_document_say_what_a_schedule_costs(workload: Workload) -> None:
    (found,) = scheduled(workload, core_array("intar-2x16"), "reconfigurable")
    table = schedule_table([found])
    assert table.title == "<net>, reconfigurable"
    assert table.rows[0][:2] == ("intar-2x16", "forward")
    assert all(len(row) == len(table.columns) for row in table.rows)
    (one,) = schedules_document([found])["schedules"]
    assert one["cycles"] == found.cost.cycles
    # Weights, biases, inputs and results in 16 bits.
    assert one["off_chip_bytes"] == 2 * (2 * 64 * 256 + 256 + 64 + 64 + 64)
    assert sum(s["cycles"] for s in one["stages"]) <= one["cycles"]
    assert {r["task"] for r in one["instructions"]} == {"0", "2"}


def test_a_page_has_a_chart_of_each_and_escapes_names(workload: Workload, tmp_path: Path) -> None:
    found = scheduled(workload, core_array("intar-3x16"), "dataflow")
    write_schedules(found, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "plot-schedule-0" in text
    assert "&lt;net&gt;" in text
    assert "<net>" not in text


def test_a_model_of_more_tasks_than_are_scheduled_is_refused_in_a_line(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules, "_MOST_TASKS", 1)
    with pytest.raises(HastenError, match="has 2 tasks where at most 1 are scheduled: give fewer layers") as refusal:
        scheduled(workload, core_array("intar-2x16"), "sequential")
    assert "\n" not in str(refusal.value)
