from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hasten.cost import Estimate, estimate
from hasten.errors import HastenError
from hasten.hardware import Curve, Device, Quantity, devices, load_device, read_device
from hasten.workload import Access, Cascade, Einsum, Op, Phase, Role, Tensor, Workload, trace

TOY = """
name = "toy"
title = "a toy"
kind = "asic"
launch_overhead = { value = "1 us", source = "made up" }
idle_power = { value = "2 W", source = "made up" }
max_power = { value = "10 W", source = "made up" }

[[compute]]
name = "array"
runs = ["contraction", "vector"]
[compute.peak]
fp32 = { value = "1 GFLOP/s", source = "made up" }
[compute.energy]
fp32 = { value = "3 pJ/FLOP", source = "made up" }

[[memory]]
name = "SRAM"
capacity = { value = "4 kB", source = "made up" }
bandwidth = { value = "8 GB/s", source = "made up" }
energy = { value = "1 pJ/B", source = "made up" }

[[memory]]
name = "DRAM"
capacity = { value = "1 GB", source = "made up" }
bandwidth = { value = "1 GB/s", source = "made up" }
write_bandwidth = { value = "0.5 GB/s", source = "made up" }
energy = { value = "5 pJ/B", source = "made up" }
"""


def toy() -> Device:
    return read_device(TOY)


def product(m: int, n: int, k: int, dtype: str = "fp32", repeats: int = 1) -> Workload:
    """One matrix product, x (m, k) times a weight (k, n)."""
    einsum = Einsum(
        "e0",
        Op.MATMUL,
        (("m", m), ("n", n), ("k", k)),
        (Access("x", ("m", "k")), Access("w", ("k", "n"))),
        Access("y", ("m", "n")),
        reduce="sum",
        kernel=0,
    )
    tensors = {
        "x": Tensor("x", (m, k), "fp32", Role.INPUT),
        "w": Tensor("w", (k, n), dtype, Role.WEIGHT),
        "y": Tensor("y", (m, n), "fp32", Role.OUTPUT),
    }
    phase = Phase("forward", Cascade((einsum,), tensors), repeats)
    return Workload("product", (phase,), {"w": tensors["w"].nbytes})


def chain(*maps: str, size: int = 100) -> Workload:
    """Element-wise functions one after the other, each its own launch."""
    tensors = {"t0": Tensor("t0", (size,), "fp32", Role.INPUT)}
    einsums = []
    for i, name in enumerate(maps):
        role = Role.OUTPUT if i == len(maps) - 1 else Role.INTERMEDIATE
        tensors[f"t{i + 1}"] = Tensor(f"t{i + 1}", (size,), "fp32", role)
        einsums.append(
            Einsum(
                f"e{i}",
                Op.ELEMENTWISE,
                (("d0", size),),
                (Access(f"t{i}", ("d0",)),),
                Access(f"t{i + 1}", ("d0",)),
                map=name,
                kernel=i,
            )
        )
    return Workload("chain", (Phase("forward", Cascade(tuple(einsums), tensors)),))


# -- by hand -------------------------------------------------------------------------------------------


def test_a_product_bound_by_its_arithmetic():
    # 20 x 20 x 20: 16,000 FLOP at 1 GFLOP/s = 16 us. It moves 1600 B in twice and 1600 B out: the
    # footprint of 4800 B exceeds the SRAM, so DRAM serves reads in 3.2 us and writes in 3.2 us.
    cost = estimate(product(20, 20, 20), toy())
    assert cost.latency == pytest.approx(16e-6 + 1e-6)
    (kernel,) = cost.phases[0].einsums
    assert kernel.bound == "array"
    assert kernel.flops == 16000
    assert cost.bytes == {"SRAM": 4800, "DRAM": 4800}
    assert cost.energy == pytest.approx(16000 * 3e-12 + 4800 * (1e-12 + 5e-12) + 2 * 17e-6)
    assert cost.peak_memory == 4800
    assert cost.fits


def test_a_product_with_a_vector_is_bound_by_main_memory():
    # (1, 1000) x (1000, 10): 20 us of arithmetic; 44,000 B read at 1 GB/s, 40 B written at 0.5 GB/s.
    cost = estimate(product(1, 10, 1000), toy())
    assert cost.latency == pytest.approx(44e-6 + 0.08e-6 + 1e-6)
    assert cost.phases[0].einsums[0].bound == "DRAM"


