"""Every page with plots: each plot is told in words, what no script draws is said, and no button sends anything."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from plotly.graph_objects import Bar, Figure, Scatter
from plotly.offline import get_plotlyjs

from hasten.papers import papers
from hasten.report import write_search
from hasten.report.claims_page import claims_page
from hasten.report.html import content_of, page
from hasten.report.placing import alternative_text, placed
from hasten.search import Objective, Problem, Space, Study, integer
from hasten.tuning.outcome import TuneResult


@pytest.fixture(params=["tune", "search"])
def text(request: Any, result: TuneResult, tmp_path: Path) -> str:
    if request.param == "tune":
        return page(result)
    problem = Problem(
        "toy", Space([integer("n", 1, 40)]), (Objective("cost", unit="J"), Objective("gain", "maximize")),
        lambda params: {"cost": params["n"], "gain": params["n"] % 5},
    )  # fmt: skip
    write_search(problem, Study().run(problem, sampler="random", trials=20), tmp_path)
    return (tmp_path / "search.html").read_text("utf-8")


def test_every_plot_is_told_in_words(text: str) -> None:
    plots = re.findall(r'<div class="plot"[^>]*>', text)
    assert len(plots) >= 3
    for plot in plots:
        assert 'role="img"' in plot
        told = re.search(r'aria-label="([^"]*)"', plot)
        assert told is not None
        assert re.match(r"(Scatter|Bar|Line)", unescape(told[1])), plot
        assert len(told[1]) > 60
    assert len({re.sub(r'id="[^"]*"', "", plot) for plot in plots}) == len(plots)


def test_where_no_script_runs_the_page_says_so(text: str) -> None:
    assert text.count("<noscript>") == 1
    assert "<noscript>" in claims_page(papers()[:1], [])


def test_no_button_sends_anything() -> None:
    assert "showSendToCloud:{valType" in get_plotlyjs()  # the option is still called so
    assert "showSendToCloud: false" in content_of("page.js")
    assert 'plotlyServerURL: ""' in content_of("page.js")


def test_a_text_names_axes_and_series() -> None:
    figure = Figure(
        [Bar(x=[1.0, float("nan"), 3.0], y=["a", "b", "c"], name="<b>A &amp; B</b>"), Scatter(x=[], name="")]
    )
    figure.update_xaxes(title="seconds")
    assert alternative_text(figure) == "Bar chart and line chart of seconds. A & B: 3 bars, from 1 to 3 across."
    assert alternative_text(Figure()) == "Empty plot."
    many = Figure([Scatter(x=[n], mode="markers", name=f"s{n}") for n in range(15)])
    assert alternative_text(many).endswith("s11: 1 point, from 11 to 11 across. And 3 more.")
    assert "&quot;" in placed("p", Figure(Scatter(x=[1], name='"')))
