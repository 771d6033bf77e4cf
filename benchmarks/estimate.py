"""Predicted against measured latency on this machine, for models that calibrated nothing.

The device is the probe's, which measures bandwidths, single operators and their shapes, never a model. Also how long
it takes to trace and estimate a large model's configuration.

    python benchmarks/estimate.py [--json] [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from rows import Row, emit
from torch import Tensor, nn

from hasten.cost import estimate, measure
from hasten.hardware import load_device, probe
from hasten.workload import trace


class Residual(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer),
        )  # fmt: skip
        self.skip = nn.Sequential() if stride == 1 and inner == outer else nn.Conv2d(inner, outer, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def resnet18() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inner = 64
    for outer, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Residual(inner, outer, stride), Residual(outer, outer, 1)]
        inner = outer
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


class Inverted(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inner * expand
        self.body = nn.Sequential(
            nn.Conv2d(inner, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, outer, 1, bias=False), nn.BatchNorm2d(outer),
        )  # fmt: skip
        self.add = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.add else self.body(x)


def mobilenet_v2() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
    inner = 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, outer, repeats, stride in stages:
        for i in range(repeats):
            layers.append(Inverted(inner, outer, stride if i == 0 else 1, expand))
            inner = outer
    return nn.Sequential(*layers, nn.Conv2d(320, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


def vgg11() -> nn.Module:
    layers: list[nn.Module] = []
    inner = 3
    for outer in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"):
        if isinstance(outer, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.ReLU()]
            inner = outer
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Linear(4096, 1000))


def mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b), nn.GELU()]
    return nn.Sequential(*layers)


class Scan(nn.Module):
    """A diagonal linear recurrence over time, step by step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.rand(width))
        self.into, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        state, states = torch.zeros_like(x[0]), []
        for step in x:
            state = self.decay * state + step
            states.append(state)
        return self.out(torch.stack(states))


def language_model(kind: str, hidden: int, layers: int, inner: int, vocabulary: int = 16000, heads: int = 8) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        hidden_size=hidden, num_hidden_layers=layers, intermediate_size=inner, vocab_size=vocabulary,
        num_attention_heads=heads, num_key_value_heads=heads // 2, head_dim=hidden // heads,
    )  # fmt: skip
    network = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")

    class Prompt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, ids: Tensor) -> Tensor:
            return self.network(ids, use_cache=False, logits_to_keep=1).logits

    return Prompt()


def ids(length: int, batch: int = 1) -> Tensor:
    return torch.randint(0, 16000, (batch, length))


def image(batch: int = 1, side: int = 224) -> Tensor:
    return torch.randn(batch, 3, side, side)


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "llama 35M, prompt 256": lambda: (language_model("Llama", 512, 8, 1536), (ids(256),)),
    "llama 35M, one token": lambda: (language_model("Llama", 512, 8, 1536), (ids(1),)),
    "qwen3 80M, prompt 128": lambda: (language_model("Qwen3", 768, 10, 2048), (ids(128),)),
    "qwen2 15M, batch 4 of 64": lambda: (language_model("Qwen2", 256, 6, 1024), (ids(64, 4),)),
    "mistral 160M, one token": lambda: (language_model("Mistral", 1024, 12, 2816), (ids(1),)),
    "resnet-18, 1 image": lambda: (resnet18(), (image(),)),
    "resnet-18, 4 images": lambda: (resnet18(), (image(4),)),
    "mobilenet-v2, 1 image": lambda: (mobilenet_v2(), (image(),)),
    "mobilenet-v2, 128 pixels": lambda: (mobilenet_v2(), (image(1, 128),)),
    "vgg-11, 1 image": lambda: (vgg11(), (image(),)),
    "mlp 784-1024-1024-10, 256 rows": lambda: (mlp(784, 1024, 1024, 10), (torch.randn(256, 784),)),
    "mlp 64-256-256-8, 16 rows": lambda: (mlp(64, 256, 256, 8), (torch.randn(16, 64),)),
    "mlp 4096-4096-4096, 1 row": lambda: (mlp(4096, 4096, 4096), (torch.randn(1, 4096),)),
    "gru 256, 100 steps of 8": lambda: (nn.GRU(128, 256), (torch.randn(100, 8, 128),)),
    "scan 256, 400 steps of 8": lambda: (Scan(256), (torch.randn(400, 8, 256),)),
    "encoder 256 x 4, 196 tokens": lambda: (
        nn.Sequential(*(nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True, dropout=0.0) for _ in range(4))).train(),
        (torch.randn(1, 196, 256),),
    ),
}


def ranks(values: list[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [0.0] * len(values)
    for rank, index in enumerate(order):
        found[index] = float(rank)
    return found


def large_models() -> dict[str, Callable[[], object]]:
    import transformers

    def seven() -> object:
        return transformers.LlamaConfig(
            hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
        )

    def longcat() -> object:
        config = transformers.LongcatFlashConfig()
        return config

    return {"7B (Llama-2-7B sizes)": seven, "560B (LongCat-Flash)": longcat}


def time_large(rows: list[Row]) -> None:
    from hasten.models.loading import build

    device = load_device("h100")
    for name, make in large_models().items():
        config = make()
        started = time.perf_counter()
        network = build(config)
        workload = trace(network, torch.zeros(1, 128, dtype=torch.int64), use_cache=False, logits_to_keep=1)
        cost = estimate(workload, device)
        seconds = time.perf_counter() - started
        parameters = sum(p.numel() for p in network.parameters())
        print(f"{name}: {parameters / 1e9:.1f} billion parameters, {cost.latency:.3f} s on H100", file=sys.stderr)
        rows.append(Row(f"trace and estimate, {name}", "hasten", seconds, "s", "limit of 5 s", 5 / seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = probe(refresh=True, progress=lambda message, share: print(f"probe: {message}", file=sys.stderr))
    rows: list[Row] = []
    predicted, measured = [], []
    for name, make in MODELS.items():
        module, inputs = make()
        if not name.startswith("encoder"):
            module.eval()
        guess = estimate(trace(module, *inputs), device).latency
        seen = measure(module, *inputs, runs=30, seconds=1.5).phases["forward"].median
        predicted.append(guess)
        measured.append(seen)
        print(f"{name}: predicted {guess * 1e3:.2f} ms, measured {seen * 1e3:.2f} ms", file=sys.stderr)
        rows.append(Row(name, "predicted", guess * 1e3, "ms", "measured", guess / seen))
    errors = [abs(p / m - 1) for p, m in zip(predicted, measured, strict=True)]
    spearman = statistics.correlation(ranks(predicted), ranks(measured))
    rows.append(Row(f"median relative error of {len(errors)} models", "hasten", statistics.median(errors), "share"))
    rows.append(Row(f"Spearman correlation of {len(errors)} models", "hasten", spearman, "rho"))
    time_large(rows)
    emit(rows, arguments.json)


if __name__ == "__main__":
    main()