def test_what_fits_on_chip_is_served_from_there():
    # 10 x 10 x 10: 1200 B in all, under the SRAM's 4 kB.
    cost = estimate(product(10, 10, 10), toy())
    assert cost.bytes == {"SRAM": 1200, "DRAM": 0}
    assert cost.latency == pytest.approx(2e-6 + 1e-6)


def test_a_small_kernel_is_bound_by_its_launch():
    cost = estimate(chain("add"), toy())
    assert cost.phases[0].einsums[0].bound == "launch"
    assert cost.latency == pytest.approx(1e-6 + 100e-9)


def test_a_costly_function_takes_more_than_an_addition():
    launch = 1e-6
    assert estimate(chain("exp"), toy()).latency - launch == pytest.approx(800e-9)


def test_fused_pays_one_launch_a_repeat_and_keeps_intermediates_on_chip():
    eager = estimate(chain("add", "mul", "neg", size=2000), toy())
    fused = estimate(chain("add", "mul", "neg", size=2000), toy(), schedule="fused")
    assert len(eager.phases[0].einsums) == 3
    assert len(fused.phases[0].einsums) == 1
    assert fused.bytes["DRAM"] == 16000  # in once, out once
    assert eager.bytes["DRAM"] == 48000
    assert fused.latency == pytest.approx(1e-6 + 8e-6 + 16e-6)


def test_a_schedule_by_phase():
    one = chain("add", "mul")
    two = Workload("two", (one.phases[0], Phase("decode", one.phases[0].cascade, 3)))
    cost = estimate(two, toy(), schedule={"decode": "fused"})
    assert len(cost.phase("forward").einsums) == 2
    assert len(cost.phase("decode").einsums) == 1
    assert cost.phase("decode").latency == pytest.approx(3 * cost.phase("decode").latency_per_repeat)


def test_an_unknown_schedule_is_one_line():
    with pytest.raises(HastenError, match="'eager' or 'fused'"):
        estimate(product(1, 1, 1), toy(), schedule="lazy")  # type: ignore[arg-type]


def test_says_what_it_emulates_and_what_does_not_fit():
    notes = estimate(product(10, 10, 10, "int4"), read_device(TOY.replace("fp32 =", "bf16 ="))).notes
    assert any("fp32 contractions run as bf16" in note for note in notes)
    tight = read_device(TOY.replace('"1 GB"', '"5 kB"'))
    cost = estimate(product(40, 40, 40), tight)
    assert not cost.fits
    assert any("DRAM holds" in note for note in cost.notes)


def test_int4_weights_move_an_eighth_of_the_bytes():
    wide, narrow = estimate(product(1, 100, 1000), toy()), estimate(product(1, 100, 1000, "int4"), toy())
    assert wide.bytes["DRAM"] - narrow.bytes["DRAM"] == pytest.approx(100_000 * 3.5)


def test_the_io_bound_is_met_by_one_pass_and_missed_by_three():
    fused = estimate(chain("add", "mul", "neg", size=20000), toy(), schedule="fused")
    eager = estimate(chain("add", "mul", "neg", size=20000), toy())
    assert fused.io_lower_bound == 160_000 - 4000
    assert fused.io_distance == pytest.approx(160 / 156)
    assert eager.io_distance == pytest.approx(480 / 156)


# -- measured devices ------------------------------------------------------------------------------------


def measured(seconds: float, cold: float | None = None) -> Device:
    """The toy with a measured matrix product of 8 x 8 x 8 that takes ``seconds`` (``cold`` from DRAM)."""
    found = []
    for operation, took in (("mm", seconds), ("mm cold", cold)):
        if took is not None:
            grid = ((8,), (8,), (8,))
            found.append(
                Curve(
                    operation=operation,
                    dtype="fp32",
                    axes=("m", "n", "k"),
                    grid=grid,
                    seconds=(took,),
                    source="made up",
                )
            )
    return toy().model_copy(update={"curves": tuple(found)})


def test_a_measured_operator_takes_the_place_of_the_peak_launch_included():
    assert estimate(product(8, 8, 8), measured(50e-6)).latency == pytest.approx(50e-6)
    # Above the grid it grows with the volume.
    assert estimate(product(16, 8, 8), measured(50e-6)).latency == pytest.approx(99e-6 + 1e-6)


def test_weights_from_main_memory_are_waited_for():
    warm = estimate(product(80, 80, 8), measured(50e-6))
    waiting = estimate(product(80, 80, 8), measured(50e-6, cold=70e-6))
    assert waiting.latency / warm.latency == pytest.approx(1.4)


