"""Cascades with offsets run as a count of their elements one by one says: values, words and passes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.errors import HastenError
from hasten.workload import Access, Cascade, Einsum, Role, fuse, traffic
from hasten.workload.execution import execute
from hasten.workload.notation import format_cascade, parse_cascade
from hasten.workload.passes import passes

N = 7

# -- the oracle: element by element, sharing nothing with the library but the data

AT_A_POINT = {
    "identity": lambda x: x,
    "mul": lambda *xs: math.prod(xs),
    "add": lambda *xs: sum(xs),
    "sub": lambda x, y: x - y,
    "max": max,
}
FOLDS = {"sum": sum, "max": max}


def points(einsum: Einsum) -> Iterator[dict[str, int]]:
    names = [n for n, _ in einsum.ranks]
    for place in itertools.product(*(range(size) for _, size in einsum.ranks)):
        yield dict(zip(names, place, strict=True))


def place(access: Access, point: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(i.offset + sum(factor * point[rank] for rank, factor in i.terms) for i in access.indices)


def inside(cascade: Cascade, access: Access, at: tuple[int, ...]) -> bool:
    return all(0 <= x < size for x, size in zip(at, cascade.tensors[access.tensor].shape, strict=True))


def touched_one_by_one(cascade: Cascade, einsum: Einsum, access: Access) -> set[tuple[int, ...]]:
    found = {place(access, p) for p in points(einsum)}
    return {at for at in found if inside(cascade, access, at)}


class Elements:
    """Elements of a cascade's tensors, each computed when it is asked for."""

    def __init__(self, cascade: Cascade, inputs: Mapping[str, torch.Tensor]) -> None:
        self.cascade = cascade
        self.inputs = inputs
        self.known: dict[tuple[str, tuple[int, ...]], float] = {}
        self.made: dict[tuple[str, tuple[int, ...]], tuple[Einsum, list[dict[str, int]]]] = {}
        for einsum in cascade.einsums:
            for point in points(einsum):
                key = einsum.output.tensor, place(einsum.output, point)
                before = self.made.get(key)
                if before and before[0] is einsum:
                    before[1].append(point)
                else:
                    self.made[key] = einsum, [point]

    def __call__(self, tensor: str, at: tuple[int, ...]) -> float:
        key = tensor, at
        if key not in self.known:
            if key not in self.made:
                return float(self.inputs[tensor][at])
            einsum, where = self.made[key]
            values = [self.at_point(einsum, p) for p in where]
            self.known[key] = FOLDS[einsum.reduce](values) if einsum.reduce else values[0]
        return self.known[key]

    def at_point(self, einsum: Einsum, point: Mapping[str, int]) -> float:
        if not einsum.inputs:
            return float(einsum.map)
        read = []
        for access in einsum.inputs:
            at = place(access, point)
            read.append(self(access.tensor, at) if inside(self.cascade, access, at) else access.outside)
        return AT_A_POINT[einsum.map](*read)

    def tensor(self, name: str) -> torch.Tensor:
        shape = self.cascade.tensors[name].shape
        values = [self(name, at) for at in itertools.product(*map(range, shape))]
        return torch.tensor(values, dtype=torch.float64).reshape(shape)


def passes_one_by_one(cascade: Cascade, rank: str, patience: int) -> int:
    """How many times something must go over ``rank``, element by element.

    It goes from one end to the other and may wait ``patience`` steps for what it needs, but not for a whole fibre.
    """
    nothing = (1, -math.inf)
    elements = Elements(cascade, {})
    known: dict[tuple[str, tuple[int, ...]], tuple[int, float]] = {}
    most = 0

    def there(key: tuple[str, tuple[int, ...]]) -> tuple[int, float]:
        """The pass and the place in it from which on an element is there."""
        nonlocal most
        if key not in elements.made:
            return nothing
        if key not in known:
            einsum, where = elements.made[key]
            found = nothing
            for point in where:
                needs = [there((a.tensor, place(a, point))) for a in einsum.inputs]
                if rank in point:
                    here = point[rank]
                    number = max((p + (q > here + patience) for p, q in needs), default=1)
                    needs = [(number, here)]
                    most = max(most, number)
                found = max([found, *needs])
            known[key] = found
        return known[key]

    for key in elements.made:
        there(key)
    return most


