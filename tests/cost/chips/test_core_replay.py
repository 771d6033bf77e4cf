from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hasten.cost.chips.core_replay import replay
from hasten.cost.chips.core_schedule import PATTERNS, CoreSchedule, CoreStage, schedule
from hasten.errors import HastenError
from hasten.hardware.chips.core_array import core_array
from hasten.workload import parse_cascade, trace
from hasten.workload.streaming import work_graph

from ...workload.small_modules import Gated, Heads

ARRAY = core_array("intar-2x16").model_copy(update={"bandwidth": 290e6 * 4})


@pytest.mark.parametrize(("kind", "shape"), [(Gated, (5, 8)), (Heads, (1, 6, 8))])
def test_every_schedule_gives_the_modules_answer_and_moves_what_its_model_says(
    kind: type[nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    module, x = kind(), torch.randn(shape)
    cascade = trace(module, x).phases[0].cascade
    graph = work_graph(cascade)
    given = {"input0": x, **{n: p.detach() for n, p in module.named_parameters()}}
    expected = module(x).detach()
    streamed = 0
    for on_chip, cores in ((0, 3), (300, 2), (600, 3), (10_000, 1)):
        array = ARRAY.model_copy(update={"on_chip": on_chip, "cores": cores})
        for pattern in PATTERNS:
            plan = schedule(graph, array, pattern)
            cost = plan.cost()
            run = replay(plan, cascade, given)
            (answer,) = run.outputs.values()
            torch.testing.assert_close(answer.reshape(shape), expected, rtol=1e-5, atol=1e-5)
            assert {k: cost.moved(k) for k in run.moved} == run.moved
            assert run.peak == cost.peak <= on_chip
            assert run.queues <= 2
            streamed += run.queues
    assert streamed


def test_whole_numbers_of_16_bits_wrap_as_numpys_do() -> None:
    text = """
ranks n=5, k=16, h=24, o=8
input X[n, k] int16
weight A[k, h] int16
weight B[h, o] int16
output Y
U[n, h] = sum(k) X[n, k] * A[k, h]
R[n, h] = relu(U[n, h])
Y[n, o] = sum(h) R[n, h] * B[h, o]
"""
    cascade = parse_cascade(text)
    rng = np.random.default_rng(0)
    x, a, b = (rng.integers(-(2**15), 2**15, s, dtype=np.int16) for s in ((5, 16), (16, 24), (24, 8)))
    with np.errstate(over="ignore"):
        hidden = np.maximum((x[:, :, None] * a[None]).sum(1, dtype=np.int16), 0)
        expected = (hidden[:, :, None] * b[None]).sum(1, dtype=np.int16)
    given = {n: torch.from_numpy(v) for n, v in zip("XAB", (x, a, b), strict=True)}
    graph = work_graph(cascade)
    for stages in (
        (CoreStage(("U", "Y"), {"U": 1, "Y": 1}),),
        (CoreStage(("U",), {"U": 2}), CoreStage(("Y",), {"Y": 2})),
    ):
        run = replay(CoreSchedule("mine", graph, ARRAY, stages), cascade, given)
        assert np.array_equal(run.outputs["Y"].numpy(), expected)


def test_rows_stream_through_a_window_that_waits_for_its_neighbours() -> None:
    text = """
ranks i=12, j=4, r=3
input X[i, j] fp32
weight F[r] fp32
weight G[r] fp32
output Y
A[i, j] = sum(r) X[i+r-1, j | 0] * F[r] {op conv}
Y[i, j] = sum(r) A[i+r-1, j | 0] * G[r] {op conv}
"""
    cascade = parse_cascade(text)
    graph = work_graph(cascade)
    given = {n: torch.randn(t.shape) for n, t in cascade.tensors.items() if n in "XFG"}
    plan = CoreSchedule("mine", graph, ARRAY, (CoreStage(("A", "Y"), {"A": 1, "Y": 1}),))
    run = replay(plan, cascade, given)

    def slid(x: Tensor, f: Tensor) -> Tensor:
        return functional.conv1d(x.T[:, None], f[None, None], padding=1)[:, 0].T

    torch.testing.assert_close(run.outputs["Y"], slid(slid(given["X"], given["F"]), given["G"]))


def test_too_small_a_memory_a_missing_input_and_two_speeds_are_refused() -> None:
    module, x = Gated(), torch.randn(5, 8)
    cascade = trace(module, x).phases[0].cascade
    graph = work_graph(cascade)
    given = {"input0": x, **{n: p.detach() for n, p in module.named_parameters()}}
    stages = (
        CoreStage(("gate",), {"gate": 2}, frozenset({"t1"})),
        CoreStage(("up",), {"up": 2}),
        CoreStage(("down",), {"down": 2}),
    )
    small = ARRAY.model_copy(update={"on_chip": 479})
    with pytest.raises(HastenError, match="480 bytes do not fit a memory of 479"):
        replay(CoreSchedule("mine", graph, small, stages), cascade, given)
    with pytest.raises(HastenError, match=r"input up\.weight is missing"):
        replay(CoreSchedule("mine", graph, ARRAY, stages), cascade, {k: v for k, v in given.items() if "up" not in k})
    pooled = parse_cascade(
        "ranks i=8, y=4, p=2, r=3\ninput X[i] fp32\nweight F[r] fp32\nweight G[r] fp32\noutput Y\n"
        "A[i] = sum(r) X[i+r-1 | 0] * F[r] {op conv}\nB[y] = max(p) A[2*y+p]\n"
        "Y[y] = sum(r) B[y+r-1 | 0] * G[r] {op conv}\n"
    )
    plan = CoreSchedule("mine", work_graph(pooled), ARRAY, (CoreStage(("A", "Y"), {"A": 1, "Y": 1}),))
    with pytest.raises(HastenError, match="at different speeds"):
        replay(plan, pooled, {"X": torch.randn(8), "F": torch.randn(3), "G": torch.randn(3)})
