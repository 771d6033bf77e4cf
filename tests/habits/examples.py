"""A small instance of every public block, network and operator, with inputs: what the habits of torch are tried on.

A block or network that is exported and not here fails `test_examples.py`, and so does an operator without a maker in
`scripts/fuzz_kernels.py`: what is registered is held to the habits.
"""

from __future__ import annotations

import importlib.util
import inspect
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn as tnn
from torch.nn import functional

from hasten import models, nn
from hasten.exports import Exports
from hasten.hardware.chips.crossbar import Crossbar
from hasten.kernels import sparse_linear
from hasten.methods.sparse_low_bit import SparseLinear
from hasten.models.vision.darts import GENOTYPES
from hasten.nn.deformable import operator
from hasten.nn.mixed_edge import no_edge

WIDTH, VOCABULARY = 32, 40

Inputs = tuple[Any, ...]


@dataclass(frozen=True)
class Example:
    """One small instance of a block or network.

    Args:
        make: builds it; blocks of `hasten.nn` are given ``device`` and ``dtype`` where a test asks for them.
        inputs: of a length (of a batch for pictures), two sequences or pictures at least.
        varies: for each input the dimension that the length is, None for none.
        state: what it carries before any token, of a module and a batch; None where it carries nothing.
        call: runs it; as a module is run unless it says otherwise.
        trains: whether parameters of it take gradients.
        pictures: the length is the batch.
    """

    make: Callable[..., tnn.Module]
    inputs: Callable[[int], Inputs]
    varies: tuple[int | None, ...] = (1,)
    state: Callable[[Any, int], Any] | None = None
    call: Callable[..., Any] = lambda module, *inputs: module(*inputs)
    trains: bool = True
    pictures: bool = False


def first(output: Any) -> Tensor:
    """The tensor of a module's answer, the first of several."""
    return output[0] if isinstance(output, tuple) else output


def hidden(length: int) -> Inputs:
    return (torch.randn(2, length, WIDTH),)


def ids(length: int) -> Inputs:
    return (torch.randint(0, VOCABULARY, (2, length)),)


def pictures(channels: int, size: int, *rest: Any) -> Callable[[int], Inputs]:
    return lambda batch: (torch.randn(batch, channels, size, size), *rest)


def _new_state(module: Any, batch: int) -> Any:
    return module.new_state(batch)


def _new_cache(module: Any, batch: int) -> Any:
    return module.new_cache(batch)


def _sparse(**made: Any) -> tnn.Module:
    with torch.device("cpu"):
        weight = torch.zeros(24, 16, 4)
        weight[..., :2] = torch.randint(1, 3, (24, 16, 2)).float() * 0.1
        packed = sparse_linear.pack(weight.reshape(24, 64), torch.full((24, 1), 0.1), torch.zeros(24, 1))
    return SparseLinear(*(part.to(torch.get_default_device()) for part in packed), **made)


def _packed_experts() -> tnn.Module:
    made = nn.PackedGatedExperts(4, WIDTH, 64)
    for stack in (made.stack("gate_up_proj"), made.stack("down_proj")):
        stack.pack(list(torch.randn(4, stack.rows, stack.columns)))
    return made


def _small(name: str, **sizes: Any) -> Any:
    return getattr(models, name)(**sizes)


_PICTURE: dict[str, Any] = {"varies": (0,), "pictures": True}
_LATENT: dict[str, Any] = {"heads": 2, "plain": 8, "rotated": 8, "value": 8, "query_rank": 12, "latent": 16}
_BLOCKFFN: dict[str, Any] = {
    "width": 32, "layers": 1, "heads": 2, "vocabulary": VOCABULARY, "experts": 8, "each": 4,
}  # fmt: skip
_OFA: dict[str, Any] = {
    "widths": (8,), "strides": (2,), "activations": ("h_swish",), "se": (True,), "depths": (1, 2), "kernels": (3, 5),
    "expands": (2, 3), "resolutions": (16,), "stem": 8, "final": 16, "last": 16, "classes": 5, "dropout": 0.0,
}  # fmt: skip

