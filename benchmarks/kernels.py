"""hasten's kernels beside their peers, in one run: each figure is the least time of several, in turn.

    python benchmarks/kernels.py [--json] [--threads 2]

Peers: mambapy's parallel scan (`pip install hasten[bench]`), transformers' plain Mamba path, torch's own operators, the
naive rational kernel of KAT, gathers for deformable convolution, and for the forward scan the limit that this machine's
multipliers (measured here) and memory bandwidth (probed) set.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.hardware import probe
from hasten.kernels import deform_conv, native
from hasten.kernels.associative_scan import associative_scan
from hasten.kernels.expert_ffn import expert_ffn
from hasten.kernels.rational import naive_backward, reference
from hasten.kernels.selective_scan import selective_scan
from hasten.kernels.ternary_linear import pack, quantize, ternary_linear
from rows import Row, compared, emit, takes_required, told_missing

PEERS = {"mambapy": "pip install 'hasten[bench]' adds it"}
"""What may be missing, and what helps."""

# Instructions of the forward scan that need a multiplier, for each (step, channel, state): delta A, five of the
# exponential's polynomial, the input's product, and one multiply-add each for the state and the output. What else the
# exponential takes (clamping, rounding, scaling) may run beside them and is not in the limit.
SCAN_MULTIPLIES = 1 + 5 + 1 + 1 + 1


def timed(calls: Sequence[Callable[[], object]], rounds: int = 5) -> list[float]:
    """Least seconds of each, taken in turn so that a slow moment meets all; the first round does not count."""
    best = [float("inf")] * len(calls)
    for attempt in range(rounds + 1):
        for i, call in enumerate(calls):
            begun = time.perf_counter()
            call()
            if attempt:
                best[i] = min(best[i], time.perf_counter() - begun)
    return best


def _ours_again(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Two rounds of all, which take seconds, and more of the first, which takes milliseconds."""
    seconds = timed(calls, 2)
    return [min(seconds[0], *timed(calls[:1], 15)), *seconds[1:]]


def against(case: str, names: Sequence[str], seconds: Sequence[float]) -> list[Row]:
    """Rows of one case, whose first name is hasten's: its own beside each peer, then the peers'."""
    peers = list(zip(names[1:], seconds[1:]))
    rows = [compared(case, names[0], seconds[0], "s", name, s) for name, s in peers]
    return rows + [Row(case, name, s, "s") for name, s in peers]


