"""Networks for images tuned by hasten, beside eager torch, torch.compile, ONNX Runtime and OpenVINO, in one run.

    python benchmarks/vision.py [--json] [--threads 2] [--batch 1 --batch 8] [--network resnet50] [--budget 60]

Each network is tuned within the budget; what came of it and every peer then have their turns, round after round: a
few calls that let the threads of the one before come to rest, and a few that count. Each figure is the least time of a
call. A network that was tuned into just what a peer is is timed once, as both. ResNet-50, MobileNetV3-Large and ViT-S
are of their published shapes, here or by timm where that is installed; LowFormer-B1 is hasten's. All weights are
random, so that a tuned network is held to the unchanged one's answers (3 % of their size); a second row of a case
leaves out the peers that are further off. int8 of ONNX Runtime is by its own static quantization on the same
examples. Peers compile and export before anything is timed; torch keeps what it compiled for the next run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hasten
from hasten.cost.measuring import alternating
from hasten.errors import HastenError
from hasten.methods import Compiled, Method, OnnxRuntime, OpenVino, apply_all, from_dict
from hasten.models import named
from hasten.runtime.network import Network, difference, make_network
from rows import Row, compared, emit, takes_required, told_missing

PEERS = {
    "onnxruntime": "pip install 'hasten[onnxruntime]' adds it",
    "openvino": "pip install 'hasten[openvino]' adds it",
    "torch.compile": "it needs a C++ compiler, such as g++",
}
"""What may be missing, and what helps."""

# Seconds that all rounds of a case may take, and how many there are at most and at least; of each turn the calls that
# count, and those before them.
SECONDS, MOST, LEAST, COUNTED, SETTLING = 12.0, 60, 3, 3, 2
# By what share of their size a tuned network's answers may differ.
FLOOR = 0.03


class _Bottleneck(nn.Module):
    def __init__(self, incoming: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.branch = nn.Sequential(
            *_conv(incoming, width, 1), nn.ReLU(), *_conv(width, width, 3, stride), nn.ReLU(), *_conv(width, out, 1)
        )
        same = incoming == out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv(incoming, out, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


def _conv(incoming: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(incoming, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out)]


def resnet50(batch: int = 1) -> tuple[nn.Module, Tensor]:
    """ResNet-50 (arXiv 1512.03385, table 1), strides in the 3x3 convolutions: 25,557,032 parameters."""
    layers: list[nn.Module] = [*_conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    incoming = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for block in range(blocks):
            layers.append(_Bottleneck(incoming, width, 2 if stage and not block else 1))
            incoming = 4 * width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(incoming, 1000)]
    return _started(nn.Sequential(*layers, *head)), torch.randn(batch, 3, 224, 224)


class _Gate(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, channels, 1),
            nn.Hardsigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


def _eights(channels: int) -> int:
    """The nearest multiple of eight that is no less than nine tenths."""
    near = (channels + 4) // 8 * 8
    return near if near >= 0.9 * channels else near + 8


class _Inverted(nn.Module):
    def __init__(self, incoming: int, kernel: int, wide: int, out: int, gated: bool, hard: bool, stride: int) -> None:
        super().__init__()
        act = nn.Hardswish if hard else nn.ReLU
        layers = [*_conv(incoming, wide, 1), act()] if wide != incoming else []
        layers += [*_conv(wide, wide, kernel, stride, wide), act()]
        if gated:
            layers.append(_Gate(wide, _eights(wide // 4)))
        self.branch = nn.Sequential(*layers, *_conv(wide, out, 1))
        self.residual = stride == 1 and incoming == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.residual else self.branch(x)


# Kernel, expanded channels, channels, gate, hard swish, stride of each block (arXiv 1905.02244, table 1).
_MOBILE = (
    (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1),
    (5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1),
    (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1), (5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1),
    (5, 960, 160, 1, 1, 1),
)  # fmt: skip


def mobilenetv3(batch: int = 1) -> tuple[nn.Module, Tensor]:
    """MobileNetV3-Large (arXiv 1905.02244, table 1): 5,483,032 parameters."""
    layers: list[nn.Module] = [*_conv(3, 16, 3, 2), nn.Hardswish()]
    incoming = 16
    for kernel, wide, out, gated, hard, stride in _MOBILE:
        layers.append(_Inverted(incoming, kernel, wide, out, bool(gated), bool(hard), stride))
        incoming = out
    head = [
        *_conv(incoming, 960, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(960, 1280),
        nn.Hardswish(), nn.Linear(1280, 1000),
    ]  # fmt: skip
    return _started(nn.Sequential(*layers, *head)), torch.randn(batch, 3, 224, 224)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _ViT(nn.Module):
    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 197, width) * 0.02)
        self.blocks = nn.Sequential(*(_Layer(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit_small(batch: int = 1) -> tuple[nn.Module, Tensor]:
    """ViT-S/16 (arXiv 2106.10270, table 1): 22,050,664 parameters."""
    return _ViT(384, 12, 6).eval(), torch.randn(batch, 3, 224, 224)


def lowformer_b1(batch: int = 1) -> tuple[nn.Module, Tensor]:
    """LowFormer-B1, hasten's."""
    made = named.build("lowformer-b1", device="cpu", dtype=torch.float32)
    return _started(made), torch.randn(batch, 3, 224, 224)


