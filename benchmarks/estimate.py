"""Predicted against measured latency on this machine, for models that calibrated nothing.

The device is the probe's, which measures bandwidths, single operators and their shapes, never a model. Also how long
it takes to trace and estimate a large model's configuration.

    python benchmarks/estimate.py [--json] [--threads 2]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hasten.cost import estimate, measure
from hasten.hardware import load_device, probe
from hasten.workload import trace
from rows import Row, compared, emit


class Residual(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer),
        )  # fmt: skip
        self.skip = (
            nn.Sequential() if stride == 1 and inner == outer else nn.Conv2d(inner, outer, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def resnet18() -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
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
    return nn.Sequential(
        *layers, nn.Conv2d(320, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)
    )


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
    for a, b in itertools.pairwise(widths):
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


class Prompt(nn.Module):
    """The last token's logits of a prompt, without a cache."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor) -> Tensor:
        return self.network(ids, use_cache=False, logits_to_keep=1).logits


class Step(nn.Module):
    """One token after ``length`` cached positions, with transformers' own growing cache."""

    def __init__(self, network: nn.Module, length: int) -> None:
        super().__init__()
        self.network = network
        config = network.config
        shape = (1, config.num_key_value_heads, length, config.head_dim)
        self.layers = config.num_hidden_layers
        self.register_buffer("keys", torch.randn(self.layers, *shape))
        self.register_buffer("values", torch.randn(self.layers, *shape))

    def forward(self, ids: Tensor) -> Tensor:
        import transformers

        cache = transformers.DynamicCache()
        for layer in range(self.layers):
            cache.update(self.keys[layer], self.values[layer], layer)
        return self.network(ids, past_key_values=cache, use_cache=True).logits


def language_model(kind: str, hidden: int, layers: int, inner: int, heads: int = 8) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=inner,
        vocab_size=16000,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=hidden // heads,
    )
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def ids(length: int, batch: int = 1) -> Tensor:
    return torch.randint(0, 16000, (batch, length))


def image(batch: int = 1, side: int = 224) -> Tensor:
    return torch.randn(batch, 3, side, side)


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "llama 35M, prompt 256": lambda: (Prompt(language_model("Llama", 512, 8, 1536)), (ids(256),)),
    "llama 35M, decode after 300": lambda: (Step(language_model("Llama", 512, 8, 1536), 300), (ids(1),)),
    "qwen3 80M, prompt 120": lambda: (Prompt(language_model("Qwen3", 768, 10, 2048)), (ids(120),)),
    "qwen3 80M, decode after 120": lambda: (Step(language_model("Qwen3", 768, 10, 2048), 120), (ids(1),)),
    "qwen2 15M, 4 prompts of 60": lambda: (Prompt(language_model("Qwen2", 320, 6, 1000)), (ids(60, 4),)),
    "mistral 160M, decode after 500": lambda: (
        Step(language_model("Mistral", 1024, 12, 2816), 500),
        (ids(1),),
    ),
    "resnet-18, 1 image": lambda: (resnet18(), (image(),)),
    "resnet-18, 4 images": lambda: (resnet18(), (image(4),)),
    "mobilenet-v2, 1 image": lambda: (mobilenet_v2(), (image(),)),
    "mobilenet-v2, 128 pixels": lambda: (mobilenet_v2(), (image(1, 128),)),
    "vgg-11, 1 image": lambda: (vgg11(), (image(),)),
    "mlp 784-1200-1200-10, 200 rows": lambda: (mlp(784, 1200, 1200, 10), (torch.randn(200, 784),)),
    "mlp 60-250-250-8, 20 rows": lambda: (mlp(60, 250, 250, 8), (torch.randn(20, 60),)),
    "mlp 5000-5000-5000, 1 row": lambda: (mlp(5000, 5000, 5000), (torch.randn(1, 5000),)),
    "lstm 200, 100 steps of 6": lambda: (nn.LSTM(120, 200), (torch.randn(100, 6, 120),)),
    "gru 200, 60 steps of 6": lambda: (nn.GRU(120, 200), (torch.randn(60, 6, 120),)),
    "scan 300, 900 steps of 6": lambda: (Scan(300), (torch.randn(900, 6, 300),)),
    "encoder 320 x 6, 196 tokens": lambda: (encoder(320, 6), (torch.randn(1, 196, 320),)),
}


def encoder(width: int, layers: int) -> nn.Module:
    # In training mode, where it runs operator by operator; its one fused operator is for inference alone.
    one = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(one, layers, enable_nested_tensor=False).train()


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
        # As published (arXiv 2509.01322): of 768 experts 256 do nothing and hold no weights; transformers
        # gives every expert weights, so that leaving them out meets the published 560 billion.
        return transformers.LongcatFlashConfig(zero_expert_num=0)

    return {"7B, Llama-2": seven, "560B, LongCat-Flash": longcat}


def time_large() -> list[Row]:
    """Seconds from a configuration to an estimate on an H100, for a prompt of 128 tokens."""
    from hasten.models.loading.config import build

    rows = []
    device = load_device("h100")
    for name, make in large_models().items():
        config = make()
        started = time.perf_counter()
        network = build(config)
        workload = trace(network, ids(128), use_cache=False, logits_to_keep=1)
        cost = estimate(workload, device)
        took = time.perf_counter() - started
        parameters = sum(p.numel() for p in network.parameters()) / 1e9
        print(
            f"{name}: {parameters:.1f} billion parameters, {cost.latency:.3g} s predicted on an H100",
            file=sys.stderr,
        )
        rows.append(compared(f"trace and estimate {name}", "hasten", took, "s", "limit", 5.0))
        rows.append(Row(f"trace and estimate {name}", "limit", 5.0, "s"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = probe(refresh=True, progress=lambda what, done: print(f"probe: {what}", file=sys.stderr))
    rows: list[Row] = []
    predicted: dict[str, float] = {}
    measured: dict[str, float] = {}
    # Twice over all of them and the least of all runs: other programs on the machine only ever add, and
    # seldom both times.
    for _ in range(2):
        for name, make in MODELS.items():
            module, inputs = make()
            if not name.startswith("encoder"):
                module.eval()
            if name not in predicted:
                predicted[name] = estimate(trace(module, *inputs), device).latency
            seen = measure(module, *inputs, runs=40, warmup=3, seconds=1.0).phases["forward"].low
            measured[name] = min(seen, measured.get(name, seen))
    for name, guess in predicted.items():
        seen = measured[name]
        rows.append(Row(name, "predicted", guess, "s"))  # nearer is better, not less: the errors are below
        rows.append(Row(name, "measured", seen, "s"))
        print(f"{name}: predicted {guess * 1e3:.3g} ms, measured {seen * 1e3:.3g} ms", file=sys.stderr)
    errors = [abs(guess / measured[name] - 1) for name, guess in predicted.items()]
    spearman = statistics.correlation(ranks(list(predicted.values())), ranks(list(measured.values())))
    rows.append(Row(f"median relative error, {len(errors)} models", "hasten", statistics.median(errors), "1"))
    rows.append(Row(f"greatest relative error, {len(errors)} models", "hasten", max(errors), "1"))
    rows.append(Row(f"Spearman correlation, {len(errors)} models", "hasten", spearman, "1"))
    rows.extend(time_large())
    emit(rows, json=arguments.json)


if __name__ == "__main__":
    main()