def scans(threads: int) -> list[Row]:
    length, channels, states = 2048, 512, 16
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    x, delta = normal(1, length, channels), F.softplus(normal(1, length, channels) - 2)
    A = -torch.arange(1, states + 1).float().expand(channels, -1).contiguous()
    B, C, D = normal(1, length, states), normal(1, length, states), normal(channels)
    leaves = [t.requires_grad_() for t in (x, delta, A, B, C, D)]

    def plain(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        """What transformers runs without mamba-ssm: the expanded tensors, then a step at a time.

        Its steps are taken apart by unbind here: indexed one by one, as there, the backward takes minutes.
        """
        decay = torch.exp(A[None, None] * delta[..., None]).unbind(1)
        fed = (delta[..., None] * B[:, :, None] * x[..., None]).unbind(1)
        h, outputs = x.new_zeros(1, channels, states), []
        for now, drive, read in zip(decay, fed, C.unbind(1)):
            h = now * h + drive
            outputs.append((h * read[:, None]).sum(-1))
        return torch.stack(outputs, 1) + D * x

    peers: list[tuple[str, Callable[..., Tensor]]] = [("hasten", lambda *t: selective_scan(*t)[0])]
    if importlib.util.find_spec("mambapy"):
        from mambapy.pscan import pscan

        def parallel(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
            fed = delta[..., None] * B[:, :, None] * x[..., None]
            h = pscan(torch.exp(delta[..., None] * A), fed)
            return (h @ C[..., None])[..., 0] + D * x

        peers.append(("mambapy", parallel))
    peers.append(("transformers-slow", plain))
    names = [name for name, _ in peers]
    outputs = [call(*leaves).detach() for _, call in peers]
    for name, other in zip(names[1:], outputs[1:]):
        torch.testing.assert_close(outputs[0], other, rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")

    def forward(call: Callable[..., Tensor]) -> Callable[[], object]:
        def run() -> None:
            with torch.no_grad():
                call(*leaves)

        return run

    both = [lambda c=call: torch.autograd.grad(c(*leaves).sum(), leaves) for _, call in peers]
    rows = against("selective_scan forward + backward, L 2048, d 512, N 16", names, _ours_again(both))
    only = _ours_again([forward(call) for _, call in peers])
    ours = only[0]
    rows += against("selective_scan forward", names, only)
    module = native()
    if module is not None:
        computing = length * channels * states / 16 * SCAN_MULTIPLIES / module.vector_rate(threads)
        moving = 4 * (3 * length * channels + 2 * length * states) / probe().main_memory.bandwidth
        limit = max(computing, moving)
        rows.append(compared("selective_scan forward", "hasten", ours, "s", "limit", limit))
        rows.append(Row("selective_scan forward", "limit", limit, "s"))
    return rows


def recurrences() -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(8, 1024, 256, generator=generator, requires_grad=True)
    a = torch.rand(256, generator=generator).mul(0.9).requires_grad_()
    gru = torch.nn.GRU(128, 128, batch_first=True)
    x = torch.randn(8, 1024, 128, generator=generator)
    calls = [
        lambda: torch.autograd.grad(associative_scan(a, b, complex=True)[0].sum(), [a, b]),
        lambda: gru(x)[0].sum().backward(),
    ]
    return against("associative_scan forward + backward, 8 x 1024, 128 complex", ["hasten", "nn.GRU 128"], timed(calls))


def rationals() -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.randn(2, 16 * 197, 768, generator=generator)
    a = torch.tensor([[3.05488e-7, 0.50000079, 0.24999783, 0.05326628, 0.00580303, 0.00027520]])
    b = torch.tensor([[-4.11156e-6, 0.10652899, -1.26900e-6, 0.00055023]]).repeat(8, 1)
    leaves = [t.clone().requires_grad_() for t in (x, a, b)]
    value = reference(leaves[0], leaves[1], leaves[2], 8)
    calls = [
        lambda: torch.ops.hasten.rational_backward(grad, x, a, b, 8),
        lambda: torch.autograd.grad(value, leaves, grad, retain_graph=True),
        lambda: torch.ops.aten.gelu_backward(grad, x),
    ]
    names = ["hasten", "autograd", "GELU backward"]
    if native() is not None:
        calls.insert(1, lambda: naive_backward(grad, x, a, b, 8))
        names.insert(1, "naive kernel")
    return against("rational backward, 3152 x 768, 8 groups", names, timed(calls, 4))


def ternaries() -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-1, 2, (8192, 2048), generator=generator)
    packed, half = pack(weight), weight.bfloat16()
    x = torch.randn(1, 2048, generator=generator)
    low = x.bfloat16()
    calls = [lambda: ternary_linear(quantize(x)[0], packed), lambda: F.linear(low, half)]
    case = "ternary_linear, one row, 2048 x 8192"
    rows = against(f"{case}, quantization included", ["hasten", "torch bf16"], timed(calls, 30))
    return [
        *rows,
        compared(f"{case}: weight", "hasten", packed.nbytes, "B", "torch bf16", half.nbytes),
        Row(f"{case}: weight", "torch bf16", half.nbytes, "B"),
    ]


def experts() -> list[Row]:
    width, count, each = 1024, 64, 64
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(2, count * each, width, generator=generator) / 32
    columns = down.T.contiguous()
    rows = []
    for tokens, share in ((1, 0.2), (8, 0.3)):
        used = torch.randperm(count, generator=generator)[: round(share * count)]
        scores = torch.zeros(tokens, count)
        scores[:, used] = torch.rand(tokens, len(used), generator=generator) + 0.1
        x = torch.randn(tokens, width, generator=generator)

        def dense(x: Tensor = x, scores: Tensor = scores) -> Tensor:
            return F.linear(F.silu(F.linear(x, up)) * scores.repeat_interleave(each, -1), columns)

        seconds = timed([lambda x=x, s=scores: expert_ffn(x, s, up, down), dense], 20)
        case = f"expert_ffn, {tokens} token{'s' * (tokens > 1)}, {1 - share:.0%} of the experts unused"
        rows += against(case, ["hasten", "torch dense"], seconds)
    return rows


def deformables() -> list[Row]:
    """The gathers of the reference, and a gather a tap, which keeps less at once."""
    generator = torch.Generator().manual_seed(0)
    x, offset = torch.randn(1, 128, 64, 64, generator=generator), torch.randn(1, 18, 64, 64, generator=generator)
    rows = []
    for depthwise in (False, True):
        weight = torch.randn(128, 1 if depthwise else 128, 3, 3, generator=generator)

        def by_tap(weight: Tensor = weight, depthwise: bool = depthwise) -> Tensor:
            total = x.new_zeros(())
            for tap in range(9):
                step = torch.tensor([tap // 3 - 1.0, tap % 3 - 1.0])[:, None, None]
                part = weight[..., tap // 3, tap % 3][..., None, None]
                total = total + deform_conv.reference(x, offset[:, 2 * tap : 2 * tap + 2] + step, part, depthwise)
            return total

        calls = [
            lambda w=weight, d=depthwise: deform_conv.deform_conv2d(x, offset, w, d),
            by_tap,
            lambda w=weight, d=depthwise: deform_conv.reference(x, offset, w, d),
        ]
        for other in calls[1:]:
            torch.testing.assert_close(calls[0](), other(), rtol=1e-3, atol=1e-3)
        case = f"deform_conv2d forward, 128 channels of 64 x 64, {'depthwise' if depthwise else 'dense'}"
        rows += against(case, ["hasten", "gather a tap", "plain gather"], timed(calls, 4))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON on stdout")
    parser.add_argument("--threads", type=int, default=2, help="threads of every subject")
    takes_required(parser, PEERS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [*scans(options.threads), *recurrences(), *rationals(), *ternaries(), *experts(), *deformables()]
    emit(rows, options.json)
    return told_missing(rows, PEERS, options.require)


if __name__ == "__main__":
    sys.exit(main())