def _started(network: nn.Module) -> nn.Module:
    """With running statistics of normalizations that are not all the same, as a trained network has them."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return network.eval()


NETWORKS: dict[str, tuple[Callable[..., tuple[nn.Module, Tensor]], str]] = {
    "resnet50": (resnet50, "resnet50"),
    "mobilenetv3": (mobilenetv3, "mobilenetv3_large_100"),
    "lowformer_b1": (lowformer_b1, ""),
    "vit_small": (vit_small, "vit_small_patch16_224"),
}
"""What is run, and timm's name for it."""


def source_of(name: str) -> str:
    """What hasten is told to tune: timm's network where timm can be imported, or the function of this file."""
    build, theirs = NETWORKS[name]
    try:
        import timm
    except ImportError:
        theirs = ""
    if theirs and timm.is_model(theirs):
        return theirs
    return f"{Path(__file__).resolve()}:{build.__name__}"


ARMS: dict[str, Sequence[Method]] = {
    "torch eager": (),
    "torch.compile": (Compiled(),),
    "onnxruntime": (OnnxRuntime(),),
    "onnxruntime-int8": (OnnxRuntime(True),),
    "openvino": (OpenVino(),),
    "openvino-bf16": (OpenVino("bf16"),),
}
"""Each peer, as methods."""


def peers_of(network: Network) -> dict[str, Network]:
    """The network as each peer runs it."""
    found = {}
    for name, methods in ARMS.items():
        began = time.perf_counter()
        try:
            found[name] = apply_all(network.twin(), methods)
        except HastenError as error:
            print(f"{name} left out: {error}", file=sys.stderr)
        else:
            print(f"{name} ready after {time.perf_counter() - began:.1f} s", file=sys.stderr)
    return found


def tuned(source: str, batch: int, budget: float) -> tuple[Sequence[Method], str]:
    """What `hasten tune` makes of the network, as methods and in words."""
    result = hasten.tune(source, hasten.Settings(seconds=budget, batch=batch, batch_given=batch, floor=FLOOR))
    best = result.best
    assert best is not None
    return tuple(from_dict(m) for m in best.methods), best.title


def rows_of(name: str, batch: int, budget: float) -> list[Row]:
    """One network at one batch: hasten's beside each peer, then the peers'."""
    source = source_of(name)
    began = time.perf_counter()
    methods, title = tuned(source, batch, budget)
    print(f"{name}, batch {batch}: {title}, tuned in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    plain = make_network(source, batch).network
    peers = peers_of(plain)
    same = next((peer for peer in peers if tuple(ARMS[peer]) == methods), "")
    if same:  # one program timed twice would be told apart by chance
        print(f"{name}, batch {batch}: hasten is what {same} is, and timed with it", file=sys.stderr)
        subjects = peers
    else:
        subjects = {"hasten": apply_all(make_network(source, batch).network, methods), **peers}
    apart = {subject: difference(plain.answers(), network.answers()) for subject, network in subjects.items()}
    for subject, share in apart.items():
        print(f"{subject}: answers differ by {share:.2%} of their size", file=sys.stderr)

    def call(network: Network) -> Callable[[], object]:
        def run() -> Any:
            with torch.no_grad():
                return network(*network.inputs.args)

        return run

    calls = {subject: call(network) for subject, network in subjects.items()}
    once = sum(min(times) for times in alternating(calls, 1, settling=1).values())
    rounds = max(LEAST, min(MOST, int(SECONDS / once / (COUNTED + SETTLING))))
    seen = alternating(calls, rounds, counted=COUNTED, settling=SETTLING)
    seconds = {subject: min(times) for subject, times in seen.items()}
    case = f"{name}, batch {batch}"
    mine = seconds[same] if same else seconds.pop("hasten")
    rows = [compared(case, "hasten", mine, "s", peer, its) for peer, its in seconds.items()]
    rows += [Row(case, peer, its, "s") for peer, its in seconds.items()]
    exact = [s for s in seconds if apart[s] <= FLOOR]
    for which, among in (("best peer", list(seconds)), ("best peer within the floor", exact)):
        best = min((s for s in among if s != "torch eager"), key=lambda s: seconds[s], default="torch eager")
        rows.append(compared(f"{case}, beside the {which} ({best})", "hasten", mine, "s", best, seconds[best]))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON on stdout")
    parser.add_argument("--threads", type=int, default=2, help="threads of every subject")
    parser.add_argument("--network", action="append", choices=list(NETWORKS), help="repeatable; all when missing")
    parser.add_argument("--batch", action="append", type=int, help="repeatable; 1 and 8 when missing")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of tuning a network (default 60)")
    takes_required(parser, PEERS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    for name in options.network or NETWORKS:
        for batch in options.batch or (1, 8):
            rows += rows_of(name, batch, options.budget)
    emit(rows, options.json)
    return told_missing(rows, PEERS, options.require)


if __name__ == "__main__":
    sys.exit(main())
