"""Figures: what they show is what the result says, and what is drawn lies where it must."""

import doctest
import itertools
import math

import pytest

from hasten.report import findings, plots, quantities


@pytest.mark.parametrize("module", [quantities, plots])
def test_examples_in_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


def traces(figure):
    return {t.name: t for t in figure.data if t.name}


def test_pareto_has_each_measured_combination_once(result):
    shown = traces(plots.pareto(result))
    drawn = sum(len(shown[name].x) for name in ("measured", "Pareto", "best"))
    assert drawn == sum(c.measured is not None for c in findings.everything(result)) == 8
    assert shown["best"].x == (result.best.measured.latency,)


def test_staircase_never_passes_below_a_point_of_the_front(result):
    line = next(t for t in plots.pareto(result).data if t.mode == "lines")
    corners = list(zip(line.x, line.y))
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        assert x0 == x1 or y0 == y1
        assert x1 >= x0
        assert y1 <= y0


def test_speedups_are_ratios_to_the_unchanged_model(result):
    shown = traces(plots.speedups(result))
    before = result.baseline.measured.latency
    measured = sorted(c.measured.latency for c in findings.everything(result) if c.measured)
    assert sorted(shown["measured"].x, reverse=True) == pytest.approx([before / latency for latency in measured])
    assert len(shown["predicted"].x) == len(shown["measured"].x)


def test_prediction_plot_holds_prefill_and_decode(result):
    shown = traces(plots.predicted_measured(result))
    best = result.best
    assert (best.measured.decode, best.predicted.decode) in list(zip(shown["decode"].x, shown["decode"].y))
    assert (best.measured.prefill, best.predicted.prefill) in list(zip(shown["prefill"].x, shown["prefill"].y))
    assert list(shown["equal"].x) == list(shown["equal"].y)


def test_roofline_sums_layers_and_respects_the_roofs(result):
    figure = plots.roofline(result.kernels["unchanged"], result.roof)
    shown = traces(figure)
    bandwidth, peak = list(result.roof.memory.values())[-1], max(result.roof.compute.values())
    assert len(shown["decode"].x) == 7  # five linear layers, the norm, the head: once each, not 30 times
    for phase in ("prefill", "decode"):
        for intensity, rate in zip(shown[phase].x, shown[phase].y):
            assert rate <= min(peak, intensity * bandwidth) * 1.001
    lowest, highest = figure.layout.yaxis.range
    assert all(lowest < math.log10(y) < highest for p in ("prefill", "decode") for y in shown[p].y)


def test_layer_bars_sum_to_the_time_of_a_step(result):
    figure = plots.layers(result.kernels, "decode")
    for panel, axis in (("unchanged", "x"), ("best", "x2")):
        bars = [t for t in figure.data if (t.xaxis or "x") == axis]
        total = sum(k.latency for k in result.kernels[panel] if k.phase == "decode")
        assert sum(sum(b.y) for b in bars) == pytest.approx(total)
        assert bars[0].x == (*map(str, range(30)), "lm_head")


@pytest.mark.parametrize(
    ("module", "place"),
    [
        ("network.model.embed_tokens", ("embed_tokens", "rest")),
        ("model.layers.11.self_attn.q_proj", ("11", "attention")),
        ("model.layers.0.self_attn.q_norm", ("0", "norm")),
        ("model.layers.7.mlp.down_proj", ("7", "MLP")),
        ("network.model.norm", ("norm", "norm")),
        ("transformer.h.3.ln_1", ("3", "norm")),
        ("", ("(root)", "rest")),
    ],
)
def test_where_a_module_is(module, place):
    assert plots.layer_of(module) == place


def test_summary_without_a_prediction_error_or_reference(result):
    nothing = result.model_copy(
        update={"baseline": result.baseline.model_copy(update={"measured": None}), "combinations": []}
    )
    assert findings.prediction_error(nothing) is None
    assert findings.worst_perplexity(nothing) is None
