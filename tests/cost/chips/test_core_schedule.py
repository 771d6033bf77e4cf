from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from hasten.cost.chips import core_schedule
from hasten.cost.chips.core_schedule import PATTERNS, CoreSchedule, CoreStage, brute_force, schedule
from hasten.cost.chips.varied_kernels import (
    MEASURED_CYCLES,
    PUBLISHED_LOOPS,
    VARIED_KERNELS,
    published_cycles,
    varied_graph,
    varied_kernel,
)
from hasten.errors import HastenError
from hasten.hardware.chips.core_array import CoreArray, core_array, core_arrays
from hasten.workload.work_graph import Stream, WorkEdge, WorkGraph, WorkTask

ARRAY = core_array("intar-2x16")
UNLIMITED = 1 << 40


def on(array: CoreArray = ARRAY, **changed: float) -> CoreArray:
    return array.model_copy(update=changed)


def random_graph(rng: random.Random, tasks: int) -> WorkGraph:
    """Tasks in order, edges forward, some of them streamable."""
    made = [
        WorkTask(str(i), rng.randint(0, 40) * 16, 0, rng.randint(0, 9) * 64, rng.randint(0, 1) * 64)
        for i in range(tasks)
    ]
    edges = []
    for i in range(tasks):
        size = rng.randint(1, 8) * 100
        for j in range(i + 1, tasks):
            if rng.random() < 0.45:
                streams = (Stream(steps=4, buffer_bytes=size // 4),) if rng.random() < 0.6 else ()
                edges.append(WorkEdge(str(i), str(j), size, f"t{i}", streams))
    return WorkGraph("random", tuple(made), tuple(edges))


@pytest.mark.parametrize(
    ("seed", "tasks"), [*((s, 4) for s in range(8)), (8, 5), pytest.param(9, 6, marks=pytest.mark.slow)]
)
def test_the_search_finds_what_trying_everything_finds(seed: int, tasks: int) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng, tasks)
    for on_chip in (0, 700, UNLIMITED)[: 3 if tasks == 4 else 2]:
        array = on(cores=rng.randint(1, 3), on_chip=on_chip, bandwidth=ARRAY.clock * rng.choice((1, 8)), macs=4)
        found, best = schedule(graph, array).cost(), brute_force(graph, array).cost()
        assert found.cycles == best.cycles
        assert found.peak <= on_chip
        fixed = [schedule(graph, array, p).cost().cycles for p in PATTERNS]
        assert found.cycles == min(fixed)  # never worse than what is a point of its space


def test_one_core_and_all_room_make_all_patterns_compute_alike() -> None:
    for name in VARIED_KERNELS[:-1]:
        graph = varied_graph(name)
        array = on(cores=1, on_chip=UNLIMITED, bandwidth=1e18, switch=0)
        costs = {p: schedule(graph, array, p).cost() for p in PATTERNS}
        assert {c.compute_cycles for c in costs.values()} == {-(-graph.macs // 16)}
        assert costs["reconfigurable"].cycles == costs["sequential"].cycles
        assert costs["sequential"].moved() == graph.compulsory_bytes


def test_without_room_everything_streams_that_can_and_only_barriers_are_spilled() -> None:
    graph = varied_graph("gated-ffn")
    slow = on(core_array("intar-3x16"), on_chip=0, bandwidth=ARRAY.clock / 4)
    found = schedule(graph, slow)
    assert [s.tasks for s in found.stages] == [("G", "U", "Y")]
    assert found.cost().moved() == graph.compulsory_bytes
    # Of attention, queries or keys and scores stream into each other; what remains crosses a barrier twice.
    graph = varied_graph("self-attention")
    found = schedule(graph, on(slow, cores=5))
    crossing = [e for s in found.stages for e in graph.edges if (e.producer in s.tasks) != (e.consumer in s.tasks)]
    spilled = {e.tensor for e in crossing}
    assert found.cost().moved() == graph.compulsory_bytes + 2 * sum(graph.tensors[n] for n in spilled)
    assert found.cost().moved() < schedule(graph, on(slow, cores=5), "sequential").cost().moved()


@pytest.mark.parametrize("name", ["self-attention", "cnn-4l", "gated-ffn"])
def test_more_memory_bandwidth_or_cores_never_cost_cycles(name: str) -> None:
    graph = varied_graph(name)

    def cycles(**changed: float) -> int:
        return schedule(graph, on(**changed)).cost().cycles

    for sweep in (
        [cycles(on_chip=1 << k, bandwidth=2e9) for k in range(16, 24, 2)],
        [cycles(bandwidth=b * 1e9, on_chip=1 << 17) for b in (0.1, 0.5, 2, 20)],
        [cycles(cores=n) for n in range(1, 6)],
    ):
        assert sweep == sorted(sweep, reverse=True)


def test_the_published_kernels_have_their_products() -> None:
    macs = {n: varied_graph(n).macs for n in VARIED_KERNELS}
    assert macs["self-attention"] == 939_524_096
    assert macs["mlp"] == 2_883_584
    assert macs["cnn-4l"] == 11_289_600
    assert macs["gated-ffn"] == 3 * 32 * 4096 * 11008 == 4_328_521_728
    assert varied_graph("vae").tensors["Z"] == 2 * 324
    block = varied_graph("gpt2-medium")
    assert block.weight_bytes == 2 * 12 * 1024**2
    assert block.macs == 1024 * 12 * 1024**2 + 2 * 16 * 1024 * 1024 * 64


def test_published_loops_are_counted_exactly() -> None:
    assert published_cycles("mlp") == 139_264
    assert published_cycles("cnn-4l") == 54_376
    assert published_cycles("self-attention") == 35_782_656
    assert pytest.approx(0.82, abs=0.005) == 939_524_096 / 32 / 35_782_656
    own = [loop.cycles for loop in PUBLISHED_LOOPS["self-attention"]]
    assert own[2:4] == [16_842_752, 5_259_264]
    assert own[1] + own[2] == 96 * (1024 + 256 * 1024)  # one stage of 96 blocks in the second core's code
    with pytest.raises(HastenError, match="no published loops of 'vae'"):
        published_cycles("vae")
    assert set(MEASURED_CYCLES) == set(VARIED_KERNELS[:-1])


def test_the_published_stages_of_the_mlp_cost_what_their_loops_say() -> None:
    graph = varied_graph("mlp")
    array = on(switch=0)
    stages = (
        CoreStage(("L1",), {"L1": 2}, frozenset({"H1"})),
        CoreStage(("L2", "Y"), {"L2": 1, "Y": 1}),
    )
    cost = CoreSchedule("published", graph, array, stages).cost()
    assert cost.compute_cycles == 139_264
    assert cost.stages[1].fill == 32_768 // 2048  # the last tile of the smaller layer
    fixed = schedule(graph, on(array, bandwidth=1e18), "dataflow").cost()
    assert fixed.compute_cycles == 180_224
    # The published sequential kernel does 16 products a cycle: 180,052 cycles where no memory is slow.
    slow = schedule(graph, on(array, cores=1), "sequential").cost(synchronous=True)
    assert slow.cycles == pytest.approx(1_374_935, rel=0.001)
    assert slow.bound == "stalls"


def test_the_published_stages_of_attention_and_of_the_cnn_are_schedules() -> None:
    attention = (
        CoreStage(("Q",), {"Q": 2}, frozenset({"Q"})),
        CoreStage(("K", "S"), {"K": 1, "S": 1}, frozenset({"A"})),
        CoreStage(("V",), {"V": 2}, frozenset({"V"})),
        CoreStage(("O",), {"O": 2}),
    )
    graph = varied_graph("self-attention")
    cost = CoreSchedule("published", graph, on(switch=0), attention).cost()
    assert cost.compute_cycles == 8_388_608 * 2 + 16_777_216 + 2_097_152  # the loops without loading blocks of weights
    assert cost.peak == 655_360  # keys are never stored
    assert cost.moved() == graph.compulsory_bytes
    cnn = (
        CoreStage(("C1", "C2", "C3"), {"C1": 1, "C2": 1, "C3": 1}, frozenset({"F3"})),
        CoreStage(("C4",), {"C4": 3}),
    )
    wide = on(cores=3, macs=144, switch=0)
    cost = CoreSchedule("published", varied_graph("cnn-4l"), wide, cnn).cost()
    assert cost.compute_cycles == 54_376
    assert schedule(varied_graph("cnn-4l"), wide).cost().cycles <= cost.cycles


def test_products_are_all_done_and_no_core_does_more_than_it_can() -> None:
    for name in VARIED_KERNELS:
        for pattern in PATTERNS:
            found = schedule(varied_graph(name), core_array("intar-3x16"), pattern)
            cost = found.cost()
            assert 0 < cost.utilization <= 1
            done = [t for s in found.stages for t in s.tasks]
            assert sorted(done) == sorted(found.graph.named)
            assert cost.cycles * 48 * cost.utilization == pytest.approx(found.graph.macs)
            assert found.timeline().seconds == pytest.approx(cost.latency, rel=1e-6)


def test_instructions_say_where_operands_come_from_and_go_to() -> None:
    graph = varied_graph("mlp")
    stages = (CoreStage(("L1",), {"L1": 2}), CoreStage(("L2", "Y"), {"L2": 1, "Y": 1}))
    rows = CoreSchedule("published", graph, ARRAY, stages).instructions()
    assert [(r["stage"], r["core"], r["task"], r["part"]) for r in rows] == [
        (0, 0, "L1", "1/2"), (0, 1, "L1", "2/2"), (1, 0, "L2", "1/1"), (1, 1, "Y", "1/1"),
    ]  # fmt: skip
    assert [(r["from"], r["to"]) for r in rows[1:]] == [
        ("weights, input", "memory H1"), ("weights, memory H1", "fifo H2"), ("weights, fifo H2", "result"),
    ]  # fmt: skip
    assert [(r["along"], r["tiles"], r["cycles"]) for r in rows[2:]] == [("c", 2048, 131_072), ("c", 2048, 32_768)]


def test_reconfiguring_takes_10_to_20_ns() -> None:
    for name in core_arrays():
        array = core_array(name)
        assert 10e-9 <= array.switch / array.clock <= 20e-9


CHAIN = WorkGraph("chain", (WorkTask("a", 64), WorkTask("b", 64)), (WorkEdge("a", "b", 100, "x"),))


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([(("a",), {"a": 2}, ())], "leaves out b"),
        ([(("b",), {"b": 2}, ()), (("a",), {"a": 2}, ())], "before a, which it reads"),
        ([(("a",), {"a": 2}, ()), (("a",), {"a": 2}, ())], "'a' twice"),
        ([(("a", "b"), {"a": 1, "b": 1}, ())], "cannot run at once"),
        ([(("a",), {"a": 3}, ()), (("b",), {"b": 1}, ())], "uses 3 cores where"),
        ([(("a",), {}, ()), (("b",), {"b": 1}, ())], "0 cores for 64 products"),
        ([(("a",), {"a": 1}, ("x",)), (("b",), {"b": 1}, ())], "holds 100 bytes where"),
    ],
)
def test_stages_that_are_no_schedule_are_refused(stages: list[tuple], words: str) -> None:  # type: ignore[type-arg]
    made = tuple(CoreStage(t, c, frozenset(k)) for t, c, k in stages)
    with pytest.raises(HastenError, match=words):
        CoreSchedule("mine", CHAIN, on(on_chip=99), made).cost()


def test_many_branches_side_by_side_have_too_many_stages_or_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty tasks that nothing joins have a million sets: the search says so, in place of going on for days."""
    monkeypatch.setattr(core_schedule, "_MOST_WAYS", 2000)
    for macs in (0, 64):
        wide = WorkGraph("wide", tuple(WorkTask(str(i), macs) for i in range(20)))
        for pattern in ("sequential", "dataflow", "reconfigurable"):
            with pytest.raises(HastenError, match=r"wide can be cut into stages in too many ways.* rule-of-thumb"):
                schedule(wide, ARRAY, pattern)
        assert len(schedule(wide, ARRAY, "rule-of-thumb").stages) == 20


Search = core_schedule._Search


def test_cores_for_good_are_tried_in_a_few_ways_where_each_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = random_graph(random.Random(3), 5)
    array = on(cores=2, on_chip=UNLIMITED)
    tried: list[Search] = []
    monkeypatch.setattr(core_schedule._Search, "best", _noted(core_schedule._Search.best, tried))
    best = schedule(graph, array, "dataflow").cost().cycles
    assert len(tried) > 3
    monkeypatch.setattr(core_schedule, "_MOST_WAYS", max(search.ways for search in tried))
    tried.clear()
    assert schedule(graph, array, "dataflow").cost().cycles >= best
    assert len(tried) == 3


def _noted(best: Callable[[Search], object], tried: list[Search]) -> Callable[[Search], object]:
    def noted(search: Search) -> object:
        tried.append(search)
        return best(search)

    return noted


def test_unknown_names_are_refused() -> None:
    with pytest.raises(HastenError, match="no schedule 'fast'"):
        schedule(CHAIN, ARRAY, "fast")  # type: ignore[arg-type]
    with pytest.raises(HastenError, match="no kernel 'resnet'"):
        varied_kernel("resnet")
    with pytest.raises(HastenError, match="too many to try everything"):
        brute_force(varied_graph("gpt2-medium"), ARRAY)
