"""Flow graphs: what sources record, and what stages process, sort out and pass on to one storage: data files.

After SystemFlow (arXiv 2407.00123), whose worked case, the CMS detector, is here as files.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import networkx as nx
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from hasten.errors import HastenError
from hasten.files import named_path, read_text
from hasten.hardware.chips.data_folder import DataFolder


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TurnOn(_Form):
    """How often a trigger fires, by the momentum of what it looks at.

    Args:
        name: of the trigger.
        midpoint, width, plateau: of ``plateau / 2 * (1 + erf((x - midpoint) / (sqrt(2) * width)))``; or
        points: momenta and shares that fire, with straight lines between.
        lowest, highest: momenta that were measured.
        threshold: momentum from which a particle counts as seen.
        rate: share of particles that fire it, from which the decay of momenta is fitted; or
        decay: of momenta itself: their density is ``decay * exp(-decay * x)``.
        most_decay: that a fit may find.
        share: how often this path is taken, beside those of the others.
    """

    name: str
    midpoint: float = 0.0
    width: PositiveFloat = 1.0
    plateau: float = Field(default=0.0, ge=0, le=1)
    points: tuple[tuple[float, float], ...] = ()
    lowest: NonNegativeFloat
    highest: PositiveFloat
    threshold: PositiveFloat
    rate: float | None = Field(default=None, gt=0, lt=1)
    decay: PositiveFloat | None = None
    most_decay: PositiveFloat = 0.4
    share: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _known(self) -> TurnOn:
        if (self.rate is None) == (self.decay is None):
            raise ValueError(f"trigger {self.name!r}: give either rate or decay")
        if self.lowest >= self.highest:
            raise ValueError(f"trigger {self.name!r}: lowest is not below highest")
        if bool(self.points) == bool(self.plateau):
            raise ValueError(f"trigger {self.name!r}: give either points, or midpoint, width and a plateau above 0")
        if list(self.points) != sorted(self.points) or not all(0 <= share <= 1 for _, share in self.points):
            raise ValueError(f"trigger {self.name!r}: points have rising momenta, and shares from 0 to 1")
        return self


class TriggerOutcome(_Form):
    """Triggers that fire together in this share of relevant events."""

    share: PositiveFloat
    fired: tuple[str, ...] = Field(min_length=1)


class GaussianScores(_Form):
    """Scores of irrelevant events are normal (0, 1), those of relevant ones normal (skill, deviation)."""

    kind: Literal["gaussian"]
    skill: float
    deviation: PositiveFloat = 1.0


class TriggerSum(_Form):
    """An event's score is the sum of what all triggers fire with: CMS' first level.

    Of an irrelevant event every momentum is below its threshold; of a relevant one those of an outcome are above.
    """

    kind: Literal["trigger-sum"]
    name: str = ""
    source: str = ""
    triggers: tuple[TurnOn, ...] = Field(min_length=1)
    outcomes: tuple[TriggerOutcome, ...] = Field(min_length=1)
    samples: PositiveInt = Field(default=50_000, le=10_000_000)

    @model_validator(mode="after")
    def _named(self) -> TriggerSum:
        known = {t.name for t in self.triggers}
        for outcome in self.outcomes:
            if unknown := set(outcome.fired) - known:
                raise ValueError(f"outcomes: there is no trigger {min(unknown)!r}")
        return self


class TriggerPaths(_Form):
    """An event's score is what one path, drawn by its share, fires with: CMS' high level.

    An irrelevant event lies in the share of momenta below the threshold, counted from the least; a relevant one in an
    equal share, counted from the greatest.
    """

    kind: Literal["trigger-paths"]
    name: str = ""
    source: str = ""
    paths: tuple[TurnOn, ...] = Field(min_length=1)
    samples: PositiveInt = Field(default=50_000, le=10_000_000)


class SampledScores(_Form):
    """Scores that a classifier gave to irrelevant and to relevant events."""

    kind: Literal["scores"]
    irrelevant: tuple[float, ...] = Field(min_length=1, repr=False)
    relevant: tuple[float, ...] = Field(min_length=1, repr=False)


Classifier: TypeAlias = Annotated[
    GaussianScores | TriggerSum | TriggerPaths | SampledScores, Field(discriminator="kind")
]


class _ClassifierFile(_Form):
    classifier: Classifier


class FlowLink(_Form):
    """A way to another node.

    Args:
        to: its name.
        joules_per_bit: of moving.
        bandwidth: B/s; None where it never matters.
        latency: seconds, whatever the size.
    """

    to: str
    joules_per_bit: NonNegativeFloat = 0.0
    bandwidth: PositiveFloat | None = None
    latency: NonNegativeFloat = 0.0


class FlowNode(_Form):
    """What sources and stages have in common.

    Args:
        name: unique in its graph.
        bytes: of an event that this node adds to what it receives.
        kept: share of an event's bytes that is left for the next node.
        ops: coefficients c0, c1, c2, ...: an event of x bytes takes ``c0 + c1 x + c2 x^2 + ...`` operations.
        joules_per_op: of an operation.
        latency: seconds that an event takes here.
        links: where it goes.
    """

    name: str = Field(min_length=1)
    bytes: NonNegativeFloat = 0.0
    kept: float = Field(default=1.0, gt=0, le=1)
    ops: tuple[float, ...] = Field(default=(0.0, 1.0), min_length=1)
    joules_per_op: NonNegativeFloat = 0.0
    latency: NonNegativeFloat = 0.0
    links: tuple[FlowLink, ...] = ()

    def operations(self, size: float) -> float:
        """Of an event of ``size`` bytes; inf where no number is so large."""
        try:
            return sum(c * size**power for power, c in enumerate(self.ops))
        except OverflowError:
            return math.inf


class FlowSource(FlowNode):
    """What records events, ``rate`` of them a second."""

    rate: PositiveFloat


class FlowStage(FlowNode):
    """What receives events, and may sort some out.

    Args:
        reduction: events that it receives for each that it passes on.
        classifier: what it sorts by: scores, or the name of one of `flow_classifiers`; None passes all.
        boost: added to the scores of relevant events: the skill of a better classifier.
    """

    reduction: float = Field(default=1.0, ge=1)
    classifier: Classifier | None = None
    boost: float = 0.0

    @field_validator("classifier", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return _CLASSIFIERS.read(value).classifier
        except HastenError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _sorts(self) -> FlowStage:
        if self.reduction > 1 and self.classifier is None:
            raise ValueError(f"stage {self.name!r} passes one event in {self.reduction:g}: give it a classifier")
        return self


class FlowOption(_Form):
    """A change that can be made: parameters (`FlowGraph.parameters`) set, or multiplied."""

    title: str = ""
    put: dict[str, float] = {}
    times: dict[str, float] = {}


class FlowGraph(_Form):
    """Sources and stages, linked without a circle to one storage.

    Args:
        name, title, source: short, for people, and where the figures are from.
        sources, stages: nodes.
        relevant: share of events that are; None for as many as are stored in the end.
        year: of the technology, which energies are scaled to (`hasten.cost.flows.flow_cost`); None leaves them.
        options: changes by name.

    Raises:
        pydantic.ValidationError: a name twice, a link to nowhere or to a source, a circle, several ends, a stage that
            nothing reaches. From `flow_graph` and `FlowGraph.of` it is a HastenError of one line.
    """

    name: str
    title: str = ""
    source: str = ""
    sources: tuple[FlowSource, ...] = Field(min_length=1)
    stages: tuple[FlowStage, ...] = Field(min_length=1)
    relevant: float | None = Field(default=None, gt=0, le=1)
    year: float | None = Field(default=None, ge=1970, le=2100)
    options: dict[str, FlowOption] = {}

    @model_validator(mode="after")
    def _whole(self) -> FlowGraph:
        names = [n.name for n in (*self.sources, *self.stages)]
        if twice := [n for n in names if names.count(n) > 1]:
            raise ValueError(f"two nodes are called {twice[0]!r}: rename one")
        stages = {s.name for s in self.stages}
        for node in (*self.sources, *self.stages):
            for link in node.links:
                if link.to not in stages:
                    raise ValueError(f"{node.name!r} leads to {link.to!r}, which is no stage")
            targets = [link.to for link in node.links]
            if len(set(targets)) < len(targets):
                raise ValueError(f"{node.name!r} leads to one stage twice: join the links")
        graph = self.graph
        if not nx.is_directed_acyclic_graph(graph):
            circle = [tail for tail, _ in nx.find_cycle(graph)]
            raise ValueError(f"events go in a circle, {' -> '.join([*circle, circle[0]])}: take a link away")
        ends = [n for n in graph if not graph.out_degree(n)]
        if len(ends) != 1:
            raise ValueError(f"{len(ends)} nodes lead nowhere, {', '.join(ends)}: link all but the storage onward")
        for name in stages:
            if not graph.in_degree(name):
                raise ValueError(f"nothing leads to stage {name!r}: link a source to it, or take it away")
        return self

    @classmethod
    def of(cls, **figures: Any) -> FlowGraph:
        """A graph from figures.

        Raises:
            HastenError: as the graph's own error, in a line.
        """
        try:
            return cls.model_validate(figures)
        except ValidationError as error:
            raise HastenError(f"flow graph {figures.get('name', '')}: {_first(error)}") from None

    @cached_property
    def nodes(self) -> dict[str, FlowSource | FlowStage]:
        """Name -> node."""
        return {**{s.name: s for s in self.sources}, **{s.name: s for s in self.stages}}

    @cached_property
    def graph(self) -> Any:
        """As a `networkx.DiGraph` of names; an edge's ``link`` is its `FlowLink`."""
        made = nx.DiGraph()
        made.add_nodes_from(n.name for n in (*self.sources, *self.stages))
        made.add_edges_from((n.name, k.to, {"link": k}) for n in (*self.sources, *self.stages) for k in n.links)
        return made

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Names, each after all that lead to it; the last is the storage."""
        return tuple(nx.topological_sort(self.graph))

    @cached_property
    def parameters(self) -> dict[str, float]:
        """Every number that can be changed: ``NODE.bytes`` and the like, ``NODE > NODE.joules_per_bit`` of links.

        ``ops`` counts as one number, a factor of all coefficients. ``reduction`` and ``boost`` are there where a
        classifier is, ``bandwidth`` where it is given.
        """
        found: dict[str, float] = {}
        for node in self.nodes.values():
            figures = {"bytes": node.bytes, "kept": node.kept, "ops": 1.0, "joules_per_op": node.joules_per_op}
            if isinstance(node, FlowSource):
                figures["rate"] = node.rate
            elif node.classifier is not None:
                figures |= {"reduction": node.reduction, "boost": node.boost}
            found |= {f"{node.name}.{k}": v for k, v in figures.items()}
            for link in node.links:
                found[f"{node.name} > {link.to}.joules_per_bit"] = link.joules_per_bit
        return found

    def check_parameter(self, name: str) -> None:
        """Raises a HastenError where the graph has no such parameter."""
        if name not in self.parameters:
            raise HastenError(f"flow graph {self.name} has no parameter {name!r}: FlowGraph.parameters lists them")

    def changed(self, put: Mapping[str, float] | None = None, times: Mapping[str, float] | None = None) -> FlowGraph:
        """The graph with some of its `parameters` set, and some multiplied.

        Raises:
            HastenError: no such parameter, or a value that it cannot have.
        """
        put, times = dict(put or {}), dict(times or {})
        for name in (*put, *times):
            self.check_parameter(name)
        values = {**put, **{k: f * put.get(k, self.parameters[k]) for k, f in times.items()}}
        data: dict[str, Any] = {k: getattr(self, k) for k in type(self).model_fields}
        for kind in ("sources", "stages"):
            data[kind] = [_with(node, values) for node in data[kind]]
        return FlowGraph.of(**data)

    def chosen(self, *options: str) -> FlowGraph:
        """The graph with some of its options, one after the other.

        Raises:
            HastenError: no such option.
        """
        made = self
        for name in options:
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise HastenError(f"flow graph {self.name} has no option {name!r}: there are {known}")
            made = made.changed(self.options[name].put, self.options[name].times)
        return made


def _with(node: FlowSource | FlowStage, values: Mapping[str, float]) -> FlowSource | FlowStage | dict[str, Any]:
    """A node with what concerns it, as figures that are checked again; itself where nothing does."""
    own = {name.rpartition(".")[2]: v for name, v in values.items() if name.rpartition(".")[0] == node.name}
    links = {k.to: values.get(f"{node.name} > {k.to}.joules_per_bit", k.joules_per_bit) for k in node.links}
    if not own and all(links[k.to] == k.joules_per_bit for k in node.links):
        return node
    figures: dict[str, Any] = {k: getattr(node, k) for k in type(node).model_fields}
    if "ops" in own:
        own["ops"] = tuple(own["ops"] * c for c in node.ops)  # type: ignore[assignment]
    figures["links"] = [{**k.model_dump(), "joules_per_bit": links[k.to]} for k in node.links]
    return {**figures, **own}


_GRAPHS = DataFolder("flows", FlowGraph, "flow graph")
_CLASSIFIERS = DataFolder("flow_classifiers", _ClassifierFile, "flow classifier")

# Columns of a spreadsheet that belong to a node, to all of its links, and to scores that are normal.
_NODE = ("name", "bytes", "kept", "ops", "joules_per_op", "latency", "rate", "reduction", "classifier", "boost")
_LINK = {"joules_per_bit": "joules_per_bit", "bandwidth": "bandwidth", "link_latency": "latency"}
_SCORES = ("skill", "deviation")


def flow_graphs() -> list[str]:
    """Names of the graphs that are here."""
    return _GRAPHS.names()


def flow_classifiers() -> list[str]:
    """Names of the classifiers that are here."""
    return _CLASSIFIERS.names()


def flow_graph(name_or_path: str | Path) -> FlowGraph:
    """A graph by name (`flow_graphs`), from a TOML file of the same form, or from a spreadsheet as CSV.

    A spreadsheet has a row for each node and the columns ``name``, ``to`` (stages, with ``;`` between), ``bytes``,
    ``kept``, ``ops`` (coefficients with ``;`` between), ``joules_per_op``, ``latency``, ``rate`` (of a source; a stage
    has none), ``reduction``, ``classifier`` (``gaussian``, or one of `flow_classifiers`), ``skill``, ``deviation``,
    ``boost``, and of its links ``joules_per_bit``, ``bandwidth`` and ``link_latency``. Columns and cells may be left
    out.

    Raises:
        HastenError: no such graph or file, a figure missing, misspelt or impossible, or a graph that is none.
    """
    if str(name_or_path).endswith(".csv"):
        return _spreadsheet(named_path(name_or_path))
    return _GRAPHS.read(name_or_path)


def _spreadsheet(path: Path) -> FlowGraph:
    what = f"the flow graph {path}"
    try:
        rows = list(csv.reader(io.StringIO(read_text(path, "the flow graph"))))
    except csv.Error as error:
        raise HastenError(f"{what} is no CSV: {error}") from None
    if not rows:
        raise HastenError(f"{what} is empty: give a row of column names, then one for each node")
    head = [cell.strip() for cell in rows[0]]
    known = {*_NODE, *_LINK, *_SCORES, "to"}
    for column in head:
        if column not in known or head.count(column) > 1:
            wrong = "twice" if column in known else "unknown"
            raise HastenError(f"{what}: column {column[:40]!r} is {wrong}: there are {', '.join(sorted(known))}")
    sources: list[dict[str, Any]] = []
    stages: list[dict[str, Any]] = []
    for number, row in enumerate(rows[1:], 2):
        cells = {k: c.strip() for k, c in zip(head, row, strict=False) if c.strip()}
        if not cells:
            continue
        if len(row) > len(head):
            raise HastenError(f"{what}: line {number} has more cells than there are columns")
        (sources if "rate" in cells else stages).append(_row(cells))
    try:
        return FlowGraph.model_validate({"name": path.stem, "sources": sources, "stages": stages})
    except ValidationError as error:
        raise HastenError(f"{what}: {_first(error, sources, stages)}") from None


def _row(cells: Mapping[str, str]) -> dict[str, Any]:
    node: dict[str, Any] = {k: cells[k] for k in _NODE if k in cells}
    if "ops" in node:
        node["ops"] = node["ops"].split(";")
    if node.get("classifier") == "gaussian":
        node["classifier"] = {"kind": "gaussian", **{k: cells[k] for k in _SCORES if k in cells}}
    about = {field: cells[column] for column, field in _LINK.items() if column in cells}
    node["links"] = [{"to": to.strip(), **about} for to in cells.get("to", "").split(";") if to.strip()]
    return node


def _first(error: ValidationError, *kinds: Sequence[Mapping[str, Any]]) -> str:
    """The first thing that is wrong, in a line; of a spreadsheet with the node's name in place of its number."""
    first = error.errors(include_url=False)[0]
    where = [str(part) for part in first["loc"]]
    if kinds and len(where) > 1 and where[0] in ("sources", "stages") and where[1].isdigit():
        rows = kinds[("sources", "stages").index(where[0])]
        where[:2] = [str(rows[int(where[1])].get("name", f"{where[0]} {where[1]}"))]
    told = str(first["msg"]).removeprefix("Value error, ")
    return f"{'.'.join(where)}: {told}" if where else told
