"""Deformable layers on an engine: reads of offsets, line buffers that never miss, caches, and the published times."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from hasten.cost.chips.sampling import SampledLayer, line_misses, network_cost, plain_offsets, reads_of, sampled_cost
from hasten.errors import HastenError
from hasten.hardware.chips.sampling_engine import sampling_engine
from hasten.kernels.deform_conv import FORMS
from hasten.models import named
from hasten.nn.deformable import tap_offsets
from hasten.workload import trace_cascade

# ms of CoDeNet's table 2, without and with cache.
TABLE = {
    ("dense", "plain"): (43.1, 41.6), ("dense", "original"): (59.0, 42.7), ("dense", "bound"): (43.4, 41.8),
    ("dense", "square"): (43.4, 41.8), ("depthwise", "plain"): (1.9, 2.0), ("depthwise", "original"): (20.5, 17.8),
    ("depthwise", "bound"): (3.0, 3.4), ("depthwise", "square"): (2.1, 2.3),
}  # fmt: skip


def within(layer: SampledLayer, seed: int = 0) -> Tensor:
    """Offsets that send every tap to some place of the map, whole."""
    generator = torch.Generator().manual_seed(seed)
    wanted = [
        torch.randint(n, (9, layer.height, layer.width), generator=generator) for n in (layer.height, layer.width)
    ]
    own = [torch.arange(layer.height)[:, None], torch.arange(layer.width)]
    taps = torch.arange(9)[:, None, None]
    moved = [w - o - t for w, o, t in zip(wanted, own, (taps // 3 - 1, taps % 3 - 1), strict=True)]
    return torch.stack(moved, 1).flatten(0, 1).float()


@pytest.mark.parametrize(("engine", "kind"), TABLE)
def test_published_times(engine: str, kind: str) -> None:
    """Clocks and ways to memory are fitted to eight of these; the others follow."""
    layer = SampledLayer(256, 256, 64, 64, kind, depthwise=engine == "depthwise")
    anywhere = within(layer)
    squares = tap_offsets(torch.randint(0, 8, (1, 1, 64, 64)).float(), "square")[0]
    offsets = {"original": anywhere, "bound": anywhere.clamp(-8, 8), "square": squares}.get(kind)
    for cache, published in zip((0, None), TABLE[engine, kind], strict=True):
        cost = sampled_cost(layer, sampling_engine(f"ultra96-{engine}"), offsets, cache=cache)
        assert 1e3 * cost.latency == pytest.approx(published, rel=0.15)


def test_unmoved_taps_read_nine_places() -> None:
    layer = SampledLayer(4, 4, 5, 6, depthwise=True)
    places, between = reads_of(plain_offsets(layer))
    assert between == 0
    assert places[:4].tolist() == [0, 1, 6, 7]  # of the first corner
    assert len(places) == 9 * 30 - 3 * (2 * 5 + 2 * 6) + 4  # a tap off the map is not read
    middle = plain_offsets(layer) + 0.25
    count = len(reads_of(middle)[0])
    assert reads_of(middle)[1] > 200
    assert count > 3 * len(places)


@pytest.mark.parametrize(("far", "count"), [(1.5, 25), (2.0, 9)])
def test_a_square_reads_25_places_between_and_9_rounded(far: float, count: int) -> None:
    offsets = torch.zeros(18, 13, 13)
    alone = len(reads_of(offsets)[0])
    offsets[:, 6, 6] = tap_offsets(torch.full((1, 1, 1, 1), far), "square")[0, :, 0, 0]
    assert len(reads_of(offsets)[0]) == alone - 9 + count


@pytest.mark.parametrize("bound", [1, 3])
def test_a_line_buffer_of_2b_and_3_rows_never_misses(bound: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for form, scale in itertools.product(FORMS[1:], (1.0, 10.0)):
        predicted = scale * torch.randn(1, 1 if form == "square" else 18, 16, 9, generator=generator)
        assert line_misses(tap_offsets(predicted, form, bound)[0], 2 * bound + 3) == 0
    # One row less does, once offsets reach both bounds.
    offsets = torch.zeros(18, 16, 9)
    offsets[0, 8, 4], offsets[16, 8, 4] = -bound, bound
    assert line_misses(offsets, 2 * bound + 3) == 0
    assert line_misses(offsets, 2 * bound + 2) > 0


def test_a_cache_as_large_as_the_map_misses_once_a_line() -> None:
    layer = SampledLayer(64, 64, 12, 12, "original", depthwise=True)
    engine, offsets = sampling_engine("ultra96-depthwise"), within(SampledLayer(64, 64, 12, 12))
    whole, small, none = (sampled_cost(layer, engine, offsets, cache=c) for c in (12 * 12 * 64, 640, 0))
    assert whole.misses == 12 * 12
    assert whole.misses < small.misses < whole.reads
    assert none.misses == 0
    assert none.requests == whole.requests == 9 * 144 * 4
    assert whole.latency < small.latency
    assert none.bytes["memory"] > small.bytes["memory"] > whole.bytes["memory"]
    assert none.energy > whole.energy > 0
    near = sampled_cost(layer, engine, plain_offsets(layer), cache=640 * 4)
    assert near.misses < sampled_cost(layer, engine, offsets, cache=640 * 4).misses


def test_what_a_layer_asks_for() -> None:
    dense = SampledLayer(8, 16, 10, 10, "bound", predicted=3)
    assert dense.macs == 100 * 9 * 8 * 16
    assert dense.offset_macs == 100 * 18 * 9 * 8
    assert dense.offset_weights == 18 * (9 * 8 + 1)
    assert SampledLayer(8, 8, 10, 10, "square", depthwise=True).offset_weights == 9
    cost = sampled_cost(dense, sampling_engine("ultra96-dense"), torch.full((18, 10, 10), 0.5))
    assert cost.bound in ("multiply", "stream", "read")
    assert cost.interpolations > 6 * 8 * 8 * 81
    assert cost.buffer_size == 19 * 10 * 8


def test_what_is_not_to_be_priced_is_one_line() -> None:
    dense, depthwise = sampling_engine("ultra96-dense"), sampling_engine("ultra96-depthwise")
    layer = SampledLayer(8, 8, 4, 4, "original")
    with pytest.raises(HastenError, match=r"give them as \(18, 4, 4\)"):
        sampled_cost(layer, dense)
    with pytest.raises(HastenError, match="no lanes for dense layers"):
        sampled_cost(SampledLayer(8, 8, 4, 4), depthwise)
    with pytest.raises(HastenError, match="needs 21 rows, ultra96-dense has 19"):
        sampled_cost(SampledLayer(8, 8, 4, 4, "bound", bound=9), dense, torch.zeros(18, 4, 4))
    with pytest.raises(HastenError, match="holds no line"):
        sampled_cost(layer, dense, torch.zeros(18, 4, 4), cache=32)
    for wrong in ({"kind": "round"}, {"channels": 0}, {"outputs": 9, "depthwise": True}):
        with pytest.raises(HastenError):
            SampledLayer(**({"channels": 8, "outputs": 8, "height": 4, "width": 4} | wrong))


def test_a_whole_network_on_the_accelerator() -> None:
    engine = sampling_engine("codenet-ultra96")
    seconds = []
    for pooled, side in ((False, 64), (True, 64), (False, 128)):
        network = named.build("codenet-1x-voc", pooled=pooled)
        cascade = trace_cascade(network, (torch.zeros(1, 3, side, side, device="meta", dtype=torch.bfloat16),)).cascade
        cost = network_cost(cascade, engine)
        assert cost.latency > cascade.flops / 2 / (engine.clock * 256)  # no more products than lanes
        seconds.append(cost.latency)
    assert seconds == sorted(seconds)
    with pytest.raises(HastenError, match="runs no whole network"):
        network_cost(cascade, sampling_engine("ultra96-dense"))
    plain = named.build("resnet-18")
    cascade = trace_cascade(plain, (torch.zeros(1, 3, 32, 32, device="meta", dtype=torch.bfloat16),)).cascade
    with pytest.raises(HastenError, match="it runs 1x1 and depthwise 3x3"):
        network_cost(cascade, engine)