def test_packed_weights_stream_at_their_measured_rate():
    rate = Quantity.make(1e9, "weights per second", "made up")
    device = measured(1e-6).model_copy(update={"packed": {"4": rate}, "packed_row": {"4": 0.5}})
    one = estimate(product(1, 100, 1000, "int4"), device, schedule="fused")
    three = estimate(product(3, 100, 1000, "int4"), device, schedule="fused")
    assert one.latency == pytest.approx(100e-6 + 1e-6)
    assert three.latency == pytest.approx(200e-6 + 1e-6)


def test_weights_in_blocks_have_rates_of_their_own():
    """By the bits of a weight with its scales; a row more costs what it was seen to cost, however many there are."""
    rates = {"4": 8e8, "8": 4e8, "4.5 int8": 2e8, "6.5625 int8": 1e8}
    made = {key: Quantity.make(rate, "weights per second", "made up") for key, rate in rates.items()}
    rows = {"4.5 int8": 0.25, "6.5625 int8": 0.5}
    device = measured(1e-6).model_copy(update={"packed": made, "packed_row": rows})

    def seconds(m: int, dtype: str, stored: int, rounded: str = "-int8") -> float:
        work = product(m, 100, 1024, dtype)
        (phase,) = work.phases
        (einsum,) = phase.cascade.einsums
        cascade = Cascade(
            (replace(einsum, map=f"mul{rounded}"),),
            {**phase.cascade.tensors, "w": Tensor("w", (stored, 100), dtype, Role.WEIGHT)},
        )
        whole = Workload("product", (replace(phase, cascade=cascade),), work.weights)
        return estimate(whole, device, schedule="fused").latency - 1e-6

    q6_k, q4_k = 1024 // 256 * 210, 1024
    assert seconds(1, "uint8", q6_k) == pytest.approx(102400 / 1e8)
    assert seconds(41, "uint8", q6_k) == pytest.approx(21 * 102400 / 1e8)
    assert seconds(5, "int4", q4_k) == pytest.approx(2 * 102400 / 2e8)
    # What was not measured is priced by its bits, as before.
    assert seconds(1, "uint8", 1024 // 256 * 84) == pytest.approx(102400 / 4e8)
    assert seconds(1, "int4", q4_k, "") == pytest.approx(102400 / 8e8)


def experts(rows: int, n: int, k: int, hit: float, dtype: str = "fp32", of: int = 16, source: str = "") -> Workload:
    """As `product`, with ``hit`` experts' matrices of so many, each for rows of its own."""
    work = product(rows, n, k, dtype)
    (phase,) = work.phases
    (einsum,) = phase.cascade.einsums
    given, weight = einsum.inputs
    hits = replace(einsum, inputs=(given, replace(weight, elements=round(hit * n * k))), source=source)
    tensors = {**phase.cascade.tensors, "w": Tensor("w", (of, n, k), dtype, Role.WEIGHT)}
    return Workload("experts", (replace(phase, cascade=Cascade((hits,), tensors)),), {"w": tensors["w"].nbytes})


def test_experts_are_a_product_each_of_the_rows_that_go_to_them():
    rate = Quantity.make(1e9, "weights per second", "made up")
    device = measured(1e-6).model_copy(update={"packed": {"4": rate}, "packed_row": {"4": 0.5}})
    found = estimate(experts(8, 100, 1000, hit=5, dtype="int4"), device, schedule="fused")
    assert found.latency == pytest.approx(5 * 100e-6 * (1 + 0.5 * (8 / 5 - 1)) + 1e-6)
    assert found.bytes["DRAM"] == pytest.approx(5 * 100_000 / 2 + 8 * (100 + 1000) * 4)
    # All rows to one: the same as a plain matrix.
    one, plain = experts(8, 100, 1000, hit=1, dtype="int4"), product(8, 100, 1000, "int4")
    assert estimate(one, device, schedule="fused").latency == estimate(plain, device, schedule="fused").latency


def test_a_batch_hits_more_experts_and_pays_for_each():
    rate = Quantity.make(1e9, "weights per second", "made up")
    device = measured(1e-6).model_copy(update={"packed": {"4": rate}, "packed_row": {"4": 0.0}})

    def seconds(tokens: int) -> float:
        hit = 16 * (1 - (1 - 2 / 16) ** tokens)
        return estimate(experts(2 * tokens, 100, 1000, hit=hit, dtype="int4"), device, schedule="fused").latency - 1e-6

    assert seconds(4) / seconds(1) == pytest.approx((1 - (14 / 16) ** 4) / (2 / 16), rel=1e-4)


def test_a_grouped_product_is_one_of_each_group():
    # Four experts with 4 rows each, 50 us with up to 8 rows; in one matrix 16 rows would be twice 49 us.
    found = estimate(experts(16, 8, 8, hit=4, source="aten::_grouped_mm"), measured(50e-6))
    assert found.latency == pytest.approx(4 * 49e-6 + 1e-6)


def test_blocks_of_experts_are_told_by_one_of_them():
    rates = {"8": Quantity.make(4e8, "weights per second", "made up")}
    rates["6.5625 int8"] = Quantity.make(1e8, "weights per second", "made up")
    device = measured(1e-6).model_copy(update={"packed": rates, "packed_row": {}})
    work = experts(2, 100, 1024, hit=2)
    (phase,) = work.phases
    (einsum,) = phase.cascade.einsums
    stored = 1024 // 256 * 210
    weight = replace(einsum.inputs[1], elements=2 * 100 * stored)
    changed = replace(einsum, inputs=(einsum.inputs[0], weight), map="mul-int8", source="hasten::packed_experts")
    tensors = {**phase.cascade.tensors, "w": Tensor("w", (16, 100, stored), "uint8", Role.WEIGHT)}
    blocks = Workload("blocks", (replace(phase, cascade=Cascade((changed,), tensors)),))
    assert estimate(blocks, device, schedule="fused").latency - 1e-6 == pytest.approx(2 * 102400 / 1e8)


def test_prompts_of_a_compiled_step_are_priced_by_its_own_products():
    """As the probe measures them, also of weights in blocks; an eager operator goes another way."""

    def curve(operation: str, dtype: str, took: float) -> Curve:
        grid = ((24,), (100,), (1024,))
        return Curve(
            operation=operation, dtype=dtype, axes=("m", "n", "k"), grid=grid, seconds=(took,), source="made up"
        )

    rate = Quantity.make(1e8, "weights per second", "made up")
    curves = (curve("prompt", "fp32", 7e-3), curve("prompt 4.5 int8", "uint8", 9e-3), curve("mm", "fp32", 5e-3))
    device = toy().model_copy(update={"curves": curves, "packed": {"4.5 int8": rate}, "packed_row": {"4.5 int8": 1.0}})

    def seconds(work: Workload, schedule: str) -> float:
        return estimate(work, device, schedule=schedule).latency - 1e-6  # type: ignore[arg-type]

    plain = product(48, 100, 1024)
    assert seconds(plain, "fused") == pytest.approx(2 * 7e-3)
    assert seconds(plain, "eager") == pytest.approx(2 * 5e-3 - 1e-6)
    (phase,) = product(48, 100, 1024, "int4").phases
    (einsum,) = phase.cascade.einsums
    cascade = replace(phase.cascade, einsums=(replace(einsum, map="mul-int8"),))
    blocks = Workload("blocks", (replace(phase, cascade=cascade),))
    assert seconds(blocks, "fused") == pytest.approx(2 * 9e-3)


def test_a_compiled_prompt_attends_to_what_is_before():
    """Half of the keys, and all of those that were there: in a prompt of 100 tokens behind 100 others 150 of 200."""
    took = Curve(
        operation="attention", dtype="fp32", axes=("heads", "queries", "keys", "size"), grid=((2,), (4,), (8,), (8,)),
        seconds=(1e-3,), source="made up",
    )  # fmt: skip
    device = toy().model_copy(update={"curves": (took,)})

    def seconds(schedule: str, source: str, queries: int = 100) -> float:
        tensors = {
            name: Tensor(name, shape, "fp32", role)
            for name, shape, role in (
                ("q", (2, queries, 8), Role.INPUT), ("k", (2, 200, 8), Role.INPUT), ("v", (2, 200, 8), Role.INPUT),
                ("s", (2, queries, 200), Role.INTERMEDIATE), ("y", (2, queries, 8), Role.OUTPUT),
            )
        }  # fmt: skip
        scores = Einsum(
            "s", Op.MATMUL, (("h", 2), ("p", queries), ("m", 200), ("e", 8)),
            (Access("q", ("h", "p", "e")), Access("k", ("h", "m", "e"))), Access("s", ("h", "p", "m")),
            reduce="sum", kernel=0, source=source,
        )  # fmt: skip
        values = Einsum(
            "y", Op.MATMUL, (("h", 2), ("p", queries), ("f", 8), ("m", 200)),
            (Access("s", ("h", "p", "m")), Access("v", ("h", "m", "f"))), Access("y", ("h", "p", "f")),
            reduce="sum", kernel=0, source=source,
        )  # fmt: skip
        work = Workload("attention", (Phase("forward", Cascade((scores, values), tensors)),))
        return estimate(work, device, schedule=schedule).latency  # type: ignore[arg-type]

    name = "aten::scaled_dot_product_attention"
    whole = seconds("eager", f"{name}(causal)")
    assert whole == pytest.approx(1e-3 * 25 * 25)
    assert seconds("fused", name) == pytest.approx(whole, rel=1e-4)
    assert seconds("fused", f"{name}(causal)") == pytest.approx(1e-3 * 25 * 151 / 8, rel=1e-4)
    assert seconds("fused", f"{name}(causal)", 1) == pytest.approx(1e-3 * 25, rel=1e-2)


def test_a_compiled_step_attends_to_its_cache_as_it_is_kept():
    """By the curve of the cache's format and of a head's shared queries; what reads the cache takes nothing itself."""
    axes = ("heads", "shared", "queries", "keys", "size")
    curves = [
        Curve(
            operation="step attention", dtype=dtype, axes=axes, grid=((2,), (3,), (1,), (8,), (8,)), seconds=(took,),
            source="made up",
        )
        for dtype, took in (("fp32", 1e-3), ("int8", 4e-3))
    ]  # fmt: skip
    meeting = Curve(
        operation="step meeting", dtype="fp32", axes=("m",), grid=((1,),), seconds=(5e-4,), source="made up"
    )
    device = toy().model_copy(update={"curves": (*curves, meeting)})

    def seconds(kept: str, keys: int = 8) -> float:
        tensors = {
            name: Tensor(name, shape, dtype, role)
            for name, shape, dtype, role in (
                ("cache.0.keys", (1, 2, keys, 8), kept, Role.STATE),
                ("cache.0.values", (1, 2, keys, 8), kept, Role.STATE),
                ("q", (2, 3, 1, 8), "fp32", Role.INPUT), ("y", (2, 3, 1, 8), "fp32", Role.OUTPUT),
                ("s", (2, 3, 1, keys), "fp32", Role.INTERMEDIATE), ("k", (1, 2, keys, 8), "fp32", Role.INTERMEDIATE),
                ("v", (1, 2, keys, 8), "fp32", Role.INTERMEDIATE),
            )
        }  # fmt: skip
        read = [
            Einsum(
                name, Op.ELEMENTWISE, (("b", 1), ("h", 2), ("t", keys), ("e", 8)),
                (Access(state, ("b", "h", "t", "e")),), Access(name, ("b", "h", "t", "e")), map="dequantize",
                kernel=number, source="hasten::kv_read",
            )
            for number, (name, state) in enumerate((("k", "cache.0.keys"), ("v", "cache.0.values")))
        ]  # fmt: skip
        k, v = ("k", "v") if kept != "fp32" else ("cache.0.keys", "cache.0.values")
        name = "aten::scaled_dot_product_attention"
        scores = Einsum(
            "s", Op.MATMUL, (("h", 2), ("r", 3), ("p", 1), ("m", keys), ("e", 8)),
            (Access("q", ("h", "r", "p", "e")), Access(k, ("h", "m", "e"))), Access("s", ("h", "r", "p", "m")),
            reduce="sum", kernel=2, source=name,
        )  # fmt: skip
        values = Einsum(
            "y", Op.MATMUL, (("h", 2), ("r", 3), ("p", 1), ("f", 8), ("m", keys)),
            (Access("s", ("h", "r", "p", "m")), Access(v, ("h", "m", "f"))), Access("y", ("h", "r", "p", "f")),
            reduce="sum", kernel=2, source=name,
        )  # fmt: skip
        einsums = (*(read if kept != "fp32" else ()), scores, values)
        work = Workload("attention", (Phase("decode", Cascade(einsums, tensors)),))
        cost = estimate(work, device, schedule="fused")
        met = 5e-4 * len(cost.phases[0].einsums)
        return cost.latency - met - float(device.launch_overhead)

    assert seconds("fp32") == pytest.approx(1e-3, rel=0.01)
    assert seconds("fp32", 4) == pytest.approx(0.5e-3, rel=0.01)
    assert seconds("int8") == pytest.approx(4e-3, rel=0.01)


# -- properties ------------------------------------------------------------------------------------------

shapes = st.tuples(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300))