BLOCKS: dict[str, Example] = {
    "AnalogLinear": Example(
        lambda **k: nn.AnalogLinear.from_linear(tnn.Linear(WIDTH, 24), Crossbar(rows=20)), hidden, trains=False
    ),
    "AnalogLinear: exact": Example(
        lambda **k: nn.AnalogLinear.from_linear(tnn.Linear(WIDTH, 24), Crossbar(input_bits=0, adc_bits=0)), hidden,
        trains=False,
    ),
    "BMojo": Example(
        lambda **k: nn.BMojo(WIDTH, heads=2, window=4, memory=3, **k), hidden, state=_new_state
    ),
    "BitLinear": Example(lambda **k: nn.BitLinear(WIDTH, 24, **k), hidden),
    "BlockFFN": Example(lambda **k: nn.BlockFFN(WIDTH, 8, 4, **k), hidden),
    "ContextKernel": Example(
        lambda **k: nn.ContextKernel(4, 3, hidden=8, **k), pictures(4, 5),
        call=lambda module, x: functional.conv2d(x, module(x), padding=1, groups=4), **_PICTURE,
    ),
    "DeformableConv2d": Example(lambda **k: nn.DeformableConv2d(8, 12, "bound", 2.0, **k), pictures(8, 6), **_PICTURE),
    "DeformableConv2d: depthwise": Example(
        lambda **k: nn.DeformableConv2d(8, 12, "original", depthwise=True, **k), pictures(8, 6), **_PICTURE
    ),
    "ElasticMBConv": Example(
        lambda **k: nn.ElasticMBConv(8, 8, (3, 5), (2, 3), 1, "relu", True, **k), pictures(8, 6, 3, 2),
        varies=(0, None, None), pictures=True,
    ),
    "Expert": Example(lambda **k: nn.Expert(WIDTH, 24, **k), hidden),
    "ResidualBranch": Example(lambda **k: nn.ResidualBranch(tnn.Linear(WIDTH, WIDTH, **k)), hidden),
    "FusedMBConv": Example(lambda **k: nn.FusedMBConv(8, 8, 16, bias=True, **k), pictures(8, 6), **_PICTURE),
    "FusedMBConv: pooled skip": Example(
        lambda **k: nn.FusedMBConv(8, 12, 16, stride=2, act="gelu", squeezed=2, pooled_skip=True, **k), pictures(8, 5),
        **_PICTURE,
    ),
    "GatedExperts": Example(lambda **k: nn.GatedExperts(WIDTH, 24, 4, **k), hidden),
    "GroupRational": Example(lambda **k: nn.GroupRational(WIDTH, 4, "swish", **k), hidden),
    "GroupRationalMLP": Example(lambda **k: nn.GroupRationalMLP(WIDTH, 48, groups=4, **k), hidden),
    "GroupedAttention": Example(
        lambda **k: nn.GroupedAttention(WIDTH, heads=4, kv_heads=2, rotary=nn.Rotary(8), norm=1e-6, sinks=True, **k),
        hidden, state=_new_cache,
    ),
    "GroupedAttention: window": Example(
        lambda **k: nn.GroupedAttention(WIDTH, heads=4, rotary=nn.Rotary(8), window=5, **k), hidden, state=_new_cache
    ),
    "Hourglass": Example(lambda **k: nn.Hourglass(WIDTH, hidden=8, layers=2, latent=48, lift="trained", **k), hidden),
    "Hourglass: frozen": Example(
        lambda **k: nn.Hourglass(WIDTH, hidden=8, layers=2, latent=48, lift="frozen", seed=3, **k), hidden
    ),
    "HyperKernel": Example(
        lambda **k: nn.HyperKernel(4, 5, hidden=8, **k), pictures(4, 5), call=lambda module, x: x * module(), **_PICTURE
    ),
    "InstanceStandardized": Example(nn.InstanceStandardized, pictures(4, 5), trains=False, **_PICTURE),
    "LatentAttention": Example(
        lambda **k: nn.LatentAttention(WIDTH, **_LATENT, rotary=nn.Rotary(8), **k), hidden, state=_new_cache
    ),
    "LatentAttention: expanded": Example(
        lambda **k: nn.LatentAttention(WIDTH, **_LATENT, rotary=nn.Rotary(8), expanded=True, **k), hidden,
        state=_new_cache,
    ),
    "GroupSum": Example(lambda **k: nn.GroupSum(4, -1), hidden, trains=False),
    "Lowtention": Example(lambda **k: nn.Lowtention(32, **k), pictures(32, 5), **_PICTURE),
    "Lowtention: apart": Example(lambda **k: nn.Lowtention(32, 1, 3, fused=False, **k), pictures(32, 3), **_PICTURE),
    "MBConv": Example(lambda **k: nn.MBConv(8, 8, 16, 3, 1, "h_swish", True, **k), pictures(8, 6), **_PICTURE),
    "MBConv: with biases": Example(
        lambda **k: nn.MBConv(8, 8, 16, 3, 2, "relu6", False, normed=False, **k), pictures(8, 6), **_PICTURE
    ),
    "MLGRU": Example(lambda **k: nn.MLGRU(WIDTH, **k), hidden, state=_new_state),
    "Mamba": Example(lambda **k: nn.Mamba(WIDTH, states=4, **k), hidden, state=_new_state),
    "Mamba: time-invariant": Example(
        lambda **k: nn.Mamba(WIDTH, states=4, selective=(), **k), hidden, state=_new_state
    ),
    "MapAttention": Example(lambda **k: nn.MapAttention(16, 8, **k), pictures(16, 4), **_PICTURE),
    "MapCrossTransformer": Example(
        lambda **k: nn.MapCrossTransformer(8, 6, 4, **k),
        lambda batch: (torch.randn(batch, 8, 5, 5), torch.randn(batch, 3, 6)), varies=(0, 0), pictures=True,
    ),
    "MapTransformer": Example(
        lambda **k: nn.MapTransformer(8, 16, 2, 8, relative=2, **k), pictures(8, 5), **_PICTURE
    ),
    "MaskUnitAttention": Example(
        lambda **k: nn.MaskUnitAttention(8, 16, 2, 4, pool=True, **k), lambda batch: (torch.randn(batch, 16, 8),),
        **_PICTURE,
    ),
    "MaskUnitBlock": Example(
        lambda **k: nn.MaskUnitBlock(8, 16, 2, 4, pool=True, **k), lambda batch: (torch.randn(batch, 16, 8),),
        **_PICTURE,
    ),
    "MixedEdge": Example(
        lambda **k: nn.MixedEdge([tnn.Conv2d(8, 8, n, padding=n // 2, **k) for n in (1, 3)] + [no_edge()], **k),
        pictures(8, 5), **_PICTURE,
    ),
    "MixedEdge: part": Example(
        lambda **k: nn.MixedEdge([tnn.Conv2d(2, 2, n, padding=n // 2, **k) for n in (1, 3)], 4, **k), pictures(8, 5),
        **_PICTURE,
    ),
    "MixtureOfExperts": Example(
        lambda **k: nn.MixtureOfExperts(WIDTH, 24, 4, 2, shared=1, zero=1, **k), hidden
    ),
    "NaiveRational": Example(lambda **k: nn.NaiveRational(nn.GroupRational(WIDTH, 4, "swish", **k)), hidden),
    "PackedEmbedding": Example(
        lambda **k: nn.PackedEmbedding.from_embedding(tnn.Embedding(VOCABULARY, WIDTH), 4), ids, trains=False
    ),
    "PackedGatedExperts": Example(
        lambda **k: _packed_experts(),
        lambda length: (
            torch.randn(2 * length, WIDTH), torch.randint(4, (2 * length, 2)), torch.rand(2 * length, 2)
        ),
        varies=(0, 0, 0), trains=False,
    ),
    "PackedLinear": Example(
        lambda **k: nn.PackedLinear.from_linear(tnn.Linear(WIDTH, 24), 4), hidden, trains=False
    ),
    "PackedLinear: 8 bits": Example(
        lambda **k: nn.PackedLinear.from_linear(tnn.Linear(WIDTH, 24), 8), hidden, trains=False
    ),
    "PackedLinear: 16 bits": Example(
        lambda **k: nn.PackedLinear.from_linear(tnn.Linear(WIDTH, 24), 16), hidden, trains=False
    ),
    "ReGLUExperts": Example(
        lambda **k: nn.ReGLUExperts(WIDTH, 24, 4, 2, **k),
        lambda length: (*hidden(length), torch.randn(2, length, 4)), varies=(1, 1),
    ),
    "RecursiveGate": Example(lambda **k: nn.RecursiveGate(8, 5, **k), pictures(8, 5), **_PICTURE),
    "Reservoir": Example(
        lambda **k: nn.Reservoir(8, 24, gain=0.5, seed=1, **k),
        lambda batch: ((torch.rand(batch, 6, 8) < 0.5).float(),), trains=False, **_PICTURE,
    ),
    "ResidualStack": Example(
        lambda **k: nn.ResidualStack(
            [tnn.Sequential(tnn.Linear(WIDTH, WIDTH, **k), tnn.Tanh()) for _ in range(3)], 2
        ),
        hidden,
    ),
    "Router": Example(lambda **k: nn.Router(WIDTH, 4, 2, balanced=True, **k), lambda n: (torch.randn(2 * n, WIDTH),),
                      varies=(0,)),
    "S5": Example(lambda **k: nn.S5(WIDTH, 8, norm="before", **k), hidden, state=_new_state),
    "SlowFastBlock": Example(
        lambda **k: nn.SlowFastBlock(12, 5, 1, hidden=(8, 4, 4, 4, 8), **k), pictures(12, 5), **_PICTURE
    ),
    "SparseLinear": Example(_sparse, lambda length: (torch.randn(2, length, 64),), trains=False),
    "SymmetricQuantizer": Example(lambda **k: nn.SymmetricQuantizer(8, **k), hidden, trains=False),
    "SqueezeExcite": Example(lambda **k: nn.SqueezeExcite(16, **k), pictures(16, 6), **_PICTURE),
    "Stepped": Example(
        lambda **k: nn.Stepped(nn.Mamba(WIDTH, states=4, **k)), hidden,
        call=lambda module, x: module(x, module.module.new_state(len(x))),
    ),
    "TernaryGLU": Example(lambda **k: nn.TernaryGLU(WIDTH, 48, **k), hidden),
    "TernaryLinear": Example(lambda **k: nn.BitLinear(WIDTH, 24).pack(), hidden, trains=False),
    "TimedConv": Example(
        lambda **k: nn.TimedConv(8, 12, 6, 4, **k), lambda batch: (torch.randn(batch, 8, 5, 5), torch.randn(batch, 6)),
        varies=(0, 0), pictures=True,
    ),
    "TopKFFN": Example(lambda **k: nn.TopKFFN(WIDTH, 8, 4, 2, **k), hidden),
}  # fmt: skip


def _of_config(network: str, config: str, state: Any = None, **sizes: Any) -> Example:
    return Example(lambda: _small(network, config=_small(config, **sizes)), ids, state=state)


_ENCODER: dict[str, Any] = {
    "vocabulary": VOCABULARY, "classes": 5, "length": 4096, "layers": 1, "width": 32, "bottleneck": 16, "heads": 2,
    "inner": 24,
}  # fmt: skip
_THINKER: dict[str, Any] = {
    "width": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16, "vocabulary": VOCABULARY, "experts": 4,
    "used": 2, "inner": 16,
}  # fmt: skip
_BMOJO: dict[str, Any] = {"width": 32, "heads": 2, "vocabulary": VOCABULARY, "window": 4, "memory": 3}

_LOWFORMER: dict[str, Any] = {
    "widths": (4, 4, 8, 8, 8), "depths": (1, 1, 1, 1, 1), "head": (8, 8), "classes": 5,
    "fused": (True, True, False, False, True),
}  # fmt: skip

_DARTS: dict[str, Any] = {"width": 4, "cells": 3, "resolution": 8, "classes": 5}
_PLACE = models.CellPlace(6, 8, 4, 4, True, True)
_PROXYLESS: dict[str, Any] = {
    "widths": (8,), "depths": (2,), "strides": (2,), "stem": 8, "first": 8, "last": 16, "kernels": (3, 5),
    "resolution": 16, "classes": 5,
}  # fmt: skip
_TREES = models.PyramidTreeConfig((1,), first=4, growth=0, stem=4, resolution=8, classes=5)

NETWORKS: dict[str, Example] = {
    "AsCAN": Example(
        lambda: models.AsCAN(
            models.AsCANConfig(models.StageLayout(("C", "CT")), (8, 16), 4, head_size=8, image=8, classes=5)
        ),
        pictures(3, 8), **_PICTURE,
    ),
    "AsCANUNet": Example(
        lambda: models.AsCANUNet(
            models.AsCANUNetConfig(models.StageLayout(("C", "T")), "T", (4, 8), text=6, classes=3, head_size=4)
        ),
        lambda batch: (
            torch.randn(batch, 1, 8, 8), torch.arange(float(batch)), torch.randn(batch, 3, 6),
            torch.zeros(batch, dtype=torch.int64),
        ),
        varies=(0, 0, 0, 0), pictures=True,
    ),
    "BMojoLM": _of_config("BMojoLM", "BMojoConfig", _new_state, pattern="bm", **_BMOJO),
    "BlockFFNLM": _of_config("BlockFFNLM", "BlockFFNConfig", _new_state, **_BLOCKFFN),
    "BlockFFNLM: dense": _of_config("BlockFFNLM", "BlockFFNConfig", _new_state, feed_forward="dense", **_BLOCKFFN),
    "BottleneckEncoder": _of_config("BottleneckEncoder", "BottleneckConfig", **_ENCODER),
    "BottleneckLayer": replace(_of_config("BottleneckLayer", "BottleneckConfig", **_ENCODER), inputs=hidden),
    "CellNetwork": Example(
        lambda: models.CellNetwork(models.CellConfig(width=4, resolution=8), (3, 1, 2, 4, 1, 3)), pictures(3, 8),
        **_PICTURE,
    ),
    "CenterNet": Example(
        lambda: models.CenterNet(models.ResNet(5, 3, (1, 1), 4).features_only((-1,)), 3, (8,), 8), pictures(3, 8),
        call=lambda module, x: torch.cat(module(x), 1), **_PICTURE,
    ),
    "ChainBlock": Example(lambda: models.ChainBlock(8, 8, 5, 1), pictures(8, 6), **_PICTURE),
    "DartsCell": Example(
        lambda: models.DartsCell(_PLACE, GENOTYPES["pc-darts-cifar"].reduce),
        lambda batch: (torch.randn(batch, 6, 8, 8), torch.randn(batch, 8, 4, 4)), varies=(0, 0), pictures=True,
    ),
    "DartsNetwork": Example(lambda: models.DartsNetwork(models.DartsConfig(**_DARTS)), pictures(3, 8), **_PICTURE),
    "DenseLayer": Example(lambda: models.DenseLayer(8, 4), pictures(8, 6), **_PICTURE),
    "DenseNet": Example(
        lambda: models.DenseNet(models.DenseLayers(4, ((2, 3), (2,))), classes=5), pictures(3, 8), **_PICTURE
    ),
    "FeatureMaps": Example(
        lambda: models.SimpleNet(models.SimpleNetConfig("4 p 4")).features_only((-1,)), pictures(3, 6), **_PICTURE
    ),
    "FeaturePyramid": Example(
        lambda: models.FeaturePyramid((4, 6), 8),
        lambda batch: (torch.randn(batch, 4, 6, 6), torch.randn(batch, 6, 3, 3)), varies=(0, 0), pictures=True,
    ),
    "HeadPredictor": Example(lambda: models.HeadPredictor(WIDTH, VOCABULARY, 8), hidden),
    "Hiera": Example(
        lambda: models.Hiera(
            models.HieraConfig(
                (8, 16), (1, 2), (1, 1), (False, True), (True, False), (2, 2), 2, 3, 2, 8, 3, 5
            )
        ),
        pictures(3, 8), **_PICTURE,
    ),
    "KAT": Example(
        lambda: models.KAT(models.KATConfig(image=8, patch=4, width=32, layers=1, heads=2, classes=5, groups=4)),
        pictures(3, 8), **_PICTURE,
    ),
    "Layer": Example(
        lambda: models.Layer(models.SmallThinkerConfig(**_THINKER), 0), hidden,
        call=lambda module, x, cache=None: module(x, cache),
        state=lambda module, batch: module.self_attn.new_cache(batch),
    ),
    "LowFormer": Example(
        lambda: models.LowFormer(models.LowFormerConfig(**_LOWFORMER)), pictures(3, 64), **_PICTURE
    ),
    "LowFormerBlock": Example(lambda: models.LowFormerBlock(8, 2, 3, fused=False), pictures(8, 5), **_PICTURE),
    "MambaLM": _of_config("MambaLM", "MambaConfig", _new_state, d_model=32, n_layer=1, vocab_size=VOCABULARY),
    "MatMulFreeLM": _of_config(
        "MatMulFreeLM", "MatMulFreeConfig", _new_state, width=32, layers=2, vocabulary=VOCABULARY, hidden=48
    ),
    "MobileChain": Example(
        lambda: models.MobileChain(
            models.ChainConfig(
                widths=(8, 16), depths=(1, 1), strides=(1, 2), stem=8, last=16, resolution=16, classes=5,
                multiplier=1.0,
            ),
            (5, 3),
        ),
        pictures(3, 16), **_PICTURE,
    ),
    "OnceForAll": Example(lambda: models.OnceForAll(models.OFAConfig(**_OFA)), pictures(3, 16), **_PICTURE),
    "ProxylessNet": Example(
        lambda: models.ProxylessNet(models.ProxylessConfig(**_PROXYLESS), (1, 4)), pictures(3, 16), **_PICTURE
    ),
    "ProxylessSuperNet": Example(
        lambda: models.ProxylessSuperNet(models.ProxylessConfig(**_PROXYLESS)), pictures(3, 16), **_PICTURE
    ),
    "PyramidTreeNet": Example(
        lambda: models.PyramidTreeNet(_TREES, _TREES.of_letters("i357damiidma")), pictures(3, 8), **_PICTURE
    ),
    "PyramidTreeSuperNet": Example(lambda: models.PyramidTreeSuperNet(_TREES), pictures(3, 8), **_PICTURE),
    "ResidualConvNet": Example(lambda: models.ResidualConvNet(5, 3, 8, 4, 3, groups=2), pictures(3, 8), **_PICTURE),
    "PyramidDetector": Example(
        lambda: models.PyramidDetector(models.ResNet(5, 3, (1, 1), 4).features_only(), 3, 8, 1), pictures(3, 8),
        **_PICTURE,
    ),
    "SemanticFPN": Example(
        lambda: models.SemanticFPN(models.ResNet(5, 3, (1, 1), 4).features_only(), 3, 8), pictures(3, 8), **_PICTURE
    ),
    "BasicBlock": Example(lambda: models.BasicBlock(4, 8, 2, projected=False), pictures(4, 6), **_PICTURE),
    "ResNet": Example(lambda: models.ResNet(5, 3, (2, 1), 4), pictures(3, 8), **_PICTURE),
    "PlainNet": Example(
        lambda: models.PlainNet(models.PlainLayers((((3, 4),), ((5, 8),)), (6,)), classes=5), pictures(3, 8), **_PICTURE
    ),
    "ResNet9": Example(lambda: models.ResNet9(5, 3, 4, (8,), (1,)), pictures(3, 8), **_PICTURE),
    "ShuffleBlock": Example(lambda: models.ShuffleBlock(8, 8), pictures(8, 6), **_PICTURE),
    "ShuffleBlock: halves": Example(lambda: models.ShuffleBlock(8, 12, True), pictures(8, 6), **_PICTURE),
    "ShuffleNetV2": Example(
        lambda: models.ShuffleNetV2(models.ShuffleNetConfig((8, 8, 12), 16, (1, 2, 1), 4, classes=5)), pictures(3, 64),
        **_PICTURE,
    ),
    "SizingNetwork": Example(
        lambda: models.SizingNetwork(operator("plain")), pictures(1, 16),
        call=lambda module, x: torch.cat(module(x), 1), **_PICTURE,
    ),
    "SimpleNet": Example(
        lambda: models.SimpleNet(models.SimpleNetConfig("4 4 p 8' 8", (2,), classes=5)), pictures(3, 12), **_PICTURE
    ),
    "SmallThinkerLM": _of_config("SmallThinkerLM", "SmallThinkerConfig", _new_state, **_THINKER),
    "SubNetwork": Example(
        lambda: models.SubNetwork(models.OFAConfig(**_OFA), models.OFAConfig(**_OFA).architecture()), pictures(3, 16),
        **_PICTURE,
    ),
    "Terminator": Example(
        lambda: models.Terminator(
            models.TerminatorConfig(8, 1, 5, (12, 1), (1, 1), (0.0, 0.0), ((), ()), (8, 4, 4, 4, 8))
        ),
        pictures(1, 8), **_PICTURE,
    ),
    "TokenEmbedding": _of_config("TokenEmbedding", "BottleneckConfig", **_ENCODER),
}  # fmt: skip

EXAMPLES = BLOCKS | NETWORKS
TRAINED = [name for name, example in EXAMPLES.items() if example.trains]
STATEFUL = [name for name, example in EXAMPLES.items() if example.state is not None]


def made(name: str, seed: int = 0, **options: Any) -> tnn.Module:
    """An example's module, the same for the same seed, in training mode."""
    torch.manual_seed(seed)
    return EXAMPLES[name].make(**options).train()


def inputs_of(name: str, length: int = 9, seed: int = 1) -> Inputs:
    """An example's inputs of this length, the same for the same seed."""
    torch.manual_seed(seed)
    return EXAMPLES[name].inputs(length)


def output_of(name: str, module: Any, *inputs: Any) -> Tensor:
    """What an example's module, or what took its place, answers to inputs; the first of several tensors."""
    return first(EXAMPLES[name].call(module, *inputs))


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Inputs with their floats in a dtype; numbers of tokens stay."""
    return tuple(i.to(dtype) if isinstance(i, Tensor) and i.is_floating_point() else i for i in inputs)


def slow_where(slow: Callable[[str], bool], names: Iterable[str] = EXAMPLES) -> list[Any]:
    """Names to try, those that take long among the slow tests."""
    return [pytest.param(name, marks=pytest.mark.slow) if slow(name) else name for name in names]


def modules_of(package: str) -> dict[str, type[tnn.Module]]:
    """Every public module class of a package."""
    found = {}
    for name in Exports(package).homes:
        offered = getattr(importlib.import_module(package), name)
        if not isinstance(offered, type) or not issubclass(offered, tnn.Module) or inspect.isabstract(offered):
            continue
        # What only stores is no block: it is not called.
        if offered.forward is not tnn.Module.forward:
            found[name] = offered
    return found


def _makers() -> Any:
    path = Path(__file__).parents[2] / "scripts" / "fuzz_kernels.py"
    spec = importlib.util.spec_from_file_location("fuzz_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_FUZZ = _makers()
OPERATORS: list[str] = _FUZZ.operators()


def calls_of(operator: str, count: int = 12) -> Iterator[list[Any]]:
    """Arguments of an operator, one list for each way of calling it (by what is no tensor) among so many drawn."""
    seen = set()
    for seed in range(count):
        torch.manual_seed(seed)
        random.seed(seed)
        given = _FUZZ.MAKERS[operator]()
        kind = tuple(a if not isinstance(a, Tensor) else (a.dtype, a.ndim) for a in given)
        if kind not in seen:
            seen.add(kind)
            yield given
