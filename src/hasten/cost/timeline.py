"""A timeline: work on lanes, each thing after those it waits for, in order; the same for the same input, always.

A lane is whatever does one thing at a time: an array of multipliers, a copy engine, a link between two memories, the
host that launches kernels. What is given is a list of activities; a lane takes up its own in the order of the list, as
a stream of a GPU does, or whichever is ready first. Prefetching is nothing special: a copy that waits for nothing but
room begins early. Nothing here is random or decided by threads, so that no library of events is needed.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from hasten.errors import HastenError

Order = Literal["listed", "ready"]


@dataclass(frozen=True)
class Activity:
    """Something that takes time on a lane.

    Args:
        name: unique in its timeline.
        lane: where it runs.
        seconds: that it takes.
        after: names of those that must have ended.
        launch: seconds before it on the same lane in which it is set up, from the moment that it could begin.
        label: for pictures, such as the kind of work; activities of one label share a colour.
    """

    name: str
    lane: str
    seconds: float
    after: tuple[str, ...] = ()
    launch: float = 0.0
    label: str = ""


@dataclass(frozen=True)
class Span:
    """When an activity ran: from ``begin`` (its launch included) to ``end``, in seconds."""

    activity: Activity
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.begin


@dataclass(frozen=True)
class Timeline:
    """What ran when.

    Args:
        spans: in the order of the activities.
        waited: activity -> the one that it waited for last, on its lane or elsewhere; none for those that began at 0.
    """

    spans: tuple[Span, ...]
    waited: Mapping[str, str]

    @cached_property
    def named(self) -> dict[str, Span]:
        """Spans by the names of their activities."""
        return {s.activity.name: s for s in self.spans}

    @property
    def seconds(self) -> float:
        """From 0 to the last end."""
        return max((s.end for s in self.spans), default=0.0)

    @property
    def lanes(self) -> tuple[str, ...]:
        """In the order in which activities name them."""
        return tuple(dict.fromkeys(s.activity.lane for s in self.spans))

    def busy(self, *lanes: str) -> float:
        """Seconds in which at least one of these lanes is at work."""
        return sum(end - begin for begin, end in self._union(lanes))

    def exposed(self, lane: str, *beside: str) -> float:
        """Seconds in which ``lane`` is at work and none of the lanes ``beside`` it: what they do not hide."""
        return self.busy(lane, *beside) - self.busy(*beside)

    def utilization(self, lane: str) -> float:
        """Share of all time in which a lane is at work."""
        return self.busy(lane) / self.seconds if self.seconds else 0.0

    def _union(self, lanes: Iterable[str]) -> list[tuple[float, float]]:
        chosen = set(lanes)
        found: list[tuple[float, float]] = []
        for begin, end in sorted((s.begin, s.end) for s in self.spans if s.activity.lane in chosen and s.seconds > 0):
            if found and begin <= found[-1][1]:
                found[-1] = (found[-1][0], max(found[-1][1], end))
            else:
                found.append((begin, end))
        return found

    def critical(self) -> tuple[str, ...]:
        """The chain of activities that decides when the last one ends, first to last."""
        if not self.spans:
            return ()
        name = max(self.spans, key=lambda s: s.end).activity.name
        chain = [name]
        while (name := self.waited.get(name, "")) != "":
            chain.append(name)
        return tuple(reversed(chain))


def run_timeline(
    activities: Sequence[Activity],
    *,
    order: Order | Mapping[str, Order] = "listed",
    widths: Mapping[str, int] | None = None,
) -> Timeline:
    """Runs activities as early as their lanes and those before them let them.

    Args:
        activities: in the order in which lanes take them up.
        order: ``listed`` (a lane takes up its activities one by one as they are listed, and waits where one cannot
            begin) or ``ready`` (of those that can begin, the one that could first, then the one listed first); of all
            lanes, or of each that is named.
        widths: lane -> how many activities it runs at once; 1 where it is not named.

    Raises:
        HastenError: a name twice, one to wait for that is not there, seconds that are no numbers from 0, or activities
            that wait for each other.

    >>> load = [Activity(f"load {i}", "link", 2.0, (f"run {i - 2}",) if i > 1 else ()) for i in range(4)]
    >>> run = [Activity(f"run {i}", "array", 3.0, (f"load {i}",)) for i in range(4)]
    >>> line = run_timeline([*load, *run])
    >>> line.seconds, line.exposed("link", "array")
    (14.0, 2.0)
    """
    return _Run(activities, order, widths or {}).timeline()


class _Run:
    def __init__(
        self, activities: Sequence[Activity], order: Order | Mapping[str, Order], widths: Mapping[str, int]
    ) -> None:
        self.activities = activities
        self.place = {a.name: i for i, a in enumerate(activities)}
        if len(self.place) < len(activities):
            names = [a.name for a in activities]
            raise HastenError(f"two activities are called {next(n for n in names if names.count(n) > 1)!r}: rename one")
        for a in activities:
            if not all(0 <= s < math.inf for s in (a.seconds, a.launch)):
                raise HastenError(f"{a.name} takes {a.seconds:g} s and {a.launch:g} s to launch: give numbers from 0")
            if missing := [n for n in a.after if n not in self.place]:
                raise HastenError(f"{a.name} waits for {missing[0]!r}, which is not there: add it or leave it out")
        if wrong := [lane for lane, n in widths.items() if n < 1]:
            raise HastenError(f"lane {wrong[0]} runs {widths[wrong[0]]} things at once: give at least 1")
        lanes = dict.fromkeys(a.lane for a in activities)
        self.listed = {n: (order if isinstance(order, str) else order.get(n, "listed")) == "listed" for n in lanes}
        # When each place of a lane is free, and after whom.
        self.free = {n: [(0.0, "")] * widths.get(n, 1) for n in lanes}
        self.queues: dict[str, list[int]] = {n: [] for n in lanes}
        for i, a in enumerate(activities):
            self.queues[a.lane].append(i)

    def timeline(self) -> Timeline:
        missing = [len(set(a.after)) for a in self.activities]
        followers: list[list[int]] = [[] for _ in self.activities]
        for i, a in enumerate(self.activities):
            for name in set(a.after):
                followers[self.place[name]].append(i)
        ready = [0.0] * len(self.activities)  # when all before have ended
        behind = [""] * len(self.activities)
        able: dict[str, list[tuple[float, int]]] = {n: [] for n in self.queues}
        for i, n in enumerate(missing):
            if not n:
                heapq.heappush(able[self.activities[i].lane], (0.0, i))
        next_of = dict.fromkeys(self.queues, 0)
        spans: dict[int, Span] = {}
        waited: dict[str, str] = {}
        while len(spans) < len(self.activities):
            chosen = self._next(able, next_of)
            if chosen is None:
                stuck = [a.name for i, a in enumerate(self.activities) if i not in spans]
                raise HastenError(
                    f"{', '.join(stuck[:3])}{', ...' if len(stuck) > 3 else ''} wait for each other: list each after "
                    "those it waits for"
                )
            i = chosen
            a = self.activities[i]
            places = self.free[a.lane]
            at = min(range(len(places)), key=lambda k: places[k][0])
            begin = max(ready[i], places[at][0])
            if begin > 0:
                waited[a.name] = places[at][1] if places[at][0] > ready[i] else behind[i]
            end = begin + a.launch + a.seconds
            places[at] = (end, a.name)
            next_of[a.lane] += 1
            spans[i] = Span(a, begin, end)
            for f in followers[i]:
                missing[f] -= 1
                if end >= ready[f]:
                    ready[f], behind[f] = end, a.name
                if not missing[f]:
                    heapq.heappush(able[self.activities[f].lane], (ready[f], f))
        return Timeline(tuple(spans[i] for i in range(len(self.activities))), waited)

    def _next(self, able: dict[str, list[tuple[float, int]]], next_of: dict[str, int]) -> int | None:
        """Of all lanes the activity that begins first: nothing that begins later can change when it does."""
        best: tuple[float, int, str] | None = None
        for lane, waiting in able.items():
            if not waiting:
                continue
            free = min(t for t, _ in self.free[lane])
            if self.listed[lane]:
                i = self.queues[lane][next_of[lane]]
                found = next((w for w in waiting if w[1] == i), None)
                if found is None:
                    continue
            else:
                found = waiting[0]
            begin = max(found[0], free)
            if best is None or (begin, found[1]) < best[:2]:
                best = (begin, found[1], lane)
        if best is None:
            return None
        _, i, lane = best
        able[lane] = [w for w in able[lane] if w[1] != i]
        heapq.heapify(able[lane])
        return i


def tile_activities(
    stages: Sequence[tuple[str, float]], tiles: int, *, depth: int = 2, name: str = "", after: Sequence[str] = ()
) -> list[Activity]:
    """A pipeline: each tile goes through stages, with room for ``depth`` tiles between two of them.

    Args:
        stages: (lane, seconds a tile) in order.
        tiles: how many.
        depth: of the queues between; a tile leaves its queue when the next stage is done with it.
        name: in front of the names ``STAGE.TILE``, numbers from 0.
        after: what the first stage waits for.

    Raises:
        HastenError: no tile, or a queue without room.

    >>> run_timeline(tile_activities([("a", 1.0), ("b", 2.0)], 5)).seconds
    11.0
    """
    if tiles < 1 or depth < 1:
        raise HastenError(f"{tiles} tiles through queues of {depth}: give at least 1 of each")
    found = []
    for t in range(tiles):
        for s, (lane, seconds) in enumerate(stages):
            before = list(after) if s == t == 0 else []
            if s:
                before.append(f"{name}{s - 1}.{t}")
            if s + 1 < len(stages) and t >= depth:
                before.append(f"{name}{s + 1}.{t - depth}")
            found.append(Activity(f"{name}{s}.{t}", lane, seconds, tuple(before), label=f"{name}{s}"))
    return found