def faster(device: Device, field: str, factor: float) -> Device:
    levels = tuple(
        level.model_copy(
            update={
                name: Quantity.make(getattr(level, name) * factor, "bytes per second", "made up")
                for name in ("bandwidth", "write_bandwidth")
                if getattr(level, name) is not None
            }
        )
        for level in device.memory
    )
    units = tuple(
        unit.model_copy(
            update={
                "peak": {d: Quantity.make(r * factor, "operations per second", "made up") for d, r in unit.peak.items()}
            }
        )
        for unit in device.compute
    )
    return device.model_copy(update={"memory": levels} if field == "memory" else {"compute": units})


@settings(max_examples=50, deadline=None)
@given(
    shapes,
    st.floats(1, 100),
    st.sampled_from(["memory", "compute"]),
    st.sampled_from(devices()),
    st.sampled_from(["eager", "fused"]),
)
def test_more_bandwidth_or_arithmetic_is_never_slower(shape, factor, field, name, schedule):
    device, work = load_device(name), product(*shape)
    slow = estimate(work, device, schedule=schedule)
    fast = estimate(work, faster(device, field, factor), schedule=schedule)
    assert fast.latency <= slow.latency * (1 + 1e-9)


@settings(max_examples=50, deadline=None)
@given(shapes, st.sampled_from(devices()), st.sampled_from(["fp32", "bf16", "int8", "int4"]))
def test_latency_is_at_least_each_bound_and_memory_at_least_the_weights(shape, name, dtype):
    device, work = load_device(name), product(*shape, dtype=dtype)
    cost = estimate(work, device)
    _, rate, _ = device.unit("contraction", "fp32")
    assert cost.latency * (1 + 1e-9) >= work.flops / rate
    for level in device.memory:
        assert cost.latency * (1 + 1e-9) >= cost.bytes[level.name] / max(level.bandwidth, level.writing)
    assert cost.latency >= device.launch_overhead
    assert cost.peak_memory >= work.weight_bytes
    assert cost.energy > 0