# -- programs


@st.composite
def programs(draw: st.DrawFn) -> str:
    """Statements over rank i, with {n} for its size: offsets, windows, folds, running values and what they leave."""
    lines = ["ranks i={n}, k=3", "input A[i] fp64", "input F[k] fp64"]
    over, single = ["A"], []

    def read(of: str | None = None) -> str:
        name = of or draw(st.sampled_from(over))
        offset = draw(st.integers(-2, 2))
        return f"{name}[i{offset:+d} | {draw(st.integers(-1, 1))}]" if offset or draw(st.booleans()) else f"{name}[i]"

    for number in range(draw(st.integers(1, 6))):
        name = f"T{number}"
        kind = draw(st.sampled_from(["map", "window", "fold", "spread", "running", "pair"]))
        if kind == "map" or (kind == "spread" and not single):
            lines.append(f"{name}[i] = {read()} {draw(st.sampled_from('+-*'))} {read()}")
        elif kind == "window":
            lines.append(f"{name}[i] = sum(k) {draw(st.sampled_from(over))}[i+k-1 | 0] * F[k]")
        elif kind == "fold":
            lines.append(f"{name}[] = {draw(st.sampled_from(['sum', 'max']))}(i) {read()}")
            single.append(name)
            continue
        elif kind == "spread":
            lines.append(f"{name}[i] = {read()} + {draw(st.sampled_from(single))}[]")
        else:
            lines.append(f"{name}[0] = {draw(st.integers(-1, 1))}")
            if kind == "pair":
                lines += [f"P{number}[i] = {name}[i] * F[1]", f"{name}[i+1] = P{number}[i] + {read()} along i"]
            else:
                lines.append(f"{name}[i+1] = max({name}[i], {read()}) along i")
            lines.append(f"L{number}[] = {name}[{draw(st.sampled_from(['0', '{n}']))}]")
            single.append(f"L{number}")
        over.append(name)
    return "\n".join(lines)


def inputs(cascade: Cascade) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        t.name: torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in cascade.with_role(Role.INPUT)
    }


def with_outputs(text: str, n: int) -> Cascade:
    cascade = parse_cascade(text.replace("{n}", str(n)))
    made = dict.fromkeys(e.output.tensor for e in cascade.einsums)
    return parse_cascade(text.replace("{n}", str(n)) + "".join(f"\noutput {name}" for name in made))


@settings(max_examples=60, deadline=None)
@given(programs())
def test_a_run_gives_what_its_elements_are(text: str) -> None:
    cascade = with_outputs(text, N)
    given_ = inputs(cascade)
    elements = Elements(cascade, given_)
    expected = {t.name: elements.tensor(t.name) for t in cascade.with_role(Role.OUTPUT)}
    for rank in ("", "i"):
        run = execute(cascade, given_, rank)
        for name, value in expected.items():
            torch.testing.assert_close(run.outputs[name], value, msg=lambda m, n=name: f"{n}: {m}\n{text}")


