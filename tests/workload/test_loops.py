"""Loops of traced modules compute what the modules compute, whatever views, windows and masks are between."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hasten.errors import HastenError
from hasten.workload.einsum import Op, Role
from hasten.workload.loop_execution import run_loops
from hasten.workload.loops import loop_program, lower, weight_source
from hasten.workload.tracing import trace_cascade


class Of(nn.Module):
    """A function as a module, with two weights."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight, self.bias = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(6))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(self, *inputs)


def heads(self: nn.Module, x: torch.Tensor, causal: bool = True) -> torch.Tensor:
    q, k, v = (t.view(2, 5, 2, 4).transpose(1, 2) for t in (x, x * 2, x - 1))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).reshape(2, 5, 8)


def rotated(self: nn.Module, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    heads = x.view(2, 5, 2, 4).transpose(1, 2)
    turned = torch.cat([-heads[..., 2:], heads[..., :2]], -1)
    return (heads * cos + turned * sin).transpose(1, 2).reshape(2, 5, 8)


class Decoder(nn.Module):
    """A layer as Llama's: RMS norms, rotary positions, grouped heads, a gated feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(8) for _ in range(2))
        self.q, self.k, self.v, self.o = (nn.Linear(8, n, bias=False) for n in (8, 4, 4, 8))
        self.gate, self.up, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        y = self.norms[0](x)
        q, k, v = (p(y).view(2, 5, -1, 4).transpose(1, 2) for p in (self.q, self.k, self.v))
        q, k = (t * cos + torch.cat([-t[..., 2:], t[..., :2]], -1) * sin for t in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(2, 5, 8))
        y = self.norms[1](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def halves(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    both = x + 1
    return both[..., :4] * both[..., 4:]


X = (2, 5, 8)
POINTWISE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu, "gelu": F.gelu, "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu,
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "hardsigmoid": F.hardsigmoid, "relu6": F.relu6, "exp": torch.exp,
    "leaky": F.leaky_relu, "abs": torch.abs, "square": lambda x: x**2, "cube": lambda x: x**3,
    "root": lambda x: (x.abs() + 1).sqrt(), "power": lambda x: (x.abs() + 1) ** 1.5,
    "rsqrt": lambda x: (x.abs() + 1).rsqrt(), "log": lambda x: (x.abs() + 1).log(), "clamp": lambda x: x.clamp(-0.5, 1),
    "scalars": lambda x: 2 * x - 1 + (1 - x) / 4, "alpha": lambda x: torch.add(x, x, alpha=3),
    "largest": lambda x: torch.maximum(x, -x),
    "in place": lambda x: x.mul(2).relu_().add_(1),
}  # fmt: skip
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    **{
        name: (lambda f=f: Of(lambda self, x: f(F.linear(x, self.weight, self.bias))), (X,))  # type: ignore[misc]
        for name, f in POINTWISE.items()
    },
    "linear without bias": (lambda: Of(lambda self, x: F.linear(x, self.weight)), (X,)),
    "softmax": (lambda: Of(lambda self, x: x.softmax(1)), (X,)),
    "log softmax": (lambda: Of(lambda self, x: x.log_softmax(-1)), (X,)),
    "mean and most": (lambda: Of(lambda self, x: x.mean(1, keepdim=True) + x.amax(-1, keepdim=True)), (X,)),
    "layer norm": (lambda: nn.LayerNorm(8), (X,)),
    "layer norm of two": (lambda: nn.LayerNorm((5, 8), bias=False), (X,)),
    "rms norm": (lambda: nn.RMSNorm(8), (X,)),
    "group norm": (lambda: nn.GroupNorm(2, 6), ((2, 6, 3, 4),)),
    "batch norm": (lambda: nn.BatchNorm2d(3).eval(), ((2, 3, 4, 4),)),
    "convolution": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), ((2, 3, 7, 6),)),
    "groups and dilation": (lambda: nn.Conv2d(4, 6, (3, 2), padding=(2, 0), dilation=2, groups=2), ((1, 4, 8, 9),)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), ((1, 4, 5, 5),)),
    "convolution of one": (lambda: nn.Conv1d(3, 4, 3, padding=1), ((2, 3, 7),)),
    "pointwise convolution": (lambda: nn.Conv2d(3, 4, 1), ((1, 3, 4, 4),)),
    "largest of windows": (lambda: nn.MaxPool2d(3, stride=2, padding=1), ((1, 3, 7, 7),)),
    "mean of windows": (lambda: nn.AvgPool2d(2), ((1, 3, 6, 6),)),
    "mean of all": (lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), ((2, 3, 4, 6),)),
    "mean of parts": (lambda: nn.AdaptiveAvgPool2d((2, 3)), ((2, 3, 4, 6),)),
    "flattened": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5)), ((2, 1, 6, 6),)
    ),
    "attention, causal": (lambda: Of(heads), (X,)),
    "attention": (lambda: Of(lambda self, x: heads(self, x, causal=False)), (X,)),
    "grouped heads": (
        lambda: Of(lambda self, q, k: F.scaled_dot_product_attention(q, k, k + 1, enable_gqa=True, scale=0.3)),
        ((1, 4, 3, 5), (1, 2, 6, 5)),
    ),
    "attention with a mask": (
        lambda: Of(lambda self, q, mask: F.scaled_dot_product_attention(q, q, q, attn_mask=mask)),
        ((1, 2, 3, 5), (3, 3)),
    ),
    "parts of one product": (lambda: Of(halves), (X,)),
    "transposed and joined": (lambda: Of(lambda self, x: F.linear(x.transpose(1, 2).reshape(2, 40), self.big)), (X,)),
    "encoder": (
        lambda: nn.TransformerEncoderLayer(8, 2, 12, 0.0, F.gelu, batch_first=True, norm_first=True).eval(), (X,)
    ),
    "encoder, normalised after": (lambda: nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True).eval(), (X,)),
    "joined": (lambda: Of(lambda self, x: torch.cat([x, 2 * x[:, 1:3], x.exp()], 1)), (X,)),
    "parts traded": (lambda: Of(lambda self, x: torch.cat([x[..., 4:], x[..., :4]], -1) * 2), (X,)),
    "rotary positions": (lambda: Of(rotated), (X, (5, 4), (5, 4))),
    "decoder": (Decoder, (X, (5, 4), (5, 4))),
    "read twice": (lambda: Of(lambda self, x: F.linear(x, self.weight).sum(-1, keepdim=True) * x), (X,)),
    "two inputs": (lambda: Of(lambda self, x, y: torch.bmm(x, y.transpose(1, 2))), (X, (2, 3, 8))),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_loops_compute_what_the_module_computes(name: str) -> None:
    torch.manual_seed(0)
    make, shapes = CASES[name]
    module = make()
    if name == "transposed and joined":
        module.big = nn.Parameter(torch.randn(3, 40))
    if name == "batch norm":
        module.running_mean.normal_()
        module.running_var.uniform_(0.5, 2)
    inputs = [torch.randn(s) for s in shapes]
    program = loop_program(module, *inputs)
    (found,) = run_loops(program, module, *inputs)
    with torch.no_grad():
        expected = module(*inputs)
    assert found.shape == expected.shape
    assert torch.allclose(found.float(), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_a_program_is_fit_for_dataflow(name: str) -> None:
    make, shapes = CASES[name]
    module = make()
    if name == "transposed and joined":
        module.big = nn.Parameter(torch.randn(3, 40))
    program = loop_program(module, *(torch.randn(s) for s in shapes))
    made: set[str] = set()
    for stage in program.stages:
        assert all(u.array in made or program.writer(u.array) is None for u in stage.reads), "made before it is read"
        made.update(u.array for u in stage.writes)
    for array in program.arrays:
        readers = program.readers(array)
        assert len(readers) + (array in program.outputs) == 1, "one reader each"
    assert len({s.name for s in program.stages}) == len(program.stages)


def test_points_are_those_of_the_einsums() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
    x = torch.randn(1, 3, 8, 8)
    program = loop_program(net, x)
    assert 2 * program.macs == trace_cascade(net, (x,)).cascade.flops
    assert [s.op for s in program.stages] == [Op.CONV, Op.MATMUL], "the activation is done where its input is made"


def test_no_subscript_divides_and_a_weight_has_the_dimensions_of_its_ranks() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(48, 5))
    program = loop_program(net, torch.randn(1, 1, 6, 6))
    dense = program.stages[-1]
    assert dict(dense.loops) == {"n": 5, "khh": 3, "khl": 4, "kl": 4}
    assert program.arrays["2.weight"].shape == (5, 3, 4, 4)
    assert program.arrays["2.weight"].role is Role.WEIGHT


def test_large_functions_are_not_done_where_sums_are_made() -> None:
    x = torch.randn(4, 8)
    assert len(loop_program(nn.Sequential(nn.Linear(8, 6), nn.ReLU()), x).stages) == 1
    assert len(loop_program(nn.Sequential(nn.Linear(8, 6), nn.GELU()), x).stages) == 2


def test_a_copy_of_a_weight_knows_its_source() -> None:
    module = Of(lambda self, x: F.linear(F.linear(x, self.weight), self.weight.t()))
    program = loop_program(module, torch.randn(3, 8))
    copies = [n for n in program.weights if weight_source(n, ["weight", "bias"]) == "weight"]
    assert len(copies) == 2


@pytest.mark.parametrize(
    ("make", "shapes", "why"),
    [
        (lambda: nn.Embedding(4, 3), ((2,),), "embedding"),
        (lambda: Of(lambda self, x: torch.cumsum(x, 1)), (X,), "cumsum"),
        (lambda: nn.ConvTranspose2d(2, 3, 3), ((1, 2, 4, 4),), "no plain product"),
        (lambda: Of(lambda self, x: x), (X,), "nothing is to compute"),
        (lambda: nn.AdaptiveAvgPool2d(3), ((1, 2, 4, 4),), "not equal"),
    ],
)
def test_what_loops_cannot_say_is_refused_in_one_line(
    make: Callable[[], nn.Module], shapes: tuple[tuple[int, ...], ...], why: str
) -> None:
    module = make()
    inputs = [torch.randn(s) if why != "embedding" else torch.zeros(s, dtype=torch.long) for s in shapes]
    with pytest.raises(HastenError, match=why) as told:
        loop_program(module, *inputs)
    assert "\n" not in str(told.value)


def test_a_cascade_that_does_not_say_what_it_returns_is_refused() -> None:
    cascade = trace_cascade(nn.Linear(8, 6), (torch.randn(3, 8),)).cascade
    assert lower(cascade).outputs == tuple(a.tensor for a in cascade.results)
    with pytest.raises(HastenError, match="nothing is to compute"):
        lower(cascade.canonical())