def test_latency_scales_with_repeats():
    once, often = estimate(product(9, 9, 9), toy()), estimate(product(9, 9, 9, repeats=7), toy())
    assert often.latency == pytest.approx(7 * once.latency)
    assert often.energy == pytest.approx(7 * once.energy)
    assert often.peak_memory == once.peak_memory


# -- real modules ------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        h = nn.functional.scaled_dot_product_attention(h[:, None], h[:, None], h[:, None])[:, 0]
        return x + self.down(torch.relu(self.up(h)))


@pytest.fixture(scope="module")
def block() -> Workload:
    return trace(Block(), torch.randn(2, 128, 64))


@pytest.mark.parametrize("name", devices())
def test_every_device_prices_a_traced_module(name: str, block: Workload):
    eager, fused = (estimate(block, load_device(name), schedule=s) for s in ("eager", "fused"))
    assert 0 < fused.latency < eager.latency
    assert eager.peak_memory >= block.weight_bytes + 2 * 2 * 128 * 64 * 4
    assert {k.module for k in eager.phases[0].einsums} >= {"norm", "up", "down"}
    assert sum(k.flops for k in eager.phases[0].einsums) >= block.flops


def test_attention_scores_stay_inside_their_operator(block: Workload):
    cost = estimate(block, load_device("cpu2"))
    attention = next(k for k in cost.phases[0].einsums if "attention" in k.source)
    # q, k, v are one tensor here, read once, and the result of the same size.
    assert attention.bytes["L1"] == 2 * (2 * 128 * 64 * 4)


def test_prices_convolutions_recurrences_and_pools():
    modules: list[tuple[nn.Module, torch.Tensor]] = [
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.MaxPool2d(2)), torch.randn(1, 3, 20, 20)),
        (nn.Conv2d(8, 8, 3, groups=8), torch.randn(1, 8, 20, 20)),
        (nn.ConvTranspose2d(4, 8, 3), torch.randn(1, 4, 9, 9)),
        (nn.LSTM(8, 16), torch.randn(5, 2, 8)),
        (nn.GRU(8, 16), torch.randn(5, 2, 8)),
        (nn.Embedding(10, 4), torch.zeros(3, dtype=torch.int64)),
    ]
    for module, x in modules:
        cost: Estimate = estimate(trace(module.eval(), x), load_device("pi5"))
        assert cost.latency > 0, module


def test_deterministic(block: Workload):
    device = load_device("a100")
    assert estimate(block, device) == estimate(block, device)