@settings(max_examples=60, deadline=None)
@given(programs())
def test_words_are_those_of_the_elements_touched(text: str) -> None:
    cascade = with_outputs(text, N)
    for einsum in cascade.einsums:
        for access in (*einsum.inputs, einsum.output):
            assert cascade.access_bytes(einsum, access) == 8 * len(touched_one_by_one(cascade, einsum, access)), access
    report = passes(cascade, "i")
    loads: dict[str, int] = {}
    for number in range(1, report.count + 1):
        read = {
            (a.tensor, at)
            for e, when in zip(cascade.einsums, report.einsums, strict=True)
            for a in e.inputs
            if when == number and "i" in a.ranks and cascade.tensors[a.tensor].role is Role.INPUT
            for at in touched_one_by_one(cascade, e, a)
        }
        for name, _ in read:
            loads[name] = loads.get(name, 0) + 1
    run = execute(cascade, inputs(cascade), "i")
    assert {n: c for n, c in run.loads.items() if n == "A"} == {n: c for n, c in loads.items() if n == "A"}


@settings(max_examples=25, deadline=None)
@given(programs())
def test_passes_are_those_of_elements_that_wait_some_steps_but_not_for_a_fibre(text: str) -> None:
    cascade = parse_cascade(text.replace("{n}", "60"))
    assert passes(cascade, "i").count == passes_one_by_one(cascade, "i", patience=20), text


def test_a_window_is_held_and_not_the_fibre() -> None:
    def cascade(n: int) -> Cascade:
        return parse_cascade(f"""
            ranks w={n + 4}, i={n}, k=5
            input X[w] fp32
            input F[k] fp32
            output B
            A[w] = square(X[w])
            B[i] = sum(k) A[i+k] * F[k]
        """)

    report = passes(cascade(20), "w")
    assert (report.count, report.along, report.delays) == (1, ("w", "i"), (0, 4))
    assert (report.footprint["A"], report.footprint["X"], report.live["A"]) == (5, 1, ())
    x, f = torch.randn(104), torch.randn(5)
    run = execute(cascade(100), {"X": x, "F": f}, "w")
    torch.testing.assert_close(run.outputs["B"], torch.nn.functional.conv1d(x[None, None] ** 2, f[None, None])[0, 0])
    # What is output is kept; beside it the window, and what comes in.
    assert run.peak == 100 + 5 + 1
    assert run.loads == {"X": 104}


def test_a_fold_between_makes_a_second_pass_of_the_window() -> None:
    cascade = parse_cascade("""
        ranks w=12, i=8, k=5
        input X[w] fp32
        output B
        A[w] = square(X[w])
        S[] = sum(w) A[w]
        B[i] = sum(k) mul(A[i+k], S[])
    """)
    report = passes(cascade, "w")
    assert (report.count, report.einsums, report.footprint["A"]) == (2, (1, 1, 2), 12)


