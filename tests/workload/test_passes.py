"""Pass counts follow from the cascade alone, and a machine that runs pass by pass agrees with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.errors import HastenError
from hasten.workload import Access, Cascade, Einsum, Op, Role, Tensor, fuse, language_model, trace, traffic
from hasten.workload.attention import attention, padding, tiled
from hasten.workload.execution import execute
from hasten.workload.passes import expected_loads, passes

COUNTS = {"three-pass": 3, "two-pass": 2, "local-max": 2, "one-pass": 1}
TILED = ("local-max", "one-pass")


def split(kind: str) -> str | tuple[str, str]:
    return ("m1", "m0") if kind in TILED else "m"


def tensors(kind: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, m0: int) -> dict[str, torch.Tensor]:
    if kind not in TILED:
        return {"Q": q, "K": k, "V": v}
    return {"Q": q, "K": tiled(k, m0), "V": tiled(v, m0), "PAD": padding(len(k), m0, q.dtype)}


def random(p: int, m: int, e: int, f: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(p * 1000 + m)
    shapes = ((p, e), (m, e), (m, f))
    q, k, v = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return q, k, v


@pytest.mark.parametrize(("kind", "count"), COUNTS.items())
def test_pass_counts_of_attention(kind: str, count: int) -> None:
    cascade = attention(kind, p=4, m=24, e=8, f=8, m0=6)
    assert passes(cascade, split(kind)).count == count


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(list(COUNTS)),
    p=st.integers(1, 5),
    m=st.integers(1, 20),
    e=st.integers(1, 6),
    f=st.integers(1, 6),
    m0=st.integers(1, 9),
    tile_by_tile=st.booleans(),
)
def test_every_cascade_is_attention_for_any_tile(
    kind: str, p: int, m: int, e: int, f: int, m0: int, tile_by_tile: bool
) -> None:
    q, k, v = random(p, m, e, f)
    cascade = attention(kind, p=p, m=m, e=e, f=f, m0=m0, dtype="fp64")
    run = execute(cascade, tensors(kind, q, k, v, m0), split(kind) if tile_by_tile else "")
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1)
    torch.testing.assert_close(run.outputs["AV"], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", COUNTS)
def test_shifting_the_scores_changes_nothing(kind: str) -> None:
    q, k, v = random(3, 10, 4, 5)
    # One more channel with q = 1 and k = 300 adds 300 to every score: exp alone would overflow in fp32.
    q1 = torch.cat((q, torch.ones(3, 1, dtype=q.dtype)), 1)
    k1 = torch.cat((k, torch.full((10, 1), 300.0, dtype=k.dtype)), 1)
    plain = execute(attention(kind, p=3, m=10, e=4, f=5, m0=4), tensors(kind, q, k, v, 4))
    moved = execute(attention(kind, p=3, m=10, e=5, f=5, m0=4), tensors(kind, q1, k1, v, 4))
    torch.testing.assert_close(plain.outputs["AV"], moved.outputs["AV"], rtol=0, atol=1e-9)


def test_a_masked_first_tile_gives_no_nan() -> None:
    q, k, v = random(2, 8, 4, 4)
    given_ = tensors("one-pass", q, k, v, 4)
    given_["PAD"] = given_["PAD"].clone()
    given_["PAD"][0] = -torch.inf
    run = execute(attention("one-pass", p=2, m=8, e=4, f=4, m0=4), given_, ("m1", "m0"))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k[4:], v[4:], scale=1)
    torch.testing.assert_close(run.outputs["AV"], expected, rtol=0, atol=1e-10)


def test_deferring_the_division_divides_once_an_output() -> None:
    q, k, v = random(6, 40, 4, 5)
    three = execute(attention("three-pass", p=6, m=40, e=4, f=5), tensors("three-pass", q, k, v, 40))
    two = execute(attention("two-pass", p=6, m=40, e=4, f=5), tensors("two-pass", q, k, v, 40))
    one = execute(attention("one-pass", p=6, m=40, e=4, f=5, m0=8), tensors("one-pass", q, k, v, 8))
    assert three.operations["div"] == 6 * 40
    assert two.operations["div"] == one.operations["div"] == 6 * 5


@pytest.mark.parametrize("kind", COUNTS)
def test_what_a_run_loads_is_what_the_analysis_says(kind: str) -> None:
    q, k, v = random(4, 24, 8, 3)
    cascade = attention(kind, p=4, m=24, e=8, f=3, m0=6)
    report = passes(cascade, split(kind))
    run = execute(cascade, tensors(kind, q, k, v, 6), split(kind))
    outer = report.rank[0]
    made_in = {e.output.tensor: report.einsums[i] for i, e in enumerate(cascade.einsums)}
    read_in: dict[str, set[int]] = {}
    for i, e in enumerate(cascade.einsums):
        for a in e.inputs:
            if outer in a.ranks:
                read_in.setdefault(a.tensor, set()).add(report.einsums[i])
    for name, seen in read_in.items():
        assert report.visits[name] == len(seen)
        loaded = len(seen - {made_in.get(name)})  # in its own pass a tile is at hand
        assert run.loads.get(name, 0) == loaded * cascade.tensors[name].elements


def test_one_pass_keeps_a_tile_and_three_passes_whole_rows() -> None:
    def peak(kind: str, m: int) -> int:
        q, k, v = random(4, m, 8, 8)
        cascade = attention(kind, p=4, m=m, e=8, f=8, m0=16)
        return execute(cascade, tensors(kind, q, k, v, 16), split(kind)).peak

    assert peak("one-pass", 32) == peak("one-pass", 128) == peak("one-pass", 512)
    assert peak("three-pass", 512) > 3.9 * peak("three-pass", 128)


def test_footprints_name_the_ranks_they_grow_with() -> None:
    three = passes(attention("three-pass", p=2, m=64, e=4, f=4), "m")
    assert three.live["QK"] == three.live["SN"] == ("m",)
    assert three.footprint["QK"] == 64
    assert three.live["K"] == three.live["A"] == ()
    one = passes(attention("one-pass", p=2, m=64, e=4, f=4, m0=8), ("m1", "m0"))
    assert one.live["QK"] == ("m0",)
    assert {one.footprint[t] for t in ("QK", "SLN", "K", "V")} == {8}
    assert one.live["RM"] == ()


def _with_normalization(cascade: Cascade, tensor: str, rank: str) -> Cascade:
    """``tensor`` divided by its sum over ``rank`` before anyone else reads it."""
    at = next(i for i, e in enumerate(cascade.einsums) if e.output.tensor == tensor) + 1
    maker = cascade.einsums[at - 1]
    ranks = maker.output.ranks
    rows = tuple(r for r in ranks if r != rank)
    known = cascade.tensors[tensor]
    sizes = tuple((r, maker.sizes[r]) for r in ranks)
    total = Einsum(
        f"total_{tensor}",
        Op.REDUCE,
        sizes,
        (Access(tensor, ranks),),
        Access(f"TOTAL_{tensor}", rows),
        "identity",
        "sum",
    )
    scaled = Einsum(
        f"scaled_{tensor}", Op.ELEMENTWISE, sizes, (Access(tensor, ranks), Access(f"TOTAL_{tensor}", rows)),
        Access(f"SCALED_{tensor}", ranks), "div",
    )  # fmt: skip
    rest = [
        replace(e, inputs=tuple(replace(a, tensor=f"SCALED_{tensor}") if a.tensor == tensor else a for a in e.inputs))
        for e in cascade.einsums[at:]
    ]
    extra = {
        f"TOTAL_{tensor}": Tensor(
            f"TOTAL_{tensor}", tuple(maker.sizes[r] for r in rows), known.dtype, Role.INTERMEDIATE
        ),
        f"SCALED_{tensor}": replace(known, name=f"SCALED_{tensor}"),
    }
    return Cascade((*cascade.einsums[:at], total, scaled, *rest), {**cascade.tensors, **extra})


@pytest.mark.parametrize("kind", ["three-pass", "two-pass"])
def test_a_full_reduction_then_a_broadcast_adds_one_pass(kind: str) -> None:
    cascade = attention(kind, p=2, m=12, e=4, f=4)
    once = _with_normalization(cascade, "QK", "m")
    twice = _with_normalization(once, "SN", "m")
    assert [passes(c, "m").count - COUNTS[kind] for c in (cascade, once, twice)] == [0, 1, 2]


# -- fusion ------------------------------------------------------------------------------------------


class Normalize(torch.nn.Module):
    """Division by the sum of exponentials, one operator at a time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.exp(x * 2)
        return y / y.sum(-1, keepdim=True)


