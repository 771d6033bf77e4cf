from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.workload import Workload, parse_cascade, trace
from hasten.workload.attention import attention
from hasten.workload.streaming import by_dimension, work_graph
from hasten.workload.work_graph import EdgeKind, Stream, WorkGraph

from .small_modules import Gated, Heads


def edge(graph: WorkGraph, producer: str, consumer: str) -> tuple[Stream, ...]:
    (found,) = [e for e in graph.edges if (e.producer, e.consumer) == (producer, consumer)]
    return found.streams


@pytest.fixture(scope="module")
def heads() -> WorkGraph:
    return work_graph(trace(Heads(), torch.zeros(1, 6, 8)))


def test_products_are_tasks_and_what_follows_them_goes_with_them(heads: WorkGraph) -> None:
    assert [t.name for t in heads.tasks] == ["q", "k", "v", "bmm", "bmm.2", "o"]
    assert [t.macs for t in heads.tasks] == [384, 384, 384, 288, 288, 384]
    assert heads.named["bmm"].operations == 4 * 72  # the softmax goes with the scores
    assert [t.weight_bytes for t in heads.tasks] == [256, 256, 256, 0, 0, 256]
    assert heads.named["q"].input_bytes == 192
    assert heads.named["o"].result_bytes == 192
    assert heads.tensors == {"t0": 192, "t1": 192, "t2": 192, "t7": 288, "t9": 192}


def test_scores_stream_by_rows_and_heads_but_not_by_keys_which_the_softmax_needs_all(heads: WorkGraph) -> None:
    assert [(s.producer, s.steps) for s in edge(heads, "bmm", "bmm.2")] == [("b", 2), ("m", 6)]
    # Keys may come one by one, but then the scores are done only after the last of them.
    by_key = [s for s in edge(heads, "k", "bmm") if s.producer == "m"]
    assert [(s.consumer, s.folds) for s in by_key] == [("n", True)]
    assert all(not s.folds for s in edge(heads, "q", "bmm") if s.producer == "m")


def test_queries_stream_by_rows_only_where_keys_are_there(heads: WorkGraph) -> None:
    assert heads.pipeline(["q", "bmm", "bmm.2"]) is not None
    whole = heads.pipeline(heads.order)
    assert whole is not None  # head by head, all of it
    assert whole.along == {"q": "n_1", "k": "n_1", "v": "n_1", "bmm": "b", "bmm.2": "b", "o": "k_1"}
    assert set(whole.held.values()) == {0}
    one = work_graph(
        parse_cascade(
            "ranks n=6, m=6, e=4, k=8\ninput X[n, k] fp32\nweight A[k, e] fp32\nweight B[k, e] fp32\n"
            "input Y[m, k] fp32\noutput S\nQ[n, e] = sum(k) X[n, k] * A[k, e]\nK[m, e] = sum(k) Y[m, k] * B[k, e]\n"
            "P[n, m] = sum(e) Q[n, e] * K[m, e]\nT[n] = max(m) P[n, m]\nS[n, m] = sub-exp(P[n, m], T[n])\n"
        )
    )
    assert one.order == ("Q", "K", "P")
    by_rows = [s for s in edge(one, "Q", "P") if s.producer == "n"]
    assert [(s.folds, s.producer_held) for s in by_rows] == [(False, 128)]  # a row at a time reads all weights again
    both = one.pipeline(one.order)
    assert both is not None
    assert both.along == {"Q": "e", "K": "e", "P": "e"}


def test_a_layer_streams_into_one_neighbour_but_not_through() -> None:
    """A multilayer perceptron of one row: what sums over what comes in has nothing to hand on before the end."""
    sizes = (16, 32, 64, 16)
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    graph = work_graph(trace(nn.Sequential(*layers), torch.zeros(1, 16)))
    assert graph.order == ("0", "2", "4")
    assert [(s.producer, s.consumer, s.steps, s.folds) for s in edge(graph, "0", "2")] == [("n", "k", 32, True)]
    assert graph.pipeline(["0", "2"])
    assert graph.pipeline(["2", "4"])
    assert graph.pipeline(["0", "2", "4"]) is None
    rows = work_graph(trace(nn.Sequential(*layers), torch.zeros(5, 16)))
    whole = rows.pipeline(rows.order)
    assert whole is not None
    assert whole.along == {"0": "m", "2": "m", "4": "m"}
    assert sum(whole.held.values()) == 4 * (16 * 32 + 32 * 64 + 64 * 16 + 32 + 64 + 16)