def test_a_convolution_with_stride_and_padding_is_torchs() -> None:
    cascade = parse_cascade("""
        ranks n=2, o=4, c=3, y=5, x=6, r=3, s=3
        input I[2, 3, 9, 11] fp64
        input W[o, c, r, s] fp64
        output O
        O[n, o, y, x] = sum(c, r, s) I[n, c, 2*y+r-1, 2*x+s-1 | 0] * W[o, c, r, s]
    """)
    image, weight = torch.randn(2, 3, 9, 11, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    run = execute(cascade, {"I": image, "W": weight})
    torch.testing.assert_close(run.outputs["O"], torch.nn.functional.conv2d(image, weight, stride=2, padding=1))
    (einsum,) = cascade.einsums
    assert cascade.access_bytes(einsum, einsum.inputs[0]) == 8 * 2 * 3 * 9 * 11
    assert einsum.flops == 2 * 2 * 4 * 5 * 6 * 27


def test_a_step_along_one_rank_may_run_whole_in_a_tile_of_another() -> None:
    cascade = parse_cascade("""
        ranks p=3, t=5
        input A[p, t] fp64
        output Y
        S[p, 0] = 0
        H[p, t] = S[p, t] * S[p, t]
        S[p, t+1] = H[p, t] + A[p, t] along t
        Y[p] = S[p, 5]
    """)
    given_ = {"A": torch.rand(3, 5, dtype=torch.float64) / 2}
    state = torch.zeros(3, dtype=torch.float64)
    for t in range(5):
        state = state * state + given_["A"][:, t]
    for rank in ("", "p", "t"):
        torch.testing.assert_close(execute(cascade, given_, rank).outputs["Y"], state)
    assert passes(cascade, "p").count == passes(cascade, "t").count == 1
    assert execute(cascade, given_, "t").peak < execute(parse_longer(), {"A": torch.rand(3, 50).double()}, "t").peak + 1


def parse_longer() -> Cascade:
    return parse_cascade("""
        ranks p=3, t=50
        input A[p, t] fp64
        output Y
        S[p, 0] = 0
        H[p, t] = S[p, t] * S[p, t]
        S[p, t+1] = H[p, t] + A[p, t] along t
        Y[p] = S[p, 50]
    """)


def test_a_recurrence_is_one_kernel_and_reads_only_what_it_begins_with() -> None:
    cascade = parse_longer()
    (group,) = fuse(cascade, 1 << 20)
    assert group.on_chip == {"S", "H"}
    assert traffic(cascade, group) == ({"A": 3 * 50 * 8}, {"Y": 3 * 8})
    # What it begins with comes from elsewhere: that is read, and nothing of what it makes itself.
    given_ = parse_cascade(
        format_cascade(cascade).replace("S[p, 0] = 0", "input B[3] fp64\nC[p] = sum(q) D[q, p]\nS[p, 0] = C[p]")
        .replace("input A", "ranks q=9\ninput D[9, 3] fp64\ninput A")
    )  # fmt: skip
    (group,) = [g for g in fuse(given_, 0) if 3 in g.einsums]
    assert 2 in group.einsums
    assert 1 not in group.einsums
    reads, _ = traffic(given_, group)
    assert reads == {"A": 3 * 50 * 8, "S": 3 * 8}


def test_each_step_that_folds_the_rank_is_a_pass_of_its_own() -> None:
    cascade = parse_cascade("""
        ranks i=4, j=4, t=3
        input M[j, i] fp64
        input X0[i] fp64
        output Y
        X[0, i] = X0[i]
        N[t, j] = sum(i) M[j, i] * X[t, i]
        X[t+1, j] = N[t, j] along t
        Y[i] = X[3, i]
    """)
    assert passes(cascade, "i").count == 4  # each needs all of the one before, and so does what the last leaves
    given_ = {"M": torch.rand(4, 4, dtype=torch.float64), "X0": torch.rand(4, dtype=torch.float64)}
    expected = given_["M"] @ given_["M"] @ given_["M"] @ given_["X0"]
    torch.testing.assert_close(execute(cascade, given_).outputs["Y"], expected)
    with pytest.raises(HastenError, match="run without a rank"):
        execute(cascade, given_, "i")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S[i+1] = S[i+1] + A[i] along i", "not written yet: read an earlier step of i"),
        ("S[i] = S[i+1 | 0] + A[i] along i", "not written yet"),
        ("S[i] = A[i]\nS[i] = S[2*i | 0] + A[i] along i", "both must go on by the same number"),
    ],
)
def test_what_no_order_can_run_is_refused(text: str, message: str) -> None:
    cascade = parse_cascade(f"ranks i=4\ninput A[i] fp64\noutput S\n{text}")
    with pytest.raises(HastenError, match=message):
        execute(cascade, {"A": torch.ones(4, dtype=torch.float64)})


def test_a_tensor_read_at_another_speed_runs_whole_only() -> None:
    cascade = parse_cascade("ranks w=8, i=4\ninput X[w] fp64\noutput B\nA[w] = square(X[w])\nB[i] = A[2*i]")
    x = torch.rand(8, dtype=torch.float64)
    torch.testing.assert_close(execute(cascade, {"X": x}).outputs["B"], x[::2] ** 2)
    with pytest.raises(HastenError, match="both must go on by the same number"):
        execute(cascade, {"X": x}, "w")
