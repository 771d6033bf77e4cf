"""Mappings of loop nests: what is counted is what a machine with one tile of each tensor moves."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.cost.chips.dataflow import ConvShape
from hasten.cost.chips.loop_nest import WORD, BufferedArray, LoopMapping, Nest, convolution, mapping_cost, product
from hasten.errors import HastenError
from hasten.workload import trace

LARGE = BufferedArray(4, 4, 1 << 20)


def execute(nest: Nest, mapping: LoopMapping, shape: ConvShape, arrays):
    """Runs a convolution tile by tile from copies of the tiles alone, and counts what is copied."""
    sizes = dict(nest.sizes)
    order = [*mapping.order, *(r for r in sizes if r not in mapping.order)]
    tile = {r: min(n, mapping.tile.get(r, n)) for r, n in sizes.items()}
    spans = {r: [range(i, min(i + tile[r], n)) for i in range(0, n, tile[r])] for r, n in sizes.items()}
    weights, inputs = arrays
    output, begun = np.zeros((sizes["k"], sizes["y"], sizes["x"])), set()
    held, moved = {}, dict.fromkeys("WIO", 0)

    def window(at, rank, kernel):
        first = at[rank][0] * shape.stride + at[kernel][0]
        return slice(first, at[rank][-1] * shape.stride + at[kernel][-1] + 1), first

    def evict():
        if "O" in held:
            place, part = held["O"]
            output[place] = part
            moved["O"] += part.size

    for parts in itertools.product(*(spans[r] for r in order)):
        at = dict(zip(order, parts, strict=True))
        cut = {r: slice(s[0], s[-1] + 1) for r, s in at.items()}
        rows, top = window(at, "y", "r")
        columns, left = window(at, "x", "s")
        wanted = {
            "W": (cut["k"], cut["c"], cut["r"], cut["s"]),
            "I": (cut["c"], rows, columns),
            "O": (cut["k"], cut["y"], cut["x"]),
        }
        # Windows of two steps that happen to be the same are two tiles.
        keys = {"W": [at[r] for r in "kcrs"], "I": [at[r] for r in "cyrxs"]}
        for name, array in (("W", weights), ("I", inputs)):
            if name not in held or held[name][0] != keys[name]:
                part = array[wanted[name]].copy()
                moved[name] += part.size
                held[name] = (keys[name], part)
        if "O" not in held or held["O"][0] != wanted["O"]:
            evict()
            part = output[wanted["O"]].copy()
            key = str(wanted["O"])
            moved["O"] += part.size if key in begun else 0
            begun.add(key)
            held["O"] = (wanted["O"], part)
        w, i, o = (held[n][1] for n in "WIO")
        for r, s in itertools.product(at["r"], at["s"]):
            across = [y * shape.stride + r - top for y in at["y"]]
            along = [x * shape.stride + s - left for x in at["x"]]
            o += np.einsum("kc,cyx->kyx", w[:, :, r - at["r"][0], s - at["s"][0]], i[:, across][:, :, along])
    evict()
    return output, moved


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_words_are_those_of_a_run(data):
    shape = ConvShape(
        *(data.draw(st.integers(1, n)) for n in (5, 4, 3, 3, 6, 5)), stride=data.draw(st.integers(1, 2))
    )  # fmt: skip
    nest = convolution(shape)
    sizes = dict(nest.sizes)
    mapping = LoopMapping(
        tile={r: data.draw(st.integers(1, n)) for r, n in sizes.items()},
        order=tuple(data.draw(st.permutations(list(sizes)))),
        rows="k",
        columns="c",
        stays="W",
    )
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((sizes["k"], sizes["c"], sizes["r"], sizes["s"]))
    height, width = (shape.stride * (sizes[a] - 1) + sizes[b] for a, b in (("y", "r"), ("x", "s")))
    inputs = rng.standard_normal((sizes["c"], height, width))
    output, moved = execute(nest, mapping, shape, (weights, inputs))
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(inputs)[None], torch.from_numpy(weights), stride=shape.stride
    )[0]
    np.testing.assert_allclose(output, expected.numpy(), atol=1e-10)
    cost = mapping_cost(nest, LARGE, mapping)
    assert cost.words == moved
    assert cost.bytes["memory"] == WORD * sum(moved.values()) >= WORD * nest.compulsory
    assert 0 < cost.utilization <= 1
    assert cost.compute * 16 >= nest.macs
    assert cost.cycles >= max(cost.compute, cost.bytes["memory"] / LARGE.bandwidth)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_array_fetches_what_steps_use(data):
    sizes = {r: data.draw(st.integers(1, 6)) for r in "mnk"}
    einsum = trace(Product(), torch.zeros(sizes["m"], sizes["k"]), torch.zeros(sizes["k"], sizes["n"]))
    nest = product(next(e for e in einsum.phases[0].cascade if e.op == "matmul"))
    names = [r for r, _ in nest.sizes]
    tile = {r: data.draw(st.integers(1, n)) for r, n in nest.sizes}
    rows, columns = data.draw(st.permutations(names))[:2]
    stays = data.draw(st.sampled_from([o.name for o in nest.operands]))
    array = BufferedArray(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)))
    cost = mapping_cost(nest, array, LoopMapping(tile, tuple(names), rows, columns, stays))
    wide = {rows: array.rows, columns: array.columns}
    steps = fetched = written = 0
    spans = {r: [range(i, min(i + tile[r], n)) for i in range(0, n, tile[r])] for r, n in nest.sizes}
    for parts in itertools.product(*(spans[r] for r in names)):
        chunks = [[p[i : i + wide.get(r, 1)] for i in range(0, len(p), wide.get(r, 1))] for r, p in
                  zip(names, parts, strict=True)]  # fmt: skip
        kept: set[tuple[str, tuple[int, ...]]] = set()
        for step in itertools.product(*chunks):
            steps += 1
            at = dict(zip(names, step, strict=True))
            for o in nest.operands:
                ranks = [d[0][0] for d in o.dimensions]
                own = set(itertools.product(*(at[r] for r in ranks)))
                # What a rank spreads that the tensor has not is a share of the same word; what stays is not asked for
                # again in this tile, unless a chunk of such a rank is over.
                other = tuple(at[r].start for r in names if r in wide and r not in ranks)
                words = {(o.name, w, other) for w in own}
                new = len(words - kept) if o.name == stays else len(words)
                kept |= words if o.name == stays else set()
                if o is nest.output:
                    written += new
                else:
                    fetched += new
    assert cost.compute == steps
    assert cost.bytes["buffer"] == WORD * (fetched + 2 * written - nest.output.words(dict(nest.sizes)))


class Product(torch.nn.Module):
    def forward(self, a, b):
        return a @ b


def test_a_layer_that_fits_moves_each_word_once():
    nest = convolution(ConvShape(8, 4, 3, 3, 6, 6))
    cost = mapping_cost(nest, LARGE, LoopMapping({}, (), "k", "c", "O"))
    assert cost.bytes["memory"] == WORD * nest.compulsory == WORD * (8 * 4 * 9 + 4 * 8 * 8 + 8 * 36)
    assert cost.compute == 2 * 1 * 9 * 36
    assert cost.utilization == 1


def test_a_stride_beyond_the_window_leaves_words_unread():
    nest = convolution(ConvShape(1, 1, 1, 1, 1, 2, stride=2))
    assert nest.compulsory == 1 + 2 + 2
    assert mapping_cost(nest, LARGE, LoopMapping({}, (), "k", "c", "O")).words["I"] == 3


def test_the_order_of_loops_matters():
    nest = convolution(ConvShape(64, 64, 1, 1, 32, 32))
    tiles = {"k": 8, "c": 8, "y": 8, "x": 8}
    by_order = {
        order: mapping_cost(nest, BufferedArray(), LoopMapping(tiles, tuple(order), "k", "c", "O")).words
        for order in ("kyxc", "kcyx", "yxkc")
    }
    assert by_order["kyxc"]["O"] == 64 * 32 * 32  # sums are whole before they leave
    assert by_order["kcyx"]["W"] == 64 * 64  # each weight is fetched once
    assert by_order["kcyx"]["O"] == 15 * 64 * 32 * 32
    assert by_order["yxkc"]["I"] == 8 * 64 * 32 * 32


def test_bad_input():
    nest = convolution(ConvShape(8, 8, 1, 1, 8, 8))
    good = {"tile": {}, "order": (), "rows": "k", "columns": "c", "stays": "O"}
    for change, match in [
        ({"rows": "q"}, "no rank 'q'"),
        ({"columns": "k"}, "on rows and columns at once"),
        ({"stays": "X"}, "no tensor 'X'"),
        ({"order": ("k", "k")}, "twice"),
        ({"tile": {"k": 0}}, "at least 1"),
        ({"tile": {"k": math.nan}}, "at least 1"),
    ]:
        with pytest.raises(HastenError, match=match):
            mapping_cost(nest, LARGE, LoopMapping(**(good | change)))
    with pytest.raises(HastenError, match="do not fit"):
        mapping_cost(nest, BufferedArray(4, 4, 100), LoopMapping(**good))
    for none in (math.nan, 0):
        with pytest.raises(HastenError, match="above 0"):
            BufferedArray(bandwidth=none)
    softmax = trace(torch.nn.Softmax(-1), torch.zeros(2, 8)).phases[0].cascade
    with pytest.raises(HastenError, match="no product"):
        product(next(iter(softmax)))