def test_a_norm_over_channels_streams_by_rows_alone_and_one_over_all_not_at_all() -> None:
    layer = work_graph(trace(nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 8)), torch.zeros(5, 16)))
    assert [(s.producer, s.steps) for s in edge(layer, "0", "2")] == [("m", 5)]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.second(y / y.sum())

    graph = work_graph(trace(Whole(), torch.zeros(5, 16)))
    assert [e.kind for e in graph.edges] == [EdgeKind.BARRIER]


def test_convolutions_stream_by_rows_with_as_many_as_a_window_spans() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 4, 3, padding=1))
    graph = work_graph(trace(net, torch.zeros(1, 1, 16, 16)))
    by_rows = [s for s in edge(graph, "0", "3") if s.producer == "o0"]
    assert [(s.consumer, s.steps, s.folds) for s in by_rows] == [("o0", 8, False)]
    assert by_rows[0].buffer_bytes == 3 * 2 * 8 * 4  # three rows of two channels of eight numbers


def test_a_gated_block_streams_whole_by_its_hidden_channels_and_keeps_no_weights() -> None:
    graph = work_graph(trace(Gated(), torch.zeros(5, 8)))
    whole = graph.pipeline(graph.order)
    assert whole is not None
    assert whole.along == {"gate": "n", "up": "n", "down": "k"}
    assert not any(whole.held.values())


def test_each_kernel_is_a_task_where_asked_and_no_work_is_lost() -> None:
    work = trace(Heads(), torch.zeros(1, 6, 8))
    cascade = work.phases[0].cascade
    for grain in ("contraction", "kernel"):
        graph = work_graph(work, grain=grain)
        assert sorted(i for t in graph.tasks for i in t.einsums) == list(range(len(cascade)))
        assert 2 * graph.macs == cascade.flops
        assert sum(t.operations for t in graph.tasks) == cascade.operations
        assert graph.weight_bytes == work.weight_bytes
    assert len(graph) == 8


def test_what_is_written_in_parts_or_read_in_no_order_that_is_known_is_a_barrier() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).sort(-1).values)

    graph = work_graph(trace(Sorted(), torch.zeros(1, 8)))
    assert not any(s.producer == "n" for e in graph.edges for s in e.streams)


def test_dimensions_are_as_fine_as_anyone_reads_them() -> None:
    fine = by_dimension(trace(Heads(), torch.zeros(1, 6, 8)).phases[0].cascade)
    assert not fine.opaque
    assert fine.cascade.tensors["t0"].shape == (6, 2, 4)
    assert [str(i) for i in fine.cascade.einsums[0].output.indices] == ["m", "n_1", "n_0"]


def test_cascades_that_are_written_down_have_graphs_too() -> None:
    graph = work_graph(attention("three-pass", p=4, m=8, e=2, f=3), "attention")
    assert graph.name == "attention"
    assert graph.order == ("QK", "AV")
    assert [(s.producer, s.folds) for s in edge(graph, "QK", "AV")] == [("p", False)]


def test_what_has_no_graph_is_refused_in_a_line() -> None:
    work = trace(nn.Linear(4, 4), torch.zeros(1, 4))
    with pytest.raises(HastenError, match="no grain 'layer'"):
        work_graph(work, grain="layer")
    with pytest.raises(HastenError, match="several phases"):
        work_graph(Workload("two", (work.phases[0], work.phases[0])))
    for module, shape in ((nn.Linear(4, 3), (0, 4)), (nn.Linear(4, 3), (2, 0, 4))):
        with pytest.raises(HastenError, match="no elements at"):
            work_graph(trace(module, torch.zeros(shape)))
    with pytest.raises(HastenError, match="computes nothing"):
        work_graph(trace(nn.Identity(), torch.zeros(1, 4)))
