"""What flow graphs cost: the published figures, conservation, closed forms, sensitivities."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hasten.cost.flows.flow_cost import density_scale, flow_cost, sensitivities, upstream_joules
from hasten.errors import HastenError
from hasten.hardware.chips.flow_graph import FlowGraph, flow_graph

RUN5 = flow_graph("cms-run5")
GAUSSIAN = {"kind": "gaussian", "skill": 2.0}


def pipeline(**changed: object) -> FlowGraph:
    """Two sensors, a merger, two stages that sort, a disk."""
    sort = {"reduction": 5, "classifier": GAUSSIAN, "joules_per_op": 1e-3}
    made = {
        "name": "toy",
        "sources": [
            {"name": n, "rate": 1000, "bytes": b, "links": [{"to": "merge", "joules_per_bit": 1e-9, "latency": t}]}
            for n, b, t in (("a", 100, 1e-3), ("b", 300, 5e-3))
        ],
        "stages": [
            {"name": "merge", "kept": 0.5, "links": [{"to": "first", "joules_per_bit": 2e-9, "bandwidth": 1e6}]},
            {"name": "first", **sort, "links": [{"to": "second", "joules_per_bit": 1e-9}]},
            {"name": "second", **sort, "reduction": 4, "links": [{"to": "disk", "joules_per_bit": 1e-9}]},
            {"name": "disk"},
        ],
    }
    return FlowGraph.of(**{**made, **changed})


@pytest.mark.parametrize(
    ("options", "megawatts", "f1"),
    [
        ((), 51.66, 0.386),
        (("gpu",), 25.88, 0.386),
        (("l1-tracking",), 51.65, 0.793),
        (("smart-pixels",), 40.88, 0.386),
        (("gpu", "l1-tracking"), 26.01, 0.793),
        (("smart-pixels", "l1-tracking"), 40.88, 0.793),
        (("gpu", "smart-pixels"), 20.48, 0.386),
        (("gpu", "smart-pixels", "l1-tracking"), 20.59, 0.793),
    ],
)
def test_the_eight_options_of_cms(options: tuple[str, ...], megawatts: float, f1: float) -> None:
    cost = flow_cost(RUN5.chosen(*options))
    assert cost.watts / 1e6 == pytest.approx(megawatts, rel=0.01)
    assert cost.f1 == pytest.approx(f1, abs=0.03)
    assert cost.stored == pytest.approx(40e6 / 5330)


def test_rates_energies_and_latencies_of_cms() -> None:
    cost = flow_cost(RUN5)
    first, last = cost.nodes["Intermediate"], cost.nodes["Global"]
    assert (first.bytes, first.ops) == pytest.approx((8_425_000, 4.2125))
    assert first.joules == pytest.approx(0.0126375)
    assert first.watts == pytest.approx(505_500, rel=1e-6)
    assert first.rejected[0] == pytest.approx(39_244_635, rel=1e-4)
    assert first.passed[0] == pytest.approx(747_859, rel=5e-3)
    assert last.joules == pytest.approx(446.0, abs=0.1)
    assert upstream_joules(RUN5, cost, "Disk") == pytest.approx(446.055, abs=0.002)
    assert first.seconds == pytest.approx(1.803e-6)
    assert cost.seconds == pytest.approx(3.605e-6)
    assert flow_cost(flow_graph("cms-run3")).nodes["Global"].ops == pytest.approx(1.2146, abs=1e-4)
    assert flow_cost(flow_graph("cms-run3")).watts == pytest.approx(0.322e6, rel=0.01)
    assert flow_cost(RUN5.changed({"Intermediate.reduction": 400})).watts == pytest.approx(6.978e6, rel=0.01)
    with pytest.raises(HastenError, match="no node 'Tape'"):
        upstream_joules(RUN5, cost, "Tape")


def test_what_is_rejected_and_what_passes_is_what_came() -> None:
    for graph in (RUN5, pipeline()):
        cost = flow_cost(graph)
        for node in cost.nodes.values():
            assert node.rejected + node.passed == pytest.approx(node.received)
        assert cost.contingency.sum() == pytest.approx(graph.sources[0].rate)
        lost = sum(n.rejected[1] for n in cost.nodes.values())
        assert cost.recall == pytest.approx(1 - lost / cost.contingency[:, 1].sum())


def test_branches_that_meet_again_are_averaged_and_nothing_is_lost() -> None:
    branch = {"reduction": 2, "classifier": GAUSSIAN, "links": [{"to": "disk"}]}
    graph = pipeline(
        sources=[{"name": "a", "rate": 1000, "links": [{"to": "left"}, {"to": "right"}]}],
        stages=[{"name": "left", **branch}, {"name": "right", **branch, "reduction": 8}, {"name": "disk"}],
        relevant=0.1,
    )
    cost = flow_cost(graph)
    assert cost.nodes["disk"].received == pytest.approx((cost.nodes["left"].passed + cost.nodes["right"].passed) / 2)
    assert cost.contingency.sum() == pytest.approx(1000)
    assert cost.contingency[:, 1].sum() == pytest.approx(100)


def test_sizes_add_and_latencies_take_the_longest_way() -> None:
    cost = flow_cost(pipeline())
    assert [cost.nodes[n].bytes for n in ("merge", "first", "second", "disk")] == [400, 200, 200, 200]
    assert cost.nodes["merge"].received.sum() == pytest.approx(1000)  # an average of fragments, no sum
    assert cost.links["merge", "first"].throughput == pytest.approx(400 * 1000)
    assert cost.links["merge", "first"].utilization == pytest.approx(0.4)
    assert cost.links["first", "second"].rate == pytest.approx(200)
    assert cost.seconds == pytest.approx(5e-3 + 400 / 1e6)
    assert not cost.overloaded
    assert flow_cost(pipeline().changed(times={"a.rate": 3, "b.rate": 3})).overloaded == [("merge", "first")]


def test_without_sorting_everything_is_kept_and_power_is_a_sum() -> None:
    graph = pipeline().changed({"first.reduction": 1, "second.reduction": 1})
    cost = flow_cost(graph)
    assert cost.recall == 1
    assert cost.contingency[0] == pytest.approx([0, 0])
    links = 8 * 1000 * (100e-9 + 300e-9 + 2 * 400e-9 + 2 * 200e-9)
    assert cost.watts == pytest.approx(links + 2 * 1000 * 200e-3)


def test_twice_the_energy_is_half_the_productivity_and_twice_the_rate_leaves_it() -> None:
    graph = pipeline()
    base = flow_cost(graph).productivity
    energies = {n: 2.0 for n in graph.parameters if ".joules" in n}
    assert flow_cost(graph.changed(times=energies)).productivity == pytest.approx(base / 2)
    assert flow_cost(graph.changed(times={"a.rate": 2, "b.rate": 2})).productivity == pytest.approx(base)


def test_a_link_in_two_pieces_costs_as_much() -> None:
    parts = pipeline().model_dump(mode="json")
    (first,) = parts["stages"][1]["links"]
    parts["stages"][1]["links"] = [{**first, "to": "relay", "joules_per_bit": 0.4e-9}]
    parts["stages"].append({"name": "relay", "links": [{**first, "joules_per_bit": 0.6e-9}]})
    assert flow_cost(FlowGraph.of(**parts)).productivity == pytest.approx(flow_cost(pipeline()).productivity)


def test_the_year_scales_energies_and_can_be_left_out() -> None:
    scaled, plain = flow_cost(RUN5), flow_cost(RUN5, scaled=False)
    assert density_scale(2032) == pytest.approx(6.499570514)
    assert plain.watts == pytest.approx(scaled.watts * density_scale(2032))
    assert density_scale(2022) == 1


def test_gradients_are_those_of_closed_forms_and_of_the_paper() -> None:
    graph = pipeline()
    base = flow_cost(graph)
    found = sensitivities(graph)
    assert set(found) == set(graph.parameters)
    for name in ("first.joules_per_op", "merge > first.joules_per_bit", "disk.joules_per_op"):
        # productivity is A / P, and P is linear in an energy: the gradient is -A / P^2 times what one more unit takes.
        watts = flow_cost(graph.changed({name: graph.parameters[name] + 1})).watts - base.watts
        assert found[name].gradient == pytest.approx(-base.productivity * watts / base.watts, rel=5e-3)
    assert found["first.joules_per_op"].elasticity < found["second.joules_per_op"].elasticity < 0
    assert (found["a.rate"].depth, found["first.boost"].depth, found["a > merge.joules_per_bit"].depth) == (0, 2, 0)
    assert [abs(s.elasticity) for s in found.values()] == sorted(
        (abs(s.elasticity) for s in found.values()), reverse=True
    )
    # Published for all options, of samples for a joule: by finite differences of the repository's program.
    published = {"HGCAL.bytes": -9.15e-11, "Intermediate.joules_per_op": -3.36e-4, "Global.joules_per_op": -1.71e-5}
    seen = sensitivities(RUN5.chosen(*RUN5.options), published)
    assert {n: s.gradient for n, s in seen.items()} == pytest.approx(published, rel=0.1)


def test_what_has_no_gradient_is_told() -> None:
    free = pipeline(stages=[{"name": "merge", "links": [{"to": "disk"}]}, {"name": "disk"}])
    free = free.changed({n: 0.0 for n in free.parameters if ".joules" in n})
    assert flow_cost(free).productivity == math.inf
    with pytest.raises(HastenError, match="no gradient"):
        sensitivities(free)
    with pytest.raises(HastenError, match="no parameter"):
        sensitivities(pipeline(), ["first.colour"])
    with pytest.raises(HastenError, match="operations"):
        flow_cost(pipeline().changed({"first.ops": -1.0}))
    assert np.isfinite(flow_cost(pipeline()).contingency).all()
    backwards = {"kind": "scores", "irrelevant": (5.0, 6.0), "relevant": (1.0, 2.0)}
    poor = pipeline().model_copy(update={"relevant": 0.01}).model_dump()
    poor["stages"][1]["classifier"] = backwards
    with pytest.raises(HastenError, match="stores nothing relevant"):
        sensitivities(FlowGraph.of(**poor))
    large = pipeline().model_dump()
    large["sources"][0]["bytes"], large["stages"][1]["ops"] = 1e300, (0.0, 0.0, 1.0)
    with pytest.raises(HastenError, match="inf operations"):
        flow_cost(FlowGraph.of(**large))
