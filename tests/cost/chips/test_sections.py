from __future__ import annotations

import itertools
import math
import random

import pytest

from hasten.cost.chips.monarch import monarch_chain
from hasten.cost.chips.sections import (
    LAUNCHERS,
    Launcher,
    SectionPlan,
    _memory,
    one_section,
    plan_sections,
    unfused_sections,
)
from hasten.errors import HastenError
from hasten.hardware.chips.streaming_chip import StreamingChip, streaming_chip
from hasten.workload.language import language_model
from hasten.workload.streaming import work_graph
from hasten.workload.work_graph import PipelineCost, Stream, WorkEdge, WorkGraph, WorkTask

CHIP = streaming_chip("sn40l")
UNLIMITED = 1 << 40


def on(**changed: float) -> StreamingChip:
    return CHIP.model_copy(update=changed)


def random_graph(rng: random.Random, tasks: int) -> WorkGraph:
    """Tasks in order, edges forward, most of them streamable."""
    made = [
        WorkTask(str(i), rng.randint(0, 40) * 10**8, 0, rng.randint(0, 9) * 10**5, 10**4, 10**4) for i in range(tasks)
    ]
    edges = []
    for i in range(tasks):
        size = rng.randint(1, 8) * 10**6
        for j in range(i + 1, tasks):
            if rng.random() < 0.5:
                streams = (Stream(steps=64, buffer_bytes=size // 64),) if rng.random() < 0.7 else ()
                edges.append(WorkEdge(str(i), str(j), size, f"t{i}", streams))
    return WorkGraph("random", tuple(made), tuple(edges))


def plans(graph: WorkGraph, chip: StreamingChip) -> list[SectionPlan]:
    """Every way to cut a graph into runs of its tasks that fit."""
    found = []
    for count in range(len(graph)):
        for cuts in itertools.combinations(range(1, len(graph)), count):
            ends = (0, *cuts, len(graph))
            try:
                sections = [one_section(graph, chip, graph.order[a:b]) for a, b in itertools.pairwise(ends)]
            except HastenError:
                continue
            found.append(SectionPlan(graph, chip, tuple(sections)))
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("launch", LAUNCHERS)
def test_the_planner_finds_what_trying_everything_finds(seed: int, launch: Launcher) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng, 6)
    chip = on(memory_units=rng.choice((0, 4, 40)), compute_units=rng.choice((3, 100)))
    best = min(p.cost(launch).latency for p in plans(graph, chip))
    assert plan_sections(graph, chip, launch=launch).cost(launch).latency == pytest.approx(best)


@pytest.mark.parametrize("seed", range(3))
def test_no_memory_fuses_nothing_and_all_memory_everything(seed: int) -> None:
    graph = random_graph(random.Random(seed), 8)
    none = plan_sections(graph, on(memory_units=0))
    assert [s.tasks for s in none.sections] == [s.tasks for s in unfused_sections(graph, CHIP).sections]
    everything = plan_sections(graph, on(memory_units=UNLIMITED, compute_units=UNLIMITED, flops=1e40))
    assert len(everything.sections) == 1


def test_no_plan_is_slower_with_more_memory() -> None:
    for seed in range(3):
        graph = random_graph(random.Random(seed), 8)
        for launch in LAUNCHERS:
            times = [
                plan_sections(graph, on(memory_units=n), launch=launch).cost(launch).latency
                for n in (0, 2, 4, 8, 16, 64, 1024)
            ]
            assert times == sorted(times, reverse=True)


def test_bytes_of_one_section_are_inputs_weights_and_results() -> None:
    graph = work_graph(monarch_chain(), grain="kernel")
    whole = one_section(graph, CHIP, graph.order)
    assert whole.nbytes == graph.compulsory_bytes
    alone = unfused_sections(graph, CHIP)
    by_hand = sum(t.weight_bytes + t.input_bytes + t.result_bytes for t in graph.tasks)
    by_hand += sum(graph.tensors[e.tensor] for e in graph.edges)  # read
    by_hand += sum(graph.tensors.values())  # written
    assert sum(s.nbytes for s in alone.sections) == by_hand
    # At equal FLOPs intensities are as the bytes.
    fused = SectionPlan(graph, CHIP, (whole,)).cost()
    assert fused.intensity / alone.cost().intensity == pytest.approx(by_hand / whole.nbytes)


def test_an_input_that_several_tasks_read_passes_once() -> None:
    from hasten.cost.chips.varied_kernels import layer_part

    graph = work_graph(layer_part("feed-forward", {"n": 64, "k": 32, "h": 96}), grain="kernel")
    whole = one_section(graph, CHIP, graph.order)
    assert whole.nbytes == 4 * (64 * 32 + 3 * 32 * 96 + 64 * 32)
    assert sum(s.nbytes for s in unfused_sections(graph, CHIP).sections) > 2 * whole.nbytes


def test_units_match_stages_and_the_slowest_decides() -> None:
    tasks = (WorkTask("a", 3 * 10**9), WorkTask("b", 10**9), WorkTask("c"))
    stream = Stream(steps=160, buffer_bytes=100)
    graph = WorkGraph(
        "chain", tasks, (WorkEdge("a", "b", 16000, "t", (stream,)), WorkEdge("b", "c", 16000, "u", (stream,)))
    )
    section = one_section(graph, CHIP, graph.order, tile=16)
    assert section.units == {"a": 780, "b": 260}
    seconds = 2 * 4e9 / CHIP.flops
    assert section.compute == pytest.approx(seconds + seconds / 10)  # ten tiles: the first of b comes a tile later
    assert section.held == 2 * 2 * 1600  # two tiles of what passes


def test_what_needs_all_of_a_tensor_waits_in_the_next_phase() -> None:
    tasks = (WorkTask("a", 10**9), WorkTask("b", 4 * 10**9))
    graph = WorkGraph("barrier", tasks, (WorkEdge("a", "b", 1000, "t"),))
    section = one_section(graph, CHIP, graph.order)
    assert section.phases == (("a",), ("b",))
    assert section.held == 1000
    # The least sum of times that shares of the units can give: roots of work.
    assert section.units == {"a": 347, "b": 693}
    assert section.compute == pytest.approx((1e9**0.5 + 4e9**0.5) ** 2 * 2 / CHIP.flops, rel=1e-3)


def test_an_accumulator_stays_whole() -> None:
    graph = work_graph(monarch_chain(8, 64, 16, 8), grain="kernel")
    # By the rank that is summed over no weight is kept, but what is summed, and the input that lacks the rank.
    weights, least = graph.pipeline(graph.order), graph.pipeline(graph.order, _memory)
    assert weights is not None
    assert least is not None
    assert weights.along["O"] == "m"
    assert _memory(graph, weights) >= graph.named["O"].result_bytes + graph.named["Y"].input_bytes

    def only(rank: str) -> PipelineCost:
        return lambda graph, pipeline: int(pipeline.along["O"] != rank)

    ways = [graph.pipeline(graph.order, only(r)) for r in "brm"]
    assert _memory(graph, least) == min(_memory(graph, w) for w in ways if w is not None)


@pytest.mark.parametrize("launch", LAUNCHERS)
def test_the_timeline_takes_what_the_cost_says(launch: Launcher) -> None:
    plan = unfused_sections(work_graph(monarch_chain(), grain="kernel"), CHIP)
    cost = plan.cost(launch, 5)
    assert plan.timeline(launch, 5).seconds == pytest.approx(cost.latency)
    assert cost.launches == (20 if launch == "software" else 1)
    assert cost.flops == 5 * plan.graph.flops


def test_whatever_bounds_it_is_named() -> None:
    graph = work_graph(monarch_chain(), grain="kernel")
    assert unfused_sections(graph, on(host_command=0, scheduled_launch=0)).cost().bound == "memory"
    assert unfused_sections(graph, on(host_command=0, scheduled_launch=0, bandwidth=1e18)).cost().bound == "compute"
    assert unfused_sections(graph, CHIP).cost("software").bound == "launch"


def test_the_published_chain() -> None:
    """Table I: 39.5, 102.6 and 410.4 FLOPs a byte; the shapes are inferred."""
    graph = work_graph(monarch_chain(), grain="kernel")
    part = SectionPlan(graph, CHIP, (one_section(graph, CHIP, graph.order[:3]), one_section(graph, CHIP, ["O"])))
    found = [p.cost().intensity for p in (unfused_sections(graph, CHIP), part, plan_sections(graph, CHIP))]
    for ours, paper in zip(found, (39.5, 102.6, 410.4), strict=True):
        assert ours == pytest.approx(paper, rel=0.05)


def test_buffers_alive_at_once_share_no_byte() -> None:
    config = {
        "model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "vocab_size": 100, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    phase = language_model(config, prompt=32, new_tokens=4).phases[0]
    plan = unfused_sections(work_graph(phase, grain="kernel"), CHIP)
    placed, lives = plan.placement.fast, {b.name: b for b in plan.symbols}
    for a, b in itertools.combinations(lives.values(), 2):
        if a.begin <= b.end and b.begin <= a.end and a.size and b.size:
            first, second = placed.offsets[a.name], placed.offsets[b.name]
            assert first + a.size <= second or second + b.size <= first
    assert placed.lower <= placed.peak < placed.total
    assert placed.lower >= plan.graph.weight_bytes


def test_what_moves_least_goes_to_the_store_first() -> None:
    tasks = [WorkTask(n, 10**9, weight_bytes=1000 * 2**i) for i, n in enumerate("abc")]
    graph = WorkGraph("large", tuple(tasks), (WorkEdge("a", "b", 1500, "t"), WorkEdge("b", "c", 1500, "u")))
    chip = on(memory_units=0, memory_bytes=9200, store_bytes=5000)
    plan = unfused_sections(graph, chip)
    assert plan.placement.stored == {"weights of a": 1000}
    cost = plan.cost()
    assert cost.bytes["store"] == 1000
    assert cost.bytes["memory"] == 6000 + 4 * 1500
    assert plan.placement.fast.peak <= 9200
    with pytest.raises(HastenError, match="use more sockets"):
        unfused_sections(graph, chip.model_copy(update={"memory_bytes": 100})).cost()


def test_what_is_impossible_is_refused() -> None:
    graph = WorkGraph("one", (WorkTask("a", 1), WorkTask("b", 1)), (WorkEdge("a", "b", 10**12, "t"),))
    with pytest.raises(HastenError, match="larger than sn40l"):
        one_section(graph, CHIP, graph.order)
    with pytest.raises(HastenError, match="no run of tasks"):
        one_section(graph, CHIP, ["b", "a"])
    with pytest.raises(HastenError, match="by software or hardware"):
        plan_sections(graph, CHIP, launch="magic")  # type: ignore[arg-type]
    with pytest.raises(HastenError, match="a tile of 0"):
        plan_sections(graph, CHIP, tile=0)
    with pytest.raises(HastenError, match="0 times"):
        unfused_sections(graph, CHIP).cost(repeats=0)
    with pytest.raises(HastenError, match="circle"):
        WorkGraph("round", graph.tasks, (WorkEdge("a", "b", 1, "t"), WorkEdge("b", "a", 1, "u")))
    with pytest.raises(HastenError, match="numbers from 1"):
        monarch_chain(0)


def test_nothing_to_compute_takes_no_time() -> None:
    graph = WorkGraph("empty", (WorkTask("a"),))
    cost = unfused_sections(graph, on(host_command=0, scheduled_launch=0)).cost()
    assert cost.latency == 0
    assert cost.intensity == math.inf
    assert cost.share_of(1.0) == 0
