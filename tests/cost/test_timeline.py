from __future__ import annotations

import random

import pytest

from hasten.cost.timeline import Activity, run_timeline, tile_activities
from hasten.errors import HastenError


def test_lanes_run_at_once_and_each_in_order() -> None:
    line = run_timeline(
        [
            Activity("a", "x", 2.0),
            Activity("b", "y", 3.0, ("a",)),
            Activity("c", "x", 4.0),
            Activity("d", "y", 1.0, ("c",)),
        ]
    )
    assert {n: (s.begin, s.end) for n, s in line.named.items()} == {
        "a": (0, 2), "b": (2, 5), "c": (2, 6), "d": (6, 7),
    }  # fmt: skip
    assert line.seconds == 7
    assert line.busy("x") == 6
    assert line.busy("y") == 4
    assert line.busy("x", "y") == 7
    assert line.exposed("y", "x") == 1
    assert line.critical() == ("a", "c", "d")
    assert line.lanes == ("x", "y")


def test_a_listed_lane_waits_where_a_ready_one_goes_on() -> None:
    activities = [Activity("slow", "y", 5.0), Activity("first", "x", 1.0, ("slow",)), Activity("second", "x", 1.0)]
    assert run_timeline(activities).named["second"].begin == 6
    line = run_timeline(activities, order="ready")
    assert line.named["second"].begin == 0
    assert line.seconds == 6
    assert run_timeline(activities, order={"x": "ready"}).seconds == 6


def test_launches_take_time_on_the_lane_and_wide_lanes_run_several() -> None:
    kernels = [Activity(f"k{i}", "gpu", 1.0, launch=0.5) for i in range(4)]
    assert run_timeline(kernels).seconds == 6
    assert run_timeline(kernels, widths={"gpu": 2}).seconds == 3
    assert run_timeline([]).seconds == 0
    assert run_timeline([]).critical() == ()


def test_prefetched_copies_hide_behind_work_as_far_as_room_goes() -> None:
    def line(room: int) -> float:
        load = [Activity(f"l{i}", "link", 2.0, (f"r{i - room}",) if i >= room else ()) for i in range(6)]
        run = [Activity(f"r{i}", "array", 2.0, (f"l{i}",)) for i in range(6)]
        return run_timeline([*load, *run]).seconds

    assert line(1) == 24  # no room for the next: nothing overlaps
    assert line(2) == line(6) == 14  # one load first, then all work


@pytest.mark.parametrize("tiles", [1, 7])
def test_a_pipeline_takes_the_slowest_stage_a_tile_and_the_fill(tiles: int) -> None:
    stages = [("a", 1.0), ("b", 3.0), ("c", 2.0)]
    line = run_timeline(tile_activities(stages, tiles))
    assert line.seconds == 6 + 3 * (tiles - 1)
    assert line.utilization("b") == pytest.approx(3 * tiles / line.seconds)


def test_queues_of_one_tile_do_not_lock() -> None:
    assert run_timeline(tile_activities([("a", 1.0), ("b", 1.0)], 4, depth=1)).seconds == 8
    assert run_timeline(tile_activities([("a", 1.0), ("b", 1.0)], 4, depth=2)).seconds == 5


def test_the_same_activities_give_the_same_timeline_and_never_less_than_the_longest_chain() -> None:
    rng = random.Random(0)
    for _ in range(20):
        made: list[Activity] = []
        chain: dict[str, float] = {}
        for i in range(12):
            after = tuple(a.name for a in made if rng.random() < 0.2)
            made.append(Activity(str(i), rng.choice("xyz"), float(rng.randint(0, 5)), after))
            chain[str(i)] = made[-1].seconds + max((chain[a] for a in after), default=0.0)
        line = run_timeline(made)
        assert line == run_timeline(made)
        assert line.seconds >= max(chain.values())
        assert line.seconds >= max(line.busy(n) for n in "xyz")
        for span in line.spans:
            assert all(line.named[a].end <= span.begin for a in span.activity.after)


@pytest.mark.parametrize(
    ("activities", "words"),
    [
        ([Activity("a", "x", 1.0), Activity("a", "y", 1.0)], "two activities are called 'a'"),
        ([Activity("a", "x", -1.0)], "give numbers from 0"),
        ([Activity("a", "x", float("inf"))], "give numbers from 0"),
        ([Activity("a", "x", 1.0, ("b",))], "waits for 'b', which is not there"),
        ([Activity("a", "x", 1.0, ("b",)), Activity("b", "y", 1.0, ("a",))], "wait for each other"),
        ([Activity("a", "x", 1.0, ("b",)), Activity("b", "x", 1.0)], "wait for each other"),
    ],
)
def test_what_cannot_run_is_refused_in_a_line(activities: list[Activity], words: str) -> None:
    with pytest.raises(HastenError, match=words) as error:
        run_timeline(activities)
    assert "\n" not in str(error.value)


def test_lanes_and_queues_without_room_are_refused() -> None:
    with pytest.raises(HastenError, match="at least 1"):
        run_timeline([Activity("a", "x", 1.0)], widths={"x": 0})
    with pytest.raises(HastenError, match="at least 1"):
        tile_activities([("a", 1.0)], 0)
