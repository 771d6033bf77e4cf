"""A chip that runs tasks, against times by hand and what no schedule can beat."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.cost.chips.soc import MEMORIES, PROCESSORS, TOPOLOGIES, Chip, run_tasks
from hasten.data.task_graphs import GRAPHS, GraphTask, TaskGraph, read_task_graph, task_graph
from hasten.errors import HastenError

CPU, DSP, FILTER = ("cpu", 800e6), ("dsp", 800e6), ("filter-unit", 800e6)


def graph(*tasks):
    return TaskGraph("by hand", tuple(GraphTask(*t) for t in tasks))


def test_one_task_alone():
    one = graph(("a", "control", 3.2e6, 1000.0))
    cost = run_tasks(one, Chip((CPU,), ("dram",)), [0], [0])
    assert cost.latency == pytest.approx(3.2e6 / (4 * 800e6))
    assert cost.energy == pytest.approx(3.2e6 * 60e-12 + 1000 * (40e-12 + 1e-12) + cost.latency * 0.070)
    # Moving what it writes takes longer than computing it: the bus is 8 bytes wide at 800 MHz, the memory is faster.
    written = graph(("a", "control", 100.0, 6.4e6))
    assert run_tasks(written, Chip((CPU,), ("dram",)), [0], [0]).latency == pytest.approx(1e-3)
    assert run_tasks(written, Chip((CPU,), ("dram",), "shared", 256), [0], [0]).latency == pytest.approx(6.4e6 / 12.8e9)


def test_what_is_shared_is_divided():
    two = graph(("a", "control", 100.0, 6.4e6), ("b", "control", 100.0, 6.4e6))
    shared = run_tasks(two, Chip((CPU, CPU), ("sram", "sram")), [0, 1], [0, 1])
    assert shared.latency == pytest.approx(2e-3)
    crossed = run_tasks(two, Chip((CPU, CPU), ("sram", "sram"), "crossbar"), [0, 1], [0, 1])
    assert crossed.latency == pytest.approx(1e-3)
    split = run_tasks(two, Chip((CPU, CPU), ("sram", "sram"), "split"), [0, 1], [0, 1])
    assert split.latency == pytest.approx(1e-3)
    # Each writes to the other side: both go over both buses and the bridge.
    bridged = run_tasks(two, Chip((CPU, CPU), ("sram", "sram"), "split"), [0, 1], [1, 0])
    assert bridged.latency == pytest.approx(2e-3)
    # One that needs little leaves its share to the other: a is done after a quarter of the bus's time.
    uneven = graph(("a", "control", 100.0, 1.6e6), ("b", "control", 100.0, 4.8e6))
    cost = run_tasks(uneven, Chip((CPU, CPU), ("sram",)), [0, 1], [0, 0])
    assert cost.ends["b"] == pytest.approx(1e-3)


def test_an_element_runs_one_at_a_time_the_longest_way_first():
    tasks = graph(
        ("short", "control", 3.2e6, 0.0), ("first", "control", 3.2e6, 0.0), ("then", "control", 6.4e6, 0.0, ("first",))
    )
    cost = run_tasks(tasks, Chip((CPU, CPU), ("dram",)), [0, 0, 1], [0, 0, 0])
    assert cost.ends["first"] == pytest.approx(1e-3)
    assert cost.ends["short"] == pytest.approx(2e-3)
    assert cost.latency == pytest.approx(3e-3)
    assert cost.phases == 3


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_schedule_beats_its_bounds(data):
    tasks = task_graph(data.draw(st.sampled_from(GRAPHS)))
    kinds = ["cpu", *data.draw(st.lists(st.sampled_from(list(PROCESSORS)), max_size=3))]
    memories = data.draw(st.lists(st.sampled_from(list(MEMORIES)), min_size=1, max_size=2))
    topology, width = data.draw(st.sampled_from(TOPOLOGIES)), data.draw(st.sampled_from([32, 256]))
    chip = Chip(tuple((k, 800e6) for k in kinds), tuple(memories), topology, width)
    able = {t.kind: [i for i, k in enumerate(kinds) if t.kind in PROCESSORS[k].rates] for t in tasks.tasks}
    runs = [data.draw(st.sampled_from(able[t.kind])) for t in tasks.tasks]
    writes = [data.draw(st.integers(0, len(memories) - 1)) for _ in tasks.tasks]
    cost = run_tasks(tasks, chip, runs, writes)
    seconds = [
        t.operations / PROCESSORS[kinds[r]].rates[t.kind] / 800e6 for t, r in zip(tasks.tasks, runs, strict=True)
    ]
    for i in range(len(kinds)):
        assert cost.latency >= sum(s for s, r in zip(seconds, runs, strict=True) if r == i) * (1 - 1e-9)
    for task, s in zip(tasks.tasks, seconds, strict=True):
        begun = max((cost.ends[a] for a in task.after), default=0.0)
        assert cost.ends[task.name] >= (begun + s) * (1 - 1e-9)
    assert cost.latency == max(cost.ends.values())
    moved = sum(t.bytes for t in tasks.tasks)
    assert cost.latency >= moved / sum(MEMORIES[m].bandwidth for m in memories) * (1 - 1e-9)
    assert cost.power * cost.latency == pytest.approx(cost.energy)
    assert cost.phases <= len(tasks)


def test_made_for_the_task_is_sooner_and_takes_less():
    for name in GRAPHS:
        tasks = task_graph(name)
        none = [0] * len(tasks)
        plain = run_tasks(tasks, Chip((CPU,), ("dram",)), none, none)
        place = {"control": 0, "transform": 1, "filter": 2}
        made = run_tasks(tasks, Chip((CPU, DSP, FILTER), ("dram",)), [place[t.kind] for t in tasks.tasks], none)
        assert made.latency < plain.latency
        assert made.energy < plain.energy
        assert made.area > plain.area
        slow = run_tasks(tasks, Chip((("cpu", 200e6),), ("dram",)), none, none)
        assert slow.latency == pytest.approx(4 * plain.latency, rel=0.05)


def test_graphs_are_read_and_refused(tmp_path):
    path = tmp_path / "g.toml"
    text = 'name = "mine"\n[[task]]\nname = "a"\nkind = "filter"\noperations = 10\nbytes = 4\n'
    path.write_text(text + '[[task]]\nname = "b"\nkind = "control"\noperations = 5.0\nbytes = 0\nafter = ["a"]\n')
    assert [t.after for t in read_task_graph(path).tasks] == [(), ("a",)]
    for wrong, match in [
        ("x =", "not TOML"),
        ("x = 1", "has no task"),
        (text.replace("10", "nan"), "number above 0"),
        (text.replace("filter", "magic"), "'magic' is not known"),
        (text + text[text.index("[[") :], "there twice"),
        (text.replace("bytes = 4", ""), "bytes is missing"),
        (text.replace("bytes = 4", "byts = 4"), "nothing else"),
        (text.replace("10", '"ten"'), "operations is 'ten'"),
        (text + 'after = ["z"]\n', "does not come before"),
    ]:
        path.write_text(wrong)
        with pytest.raises(HastenError, match=match) as caught:
            read_task_graph(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(HastenError, match="cannot read"):
        read_task_graph(tmp_path / "none.toml")


def test_bad_input():
    tasks = task_graph("edge-detection")
    chip = Chip((CPU, FILTER), ("dram",))
    none = [0] * len(tasks)
    for runs, writes, match in [
        (none[1:], none, "has 8 tasks"),
        ([-1, *none[1:]], none, "not there"),
        (none, [1, *none[1:]], "memory that is not there"),
        ([1, *none[1:]], none, "filter-unit cannot run gray"),
    ]:
        with pytest.raises(HastenError, match=match):
            run_tasks(tasks, chip, runs, writes)
    for given_, match in [
        (((), ("dram",)), "needs a processing element"),
        (((("gpu", 1e9),), ("dram",)), "no part 'gpu'"),
        (((CPU,), ("tape",)), "no part 'tape'"),
        (((CPU,), ("dram",), "ring"), "no topology"),
        (((("cpu", math.nan),), ("dram",)), "numbers above 0"),
    ]:
        with pytest.raises(HastenError, match=match):
            Chip(*given_)
    with pytest.raises(HastenError, match="no task graph"):
        task_graph("chess")
    with pytest.raises(HastenError, match="at least 1"):
        task_graph("edge-detection", 0)
