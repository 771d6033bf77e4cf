from __future__ import annotations

import pytest

from hasten.cost.timeline import Activity, run_timeline
from hasten.errors import HastenError
from hasten.report.timeline_plots import gantt


def test_a_gantt_chart_has_a_row_a_lane_and_a_bar_an_activity() -> None:
    line = run_timeline(
        [
            Activity("load <1>", "link", 2.0, label="load"),
            Activity("run 1", "array", 3.0, ("load <1>",), label="run"),
            Activity("load 2", "link", 1.0, label="load"),
        ]
    )
    figure = gantt(line)
    assert [t.name for t in figure.data] == ["load", "run"]
    loads = figure.data[0]
    assert list(loads.base) == [0.0, 2.0]
    assert list(loads.x) == [2.0, 1.0]
    assert list(loads.y) == ["link", "link"]
    assert "load &lt;1&gt;" in loads.text[0]
    assert list(figure.layout.yaxis.categoryarray) == ["array", "link"]
    with pytest.raises(HastenError, match="more than a browser draws"):
        gantt(line, most=2)
