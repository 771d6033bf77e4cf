"""Published networks that are no language models, by their sizes alone: what the rows of `measurements.toml` name.

Each is written as its paper says, without weights, to be traced. Where timm is installed its own modules take the place
of the four vision networks that it has.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIMM = {
    "resnet50": "resnet50",
    "mobilenet-v2": "mobilenetv2_100",
    "vit-base": "vit_base_patch16_224",
    "convnext-base": "convnext_base",
}


def conv(inner: int, outer: int, size: int, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = nn.ReLU):
    layers = [nn.Conv2d(inner, outer, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outer)]
    return nn.Sequential(*layers, *([act()] if act else []))


class Bottleneck(nn.Module):
    """He et al., arXiv 1512.03385: 1 x 1, 3 x 3 with the stride, 1 x 1."""

    def __init__(self, inner: int, width: int, stride: int) -> None:
        super().__init__()
        outer = 4 * width
        self.body = nn.Sequential(conv(inner, width, 1), conv(width, width, 3, stride), conv(width, outer, 1, act=None))
        self.skip = conv(inner, outer, 1, stride, act=None) if stride > 1 or inner != outer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def resnet50() -> nn.Module:
    layers: list[nn.Module] = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    inner = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(count):
            layers.append(Bottleneck(inner, width, stride if i == 0 else 1))
            inner = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


class Inverted(nn.Module):
    """Sandler et al., arXiv 1801.04381: expansion, depthwise 3 x 3, projection."""

    def __init__(self, inner: int, outer: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inner * expand
        first = [conv(inner, wide, 1, act=nn.ReLU6)] if expand > 1 else []
        last = [conv(wide, wide, 3, stride, wide, nn.ReLU6), conv(wide, outer, 1, act=None)]
        self.body = nn.Sequential(*first, *last)
        self.add = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.add else self.body(x)


def mobilenet_v2() -> nn.Module:
    layers: list[nn.Module] = [conv(3, 32, 3, 2, act=nn.ReLU6)]
    inner = 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, outer, count, stride in stages:
        for i in range(count):
            layers.append(Inverted(inner, outer, stride if i == 0 else 1, expand))
            inner = outer
    head = [conv(320, 1280, 1, act=nn.ReLU6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)]
    return nn.Sequential(*layers, *head)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    split = [t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value)]
    return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


class Encoder(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(attend(*self.qkv(self.norm1(x)).chunk(3, -1), self.heads))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Dosovitskiy et al., arXiv 2010.11929."""

    def __init__(self, width: int, layers: int, heads: int, patch: int, outputs: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.first = nn.Parameter(torch.empty(1, 1, width))
        self.places = nn.Parameter(torch.empty(1, (224 // patch) ** 2 + 1, width))
        self.layers = nn.Sequential(*(Encoder(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.first.expand(len(x), -1, -1), x), 1) + self.places
        return self.head(self.norm(self.layers(x))[:, 0])


class ConvNeXtBlock(nn.Module):
    """Liu et al., arXiv 2201.03545."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


class ChannelNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convnext_base() -> nn.Module:
    widths, layers = (128, 256, 512, 1024), []
    for i, (width, count) in enumerate(zip(widths, (3, 3, 27, 3))):
        if i == 0:
            layers += [nn.Conv2d(3, width, 4, 4), ChannelNorm(width)]
        else:
            layers += [ChannelNorm(widths[i - 1]), nn.Conv2d(widths[i - 1], width, 2, 2)]
        layers += [ConvNeXtBlock(width) for _ in range(count)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(1024), nn.Linear(1024, 1000))


class ResBlock(nn.Module):
    """Of a diffusion U-Net: two convolutions, and the time between them."""

    def __init__(self, inner: int, outer: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, inner), nn.Conv2d(inner, outer, 3, padding=1)
        self.time = nn.Linear(time, outer)
        self.norm2, self.conv2 = nn.GroupNorm(32, outer), nn.Conv2d(outer, outer, 3, padding=1)
        self.skip = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))


class CrossLayer(nn.Module):
    """Attention to itself, to the text, and a gated feed-forward part."""

    def __init__(self, width: int, text: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.own = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(3))
        self.query = nn.Linear(width, width, bias=False)
        self.text = nn.ModuleList(nn.Linear(text, width, bias=False) for _ in range(2))
        self.outs = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.up, self.down = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        y = self.norms[0](x)
        x = x + self.outs[0](attend(*(layer(y) for layer in self.own), self.heads))
        y = self.norms[1](x)
        x = x + self.outs[1](attend(self.query(y), *(layer(text) for layer in self.text), self.heads))
        value, gate = self.up(self.norms[2](x)).chunk(2, -1)
        return x + self.down(value * F.gelu(gate))


class Cross(nn.Module):
    def __init__(self, width: int, text: int, heads: int, depth: int) -> None:
        super().__init__()
        self.norm, self.into, self.out = nn.GroupNorm(32, width), nn.Linear(width, width), nn.Linear(width, width)
        self.layers = nn.ModuleList(CrossLayer(width, text, heads) for _ in range(depth))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        y = self.into(self.norm(x).flatten(2).transpose(1, 2))
        for layer in self.layers:
            y = layer(y, text)
        return x + self.out(y).transpose(1, 2).unflatten(2, x.shape[2:])


class UNet(nn.Module):
    """Of Stable Diffusion (Rombach et al., arXiv 2112.10752) and of SDXL (Podell et al., arXiv 2307.01952)."""

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...], middle: int, text: int, head: int) -> None:
        super().__init__()
        time = 4 * widths[0]
        self.time = nn.Sequential(nn.Linear(widths[0], time), nn.SiLU(), nn.Linear(time, time))
        self.first = nn.Conv2d(4, widths[0], 3, padding=1)

        def level(inner: int, outer: int, depth: int) -> nn.ModuleList:
            heads = outer // head if head else 8
            return nn.ModuleList([ResBlock(inner, outer, time)] + ([Cross(outer, text, heads, depth)] if depth else []))

        self.downs, kept, inner = nn.ModuleList(), [widths[0]], widths[0]
        for i, (width, depth) in enumerate(zip(widths, depths)):
            for _ in range(2):
                self.downs.append(level(inner, width, depth))
                inner = width
                kept.append(width)
            if i < len(widths) - 1:
                self.downs.append(nn.ModuleList([nn.Conv2d(width, width, 3, 2, 1)]))
                kept.append(width)
        self.middle = nn.ModuleList([*level(inner, inner, middle), ResBlock(inner, inner, time)])
        self.ups = nn.ModuleList()
        for i, (width, depth) in reversed(list(enumerate(zip(widths, depths)))):
            for j in range(3):
                self.ups.append(level(inner + kept.pop(), width, depth))
                inner = width
                if i and j == 2:
                    self.ups.append(nn.ModuleList([nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1)]))
        self.norm, self.last = nn.GroupNorm(32, inner), nn.Conv2d(inner, 4, 3, padding=1)

    def forward(self, x: Tensor, step: Tensor, text: Tensor) -> Tensor:
        time = self.time(step)

        def through(parts: nn.ModuleList, x: Tensor) -> Tensor:
            for part in parts:
                x = (
                    part(x, time)
                    if isinstance(part, ResBlock)
                    else part(x, text)
                    if isinstance(part, Cross)
                    else part(x)
                )
            return x

        x = self.first(x)
        kept = [x]
        for parts in self.downs:
            x = through(parts, x)
            kept.append(x)
        x = through(self.middle, x)
        for parts in self.ups:
            grown = isinstance(parts[0], nn.Upsample)
            x = through(parts, x if grown else torch.cat((x, kept.pop()), 1))
        return self.last(F.silu(self.norm(x)))


class RWKVStep(nn.Module):
    """One token of RWKV for each sequence: products, and a state that is read and written.

    Version 4 (arXiv 2305.13048) keeps five vectors a layer, version 7 (arXiv 2503.14456) a matrix a head. Version 0 is
    a prompt, whose tokens are the batch: its products alone, the state staying on the chip.
    """

    def __init__(self, version: int, width: int, layers: int, inner: int, vocabulary: int) -> None:
        super().__init__()
        self.version, self.width = version, width
        self.table = nn.Embedding(vocabulary, width)
        self.products = nn.ModuleList(nn.Linear(width, 3 * width, bias=False) for _ in range(layers))
        self.outs = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        self.ups = nn.ModuleList(nn.Linear(width, inner, bias=False) for _ in range(layers))
        self.downs = nn.ModuleList(nn.Linear(inner, width, bias=False) for _ in range(layers))
        self.gates = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers if version == 4 else 0))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers + 1))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor, state: Tensor) -> Tensor:
        x, kept = self.table(ids), []
        for i, (product, out, up, down) in enumerate(zip(self.products, self.outs, self.ups, self.downs)):
            r, k, v = product(self.norms[2 * i](x)).chunk(3, -1)
            if self.version == 7:
                heads = [t.unflatten(-1, (-1, 64)) for t in (r, k, v)]
                # Its decay is one more factor of the same pass over the state.
                new = torch.addcmul(state[i], heads[2][..., :, None], heads[1][..., None, :])
                mixed = (new @ heads[0][..., None]).squeeze(-1).flatten(-2)
            elif self.version == 4:
                new = state[i] * 0.9 + k.exp() * v
                mixed = torch.sigmoid(r) * new
            else:
                new, mixed = state[0], torch.sigmoid(r) * (k * v)
            kept.append(new)
            x = x + out(mixed)
            y = self.norms[2 * i + 1](x)
            fed = down(torch.relu(up(y)) ** 2)
            x = x + (torch.sigmoid(self.gates[i](y)) * fed if self.version == 4 else fed)
        x = x if self.version else x[-1:]
        return torch.cat((self.head(self.norms[-1](x)).flatten(), *(new.flatten()[:1] for new in kept)))


def whisper(width: int, layers: int, heads: int) -> nn.Module:
    """The encoder of Whisper (Radford et al., arXiv 2212.04356) for 30 seconds."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=width, encoder_layers=layers, encoder_attention_heads=heads, encoder_ffn_dim=4 * width
    )
    config._attn_implementation = "sdpa"

    class Encoded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = WhisperEncoder(config)

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(x).last_hidden_state

    return Encoded()


def image(side: int) -> Callable[[int, torch.dtype], tuple[Tensor, ...]]:
    return lambda batch, dtype: (torch.empty(batch, 3, side, side, dtype=dtype),)


def latents(side: int, text: int) -> Callable[[int, torch.dtype], tuple[Tensor, ...]]:
    def made(batch: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        batch *= 2  # guided: with the text and without
        shapes = ((batch, 4, side, side), (batch, 320), (batch, 77, text))
        return tuple(torch.empty(*shape, dtype=dtype) for shape in shapes)

    return made


def tokens(layers: int, heads: int, version: int) -> Callable[[int, torch.dtype], tuple[Tensor, ...]]:
    def made(batch: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        shapes = {7: (layers, batch, heads, 64, 64), 4: (layers, batch, heads * 64), 0: (1, 1)}
        shape = shapes[version]
        return torch.zeros(batch, dtype=torch.int64), torch.empty(*shape, dtype=dtype)

    return made


def mel(batch: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return (torch.empty(batch, 80, 3000, dtype=dtype),)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, torch.dtype], tuple[Tensor, ...]]]] = {
    "resnet50": (resnet50, image(224)),
    "mobilenet-v2": (mobilenet_v2, image(224)),
    "vit-base": (lambda: ViT(768, 12, 12, 16, 1000), image(224)),
    "vit-large-14": (lambda: ViT(1024, 24, 16, 14, 768), image(224)),
    "convnext-base": (convnext_base, image(224)),
    "sd-1.5": (lambda: UNet((320, 640, 1280, 1280), (1, 1, 1, 0), 1, 768, 0), latents(64, 768)),
    "sdxl": (lambda: UNet((320, 640, 1280), (0, 2, 10), 10, 2048, 64), latents(128, 2048)),
    "whisper-base": (lambda: whisper(512, 6, 8), mel),
    "whisper-small": (lambda: whisper(768, 12, 12), mel),
    "whisper-large": (lambda: whisper(1280, 32, 20), mel),
    # 7.2 billion parameters, its small projections counted with the feed-forward part.
    "rwkv7-7.2b": (lambda: RWKVStep(7, 4096, 32, 17216, 65536), tokens(32, 64, 7)),
    "rwkv7-7.2b prompt": (lambda: RWKVStep(0, 4096, 32, 17216, 65536), tokens(32, 64, 0)),
    "rwkv4-7b": (lambda: RWKVStep(4, 4096, 32, 16384, 50277), tokens(32, 64, 4)),
}


def network(name: str, batch: int, dtype: torch.dtype) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network without weights, and inputs for it."""
    make, inputs = NETWORKS[name]
    with torch.device("meta"):
        if name in TIMM and find_spec("timm"):
            import timm

            module = timm.create_model(TIMM[name], pretrained=False)
        else:
            module = make()
        return module.to(dtype).eval(), inputs(batch, dtype)
