"""One result of all models of chips: the same fields in the same units, whatever the model."""

import dataclasses

import pytest

from hasten.cost.chips.chip_cost import ChipCost
from hasten.cost.chips.dataflow import ConvShape, SubAccelerator, layer_cost
from hasten.cost.chips.dram import MemoryController, MemorySystem
from hasten.cost.chips.fpga import LLAMA_2_7B, PLANS, DspEngine, run
from hasten.cost.chips.loop_nest import BufferedArray, LoopMapping, convolution, mapping_cost
from hasten.cost.chips.soc import Chip, run_tasks
from hasten.cost.chips.spatial import DESIGNS, MODELS, attention_cost, linear_cost
from hasten.data.memory_traces import memory_trace
from hasten.data.task_graphs import task_graph
from hasten.hardware.chips.memory_part import memory_part
from hasten.search.codesign.chips import map_chip

CONV = ConvShape(64, 64, 3, 3, 28, 28)
UNIT = SubAccelerator("dla", 256, 16)


def costs() -> dict[str, ChipCost]:
    tasks = task_graph("edge-detection")
    none = [0] * len(tasks)
    mapping = LoopMapping({"k": 32, "c": 32, "y": 14, "x": 14}, tuple("kyxc"), "k", "c", "O")
    return {
        "dataflow": layer_cost(CONV, UNIT),
        "loop nest": mapping_cost(convolution(CONV), BufferedArray(), mapping),
        "attention": attention_cost(DESIGNS["fusemax"], heads=8, p=1024, m=1024, e=64, f=64),
        "unfused": attention_cost(DESIGNS["unfused"], heads=8, p=1024, m=1024, e=64, f=64),
        "linear": linear_cost(DESIGNS["fusemax"].chip, MODELS[0], 1024),
        "memory": MemorySystem(memory_part("ddr3-1600"), memory_trace("stream", 1000)).run(MemoryController()),
        "fpga": run(DspEngine(), PLANS["dense fp16"], LLAMA_2_7B, 1024),
        "soc": run_tasks(tasks, Chip((("cpu", 800e6),), ("dram",)), none, none),
        "chip": map_chip([[CONV, CONV]], [UNIT])[0],
    }


def test_every_model_answers_in_si_units():
    for name, cost in costs().items():
        assert isinstance(cost, ChipCost), name
        assert 1e-7 < cost.latency < 1, name  # seconds, not cycles
        assert 1e-7 < cost.energy < 100, name  # joules, not picojoules
        assert cost.power == pytest.approx(cost.energy / cost.latency)
        assert cost.bytes
        assert all(moved > 0 for moved in cost.bytes.values()), name
        assert cost.area is None or 1e-8 < cost.area < 1e-2, name  # square metres: from 0.01 mm^2 to 100 cm^2
        assert cost.bound, name
    assert {n for n, c in costs().items() if c.area is None} == {"memory", "fpga"}


def test_the_bound_is_what_would_have_to_be_faster():
    starved, fed = (layer_cost(CONV, SubAccelerator("dla", 256, b)) for b in (0.5, 64))
    assert (starved.bound, fed.bound) == ("memory", "compute")
    assert starved.latency > layer_cost(CONV, SubAccelerator("dla", 256, 1.0)).latency
    mapping = LoopMapping({"k": 32, "c": 32, "y": 14, "x": 14}, tuple("kyxc"), "k", "c", "O")
    slow, fast = (mapping_cost(convolution(CONV), BufferedArray(bandwidth=b), mapping) for b in (0.1, 1000.0))
    assert (slow.bound, fast.bound) == ("memory", "compute")
    assert attention_cost(DESIGNS["unfused"], heads=8, p=1024, m=1024, e=64, f=64).bound == "lanes"
    chip = dataclasses.replace(DESIGNS["fusemax"].chip, bandwidth=1e6)
    starved_attention = dataclasses.replace(DESIGNS["fusemax"], chip=chip)
    assert attention_cost(starved_attention, heads=8, p=1024, m=1024, e=64, f=64).bound == "memory"
    assert linear_cost(chip, MODELS[0], 1024).bound == "memory"
    tasks = task_graph("edge-detection")
    none = [0] * len(tasks)
    assert run_tasks(tasks, Chip((("cpu", 800e6),), ("dram",)), none, none).bound in ("order", "cpu 0")
    narrow = run_tasks(tasks, Chip((("cpu", 800e6 * 1000),), ("dram",), "shared", 1), none, none)
    assert narrow.bound == "bus"
    part = memory_part("ddr3-1600")
    stream = MemorySystem(part, memory_trace("stream", 3000))
    assert stream.run(MemoryController(size=16)).bound in ("data bus", "requests")
    assert stream.run(MemoryController(page="closed")).bound == "commands"


def test_a_spatial_array_is_as_large_as_its_parts():
    """Published areas in um^2, as square metres."""
    chip = DESIGNS["fusemax"].chip
    assert chip.total_area == pytest.approx((47.1e6 + 256**2 * (1545 + 4256) + 256 * 23741) * 1e-12)
    assert dataclasses.replace(chip, area={}).total_area is None