def llama() -> Cascade:
    config = {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return language_model(config, prompt=16, new_tokens=4).phases[0].cascade


@pytest.mark.parametrize("capacity", [0, 1 << 10, 1 << 14, 1 << 18, 1 << 30])
def test_groups_partition_the_cascade_and_can_run_in_their_order(capacity: int) -> None:
    cascade = llama()
    groups = fuse(cascade, capacity)
    assert sorted(i for g in groups for i in g.einsums) == list(range(len(cascade)))
    place = {i: n for n, g in enumerate(groups) for i in g.einsums}
    last: dict[str, int] = {}
    for i, e in enumerate(cascade.einsums):
        for a in e.inputs:
            if a.tensor in last:
                assert place[last[a.tensor]] <= place[i]
        last[e.output.tensor] = i
    for n, g in enumerate(groups):
        for name in g.on_chip:
            assert cascade.tensors[name].role is Role.INTERMEDIATE
            assert {place[i] for i in cascade.consumers.get(name, [])} <= {n}


def moved_bytes(cascade: Cascade, capacity: int) -> int:
    total = 0
    for group in fuse(cascade, capacity):
        reads, writes = traffic(cascade, group)
        total += sum(reads.values()) + sum(writes.values())
    return total


def test_more_memory_on_chip_never_moves_more_and_never_less_than_it_must() -> None:
    cascade = llama()
    alone = sum(cascade.access_bytes(e, a) for e in cascade for a in (*e.inputs, e.output))
    amounts = [moved_bytes(cascade, c) for c in (0, 1 << 12, 1 << 16, 1 << 30)]
    assert amounts == sorted(amounts, reverse=True)
    weights = sum(t.nbytes for t in cascade.with_role(Role.WEIGHT) if "embed" not in t.name)
    assert weights < amounts[-1] < amounts[0] < alone


def test_a_fibre_that_is_visited_again_must_fit() -> None:
    cascade = trace(Normalize(), torch.zeros(4, 1000)).phases[0].cascade
    assert [e.map for e in cascade] == ["mul", "exp", "identity", "div"]
    small, large = fuse(cascade, 3999), fuse(cascade, 4000)
    assert [g.einsums for g in large] == [(0, 1, 2, 3)]
    assert [g.einsums for g in small] == [(0, 1, 2), (3,)]
    assert cascade.einsums[1].output.tensor in large[0].on_chip
    assert cascade.einsums[1].output.tensor not in small[0].on_chip


def test_a_projection_takes_in_its_epilogue() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 64))
    cascade = trace(module, torch.zeros(512, 64)).phases[0].cascade
    groups = fuse(cascade, 1 << 10)
    assert [[cascade.einsums[i].map for i in g.einsums] for g in groups] == [
        ["mul", "add", "gelu"],
        ["mul", "add"],
    ]


def test_bad_input_is_one_clear_line() -> None:
    with pytest.raises(HastenError, match="unknown attention cascade 'four-pass'"):
        attention("four-pass", p=1, m=1, e=1, f=1)
    with pytest.raises(HastenError, match="input V is missing"):
        execute(attention("two-pass", p=1, m=2, e=1, f=1), {"Q": torch.ones(1, 1), "K": torch.ones(2, 1)})


@pytest.mark.parametrize("kind", COUNTS)
def test_what_is_loaded_when_run_is_what_was_expected(kind: str) -> None:
    cascade = attention(kind, p=4, m=24, e=8, f=8, m0=6)
    expected = expected_loads(cascade, passes(cascade, split(kind)))
    run = execute(cascade, tensors(kind, *random(4, 24, 8, 8), 6), split(kind))
    assert expected == {name: run.loads.get(name, 0) / cascade.tensors[name].elements for name in expected}
    assert expected["K"] == expected["V"] == 1
    # Of what it makes itself, a cascade of one pass loads nothing again.
    again = sum(count for name, count in expected.items() if cascade.tensors[name].role != "input")
    assert (again == 0) == (kind == "one-pass")
