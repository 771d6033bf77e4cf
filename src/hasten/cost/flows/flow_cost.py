"""What a flow graph moves, costs and keeps: rates, bytes, watts, a contingency table, productivity (arXiv 2407.00123).

    cost = flow_cost(flow_graph("cms-run5").chosen("gpu", "smart-pixels"))
    cost.watts, cost.recall, cost.productivity

Sizes add up where data meets, while numbers of events are averaged: what meets are fragments of the same event. A stage
is charged for every event that it receives, a link for every event that its tail passes on. The paper's program rounds
rates down to whole events; here they stay fractions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import networkx as nx
import numpy as np

from hasten.cost.flows.sorting import Sorted, Values, score_model, sort_out
from hasten.errors import HastenError
from hasten.hardware.chips.flow_graph import FlowGraph, FlowSource

_PER_YEAR, _BASE_YEAR = 0.18717361, 2022


def density_scale(year: float) -> float:
    """Transistors in an area, over those of 2022: what energies are divided by (IEDM 2022, by the paper's fit).

    >>> round(density_scale(2032), 4)
    6.4996
    """
    return math.exp(_PER_YEAR * (year - _BASE_YEAR))


class NodeFlow(NamedTuple):
    """What a source or a stage does.

    Args:
        bytes: of an event, what came and what is added.
        ops: operations of an event.
        received, passed, rejected: irrelevant and relevant events a second, (2,) each.
        sorted: shares and threshold; None where nothing is sorted.
        joules: of an event.
        watts: of all.
        seconds: from an event's beginning until it is done here, the longest way.
    """

    bytes: float
    ops: float
    received: Values
    passed: Values
    rejected: Values
    sorted: Sorted | None
    joules: float
    watts: float
    seconds: float


class LinkFlow(NamedTuple):
    """What a link moves.

    Args:
        bytes: of an event.
        rate: events a second.
        watts: of moving.
        utilization: of its bandwidth, above 1 where it is too narrow; None where it has no bandwidth.
    """

    bytes: float
    rate: float
    watts: float
    utilization: float | None

    @property
    def throughput(self) -> float:
        """B/s."""
        return self.bytes * self.rate


@dataclass(frozen=True)
class FlowCost:
    """A flow graph's nodes, links and sums.

    Args:
        nodes: by name.
        links: by the names of tail and head.
        contingency: (2, 2) events a second: rejected and passed, of irrelevant and relevant ones, all stages together.
        scale: what watts are divided by, for the technology's year.
    """

    nodes: Mapping[str, NodeFlow]
    links: Mapping[tuple[str, str], LinkFlow]
    contingency: Values
    scale: float

    @property
    def watts(self) -> float:
        """Of all stages and links, scaled."""
        return (sum(n.watts for n in self.nodes.values()) + sum(k.watts for k in self.links.values())) / self.scale

    @property
    def precision(self) -> float:
        """Share of stored events that are relevant."""
        return _share(self.contingency[1, 1], self.contingency[1].sum())

    @property
    def recall(self) -> float:
        """Share of relevant events that are stored."""
        return _share(self.contingency[1, 1], self.contingency[:, 1].sum())

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return _share(2 * self.precision * self.recall, self.precision + self.recall)

    @property
    def stored(self) -> float:
        """Events a second that reach the storage."""
        return float(self.contingency[1].sum())

    @property
    def productivity(self) -> float:
        """``f1 * stored / watts``: samples for a joule; inf where nothing costs energy."""
        return self.f1 * self.stored / self.watts if self.watts else math.inf

    @property
    def seconds(self) -> float:
        """From an event's beginning until it is stored."""
        return max(n.seconds for n in self.nodes.values())

    @property
    def overloaded(self) -> list[tuple[str, str]]:
        """Links that would have to move more than they can."""
        return [ends for ends, link in self.links.items() if link.utilization is not None and link.utilization > 1]


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def flow_cost(graph: FlowGraph, *, seed: int = 0, scaled: bool = True) -> FlowCost:
    """Sends events through a graph.

    Args:
        graph: of sources and stages.
        seed: of triggers that are simulated.
        scaled: whether energies are those of the graph's year (`density_scale`).
    """
    links = graph.graph
    ratio = _ratios(graph)
    nodes: dict[str, NodeFlow] = {}
    moved: dict[tuple[str, str], LinkFlow] = {}
    for name in graph.order:
        node, before = graph.nodes[name], list(links.predecessors(name))
        size = node.bytes + sum(graph.nodes[b].kept * nodes[b].bytes for b in before)
        ops, found = node.operations(size), None
        if ops < 0 or not math.isfinite(ops):
            raise HastenError(f"{name!r} takes {ops:g} operations for an event of {size:g} bytes: mend its ops")
        if isinstance(node, FlowSource):
            relevant = 1 / ratio[name] if graph.relevant is None else graph.relevant
            received = node.rate * np.array([1 - relevant, relevant])
        else:
            received = np.mean([nodes[b].passed for b in before], axis=0)
            if node.classifier is not None:
                scores = score_model(node.classifier, seed)
                found = sort_out(scores, received, node.reduction, node.boost)
        shares = np.ones(2) if found is None else found.passed
        joules = node.joules_per_op * ops
        arrived = [nodes[b].seconds + _moving(graph, b, name, nodes[b].bytes) for b in before]
        passed = received * shares
        nodes[name] = NodeFlow(
            size, ops, received, passed, received - passed, found, joules, joules * float(received.sum()),
            node.latency + max(arrived, default=0.0),
        )  # fmt: skip
        for link in node.links:
            rate = float(passed.sum())
            used = None if link.bandwidth is None else size * rate / link.bandwidth
            moved[name, link.to] = LinkFlow(size, rate, 8 * link.joules_per_bit * size * rate, used)
    rejected = sum(share * nodes[name].rejected for name, share in _weights(graph).items())
    contingency = np.stack([rejected, nodes[graph.order[-1]].passed])
    scale = density_scale(graph.year) if scaled and graph.year is not None else 1.0
    return FlowCost(nodes, moved, contingency, scale)


def _ratios(graph: FlowGraph) -> dict[str, float]:
    """Name -> events at a node for each that is stored: the product of reductions from there on."""
    own = {n: 1.0 if isinstance(v, FlowSource) else v.reduction for n, v in graph.nodes.items()}
    return {n: math.prod(own[d] for d in (n, *nx.descendants(graph.graph, n))) for n in graph.nodes}


def _weights(graph: FlowGraph) -> dict[str, float]:
    """Name -> how much a node's events count among those of the storage: where branches meet they are averaged."""
    links, weights = graph.graph, {graph.order[-1]: 1.0}
    for name in reversed(graph.order[:-1]):
        weights[name] = sum(weights[after] / links.in_degree(after) for after in links.successors(name))
    return weights


def _moving(graph: FlowGraph, tail: str, head: str, size: float) -> float:
    link = graph.graph.edges[tail, head]["link"]
    return float(link.latency + (size / link.bandwidth if link.bandwidth else 0.0))


def upstream_joules(graph: FlowGraph, cost: FlowCost, name: str) -> float:
    """J that stages spend on an event until a node is done with it, links and the year's technology left out.

    Raises:
        HastenError: no such node.
    """
    if name not in cost.nodes:
        raise HastenError(f"flow graph {graph.name} has no node {name!r}: there are {', '.join(cost.nodes)}")
    return sum(cost.nodes[n].joules for n in (name, *nx.ancestors(graph.graph, name)))


class Sensitivity(NamedTuple):
    """How productivity answers to a parameter.

    Args:
        value: of the parameter.
        gradient: change of productivity over a small change of the parameter.
        elasticity: relative change of productivity over relative change of the parameter; 0 for a parameter of 0.
        depth: longest way from a source to the node, in links: 0 at sources.
    """

    value: float
    gradient: float
    elasticity: float
    depth: int


# Steps of scores and reductions are wide, as what was sampled has steps itself.
_BOOST, _REDUCTION, _OTHER = 0.05, 0.02, 1e-3


def sensitivities(graph: FlowGraph, names: Iterable[str] | None = None, *, seed: int = 0) -> dict[str, Sensitivity]:
    """Gradients of productivity to parameters, by central differences with the same random numbers on both sides.

    That to a boost is to a better classifier alone, as the paper's are: what was sampled has steps.

    Args:
        graph: at which they are taken.
        names: of `FlowGraph.parameters`; all when None.
        seed: of triggers that are simulated.

    Returns:
        By parameter, the greatest change for a relative change first.

    Raises:
        HastenError: no such parameter, or a graph in which nothing costs energy, or that stores nothing relevant.
    """
    base = flow_cost(graph, seed=seed).productivity
    if not math.isfinite(base):
        raise HastenError(f"nothing in flow graph {graph.name} costs energy: productivity has no gradient")
    if not base:
        raise HastenError(f"flow graph {graph.name} stores nothing relevant for its energy: productivity is 0")
    depths: dict[str, int] = {}
    for name in graph.order:
        depths[name] = max((depths[b] + 1 for b in graph.graph.predecessors(name)), default=0)

    def at(name: str, value: float) -> float:
        return flow_cost(graph.changed({name: value}), seed=seed).productivity

    found = {}
    for name in graph.parameters if names is None else names:
        graph.check_parameter(name)
        value, field = graph.parameters[name], name.rpartition(".")[2]
        low, high = _around(value, field)
        if field != "boost" and value == 0:
            high = _first_step(partial(at, name), base)
        sides = [base if side == value else at(name, side) for side in (low, high)]
        gradient = (sides[1] - sides[0]) / (high - low)
        node = name.partition(" > ")[0] if " > " in name else name.rpartition(".")[0]
        found[name] = Sensitivity(value, gradient, gradient * value / base, depths[node])
    return dict(sorted(found.items(), key=lambda pair: -abs(pair[1].elasticity)))


def _around(value: float, field: str) -> tuple[float, float]:
    """Values on both sides that a parameter can have."""
    if field == "boost":
        return value, value + _BOOST
    step = value * (_REDUCTION if field == "reduction" else _OTHER)
    low, high = value - step, value + step
    if field == "reduction":
        return max(1.0, low), high
    return low, min(1.0, high) if field == "kept" else high


def _first_step(at: Callable[[float], float], base: float) -> float:
    """A step from 0 that changes productivity by a thousandth at most."""
    step = 1.0
    while step > 1e-30 and abs(at(step) / base - 1) > 1e-3:
        step /= 10
    return step


__all__ = [
    "FlowCost",
    "LinkFlow",
    "NodeFlow",
    "Sensitivity",
    "density_scale",
    "flow_cost",
    "sensitivities",
    "upstream_joules",
]
