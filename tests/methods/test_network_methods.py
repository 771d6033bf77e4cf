"""Methods on networks that are no language models: each says the same to the module and to its description."""

from __future__ import annotations

import importlib.util
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.methods import (
    AnalogArrays,
    Bf16Network,
    ChannelsLast,
    Compiled,
    FoldNormalization,
    HeadPruning,
    Int8Products,
    Method,
    OnnxRuntime,
    OpenVino,
    ParallelBlocks,
    WeightOnly,
    apply_all,
    clash,
    from_dict,
    registry,
    rewrite_all,
)
from hasten.methods.editing import outline
from hasten.methods.method import NETWORK
from hasten.runtime.network import Inputs, Network, difference

from .conftest import NETWORK_METHODS, small_llama

IN_TORCH = [
    m for m in NETWORK_METHODS if not isinstance(m, Compiled | OnnxRuntime | OpenVino | ParallelBlocks | HeadPruning)
]


class Residual(nn.Module):
    """A convolution whose result is normalized, one whose result is also added, and a linear layer; names as keys."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.second_norm = nn.BatchNorm2d(8)
        self.shared = nn.Conv2d(8, 32, 1)
        self.shared_norm = nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 32)
        self.head_norm = nn.BatchNorm1d(32)
        self.last = nn.Linear(32, 5)

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Any]:
        x = torch.relu(self.first_norm(self.first(x)))
        x = torch.relu(self.second_norm(self.second(x)))
        y = self.shared(x)
        x = self.shared_norm(y) + y
        pooled = x.mean((2, 3)) * scale
        return {"logits": self.last(torch.relu(self.head_norm(self.head(pooled)))), "pooled": pooled, "kind": "two"}


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    module = Residual()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
            assert part.running_mean is not None
            assert part.running_var is not None
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return Network(module.eval(), Inputs((torch.randn(2, 3, 12, 12),), {"scale": 2.0}), "residual")


def titles(value: Any) -> str:
    return value.title if isinstance(value, Method) else " + ".join(m.title for m in value)


def test_every_method_for_networks_is_here() -> None:
    ours = {k for k in registry().values() if k.__module__.startswith("hasten.") and NETWORK in k.subjects}
    assert {type(m) for m in NETWORK_METHODS} | {WeightOnly, AnalogArrays} == ours


@pytest.mark.parametrize("method", [*IN_TORCH, AnalogArrays()], ids=titles)
def test_traced_equals_rewritten(method: Method) -> None:
    changed = method.apply(network())
    assert outline(method.rewrite(network().workload())) == outline(changed.workload())


PAIRS = [p for p in itertools.combinations([*IN_TORCH, WeightOnly(8, 0), AnalogArrays()], 2) if clash(p) is None]


@pytest.mark.parametrize("pair", PAIRS, ids=titles)
def test_traced_equals_rewritten_in_pairs(pair: tuple[Method, ...]) -> None:
    assert outline(rewrite_all(network().workload(), pair)) == outline(apply_all(network(), pair).workload())


@pytest.mark.parametrize("method", NETWORK_METHODS, ids=titles)
def test_a_method_is_written_and_read_and_refuses_a_language_model(method: Method) -> None:
    assert from_dict(method.to_dict()) == method
    assert "language model" in str(method.why_not(small_llama(0)))
    assert method.why_not(nn.Linear(2, 2))
    assert type(method).variants(small_llama(0)) == []
    assert method in type(method).variants(network())


# How far answers may lie apart, as a share of their size.
WITHIN = {"fold-normalization": 1e-5, "channels-last": 1e-5, "bf16-network": 0.03, "int8-products": 0.05}


@pytest.mark.parametrize("method", IN_TORCH, ids=titles)
def test_answers_stay_and_so_does_what_weights_are_shared_with(method: Method) -> None:
    base = network()
    before = {k: v.clone() for k, v in base.module.state_dict().items()}
    expected = base.answers()
    changed = method.apply(base.twin())
    assert difference(expected, changed.answers()) <= WITHIN[method.name]
    answer = changed(*base.inputs.args, **base.inputs.kwargs)
    assert list(answer) == ["logits", "pooled", "kind"]
    assert answer["logits"].dtype is torch.float32
    assert all(torch.equal(v, before[k]) for k, v in base.module.state_dict().items())
    assert difference(expected, base.answers()) == 0


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.05 * self.branch(x)


def test_blocks_side_by_side_have_the_same_products_and_nearly_the_answers() -> None:
    torch.manual_seed(2)
    base = Network(nn.Sequential(*(Block() for _ in range(4))).eval(), Inputs((torch.randn(1, 4, 6, 6),)))
    changed = ParallelBlocks().apply(base.twin())
    assert 0 < difference(base.answers(), changed.answers()) < 0.02
    before, after = ParallelBlocks().rewrite(base.workload()), changed.workload()
    assert after.flops == before.flops
    assert after.weight_bytes == before.weight_bytes
    assert len(base.module) == 4
    assert "no residual blocks" in str(ParallelBlocks().why_not(network()))
    with pytest.raises(HastenError, match="from 2 blocks"):
        ParallelBlocks(1)


def test_blocks_side_by_side_say_where_a_head_then_averages_what_sees_too_little() -> None:
    torch.manual_seed(0)
    blocks = nn.Sequential(*(Block() for _ in range(4)))
    for head, told in ((nn.AdaptiveAvgPool2d(1), 1), (nn.Flatten(), 0)):
        base = Network(nn.Sequential(blocks, head).eval(), Inputs((torch.randn(1, 4, 16, 16),)))
        found = ParallelBlocks(4).cautions(base)
        assert len(found) == told
        assert all("4 blocks side by side: its head averages positions that see 10% of" in said for said in found)
        assert len(base.module[0]) == 4
    assert any("for a head that averages" in said for said in ParallelBlocks().remarks(base.workload()))
    words = Network(nn.Sequential(nn.Linear(4, 4)), Inputs((torch.randn(2, 4),)))
    assert len(ParallelBlocks().remarks(words.workload())) == 1


def test_only_what_nothing_else_reads_is_folded() -> None:
    changed = FoldNormalization().apply(network())
    kept = [n for n, m in changed.module.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert kept == ["shared_norm"]
    assert "no convolution" in str(FoldNormalization().why_not(changed))


def test_a_layer_that_is_called_twice_is_not_folded() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(self.conv(x)))

    twice = Network(Twice().eval(), Inputs((torch.randn(1, 3, 4, 4),)))
    assert FoldNormalization().why_not(twice)


def test_int8_products_hold_a_quarter_and_are_reference_arithmetic() -> None:
    torch.manual_seed(1)
    linear = nn.Linear(64, 48)
    one = Network(nn.Sequential(linear), Inputs((torch.rand(5, 64) * 3 - 1,)))
    low, high = (
        float(f([e.tensors[0].min() if f is min else e.tensors[0].max() for e in one.examples])) for f in (min, max)
    )
    held = one.held_bytes
    x = one.inputs.args[0]
    changed = Int8Products().apply(one)
    scale = (max(high, 0.0) - min(low, 0.0)) / 255
    zero = round(-min(low, 0.0) / scale)
    codes = (x / scale + zero).round().clamp(0, 255)
    weights = linear.weight.detach().abs().amax(1, keepdim=True) / 127
    rounded = (linear.weight.detach() / weights).round() * weights
    expected = (codes - zero) * scale @ rounded.T + linear.bias
    assert difference([expected], [changed(x)]) < 2e-3
    assert changed.held_bytes < held / 3
    assert Int8Products().why_not(changed)


def test_torchs_own_encoder_layer_is_multiplied_in_int8_too() -> None:
    torch.manual_seed(3)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    base = Network(nn.Sequential(layer), Inputs((torch.randn(2, 5, 16),)))
    changed = Int8Products().apply(base.twin())
    assert type(changed.module[0].linear1).__name__ == "_Int8Linear"
    with torch.no_grad():
        assert 0 < difference(base.answers(), changed.answers()) < 0.05


def test_bf16_refuses_what_is_bf16_and_takes_whole_numbers() -> None:
    ids = torch.randint(0, 11, (2, 7))
    words = Network(nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 3)), Inputs((ids,)))
    changed = Bf16Network().apply(words.twin())
    assert changed(ids).dtype is torch.float32
    assert difference(words.answers(), changed.answers()) < 0.02
    assert "bfloat16 already" in str(Bf16Network().why_not(changed))
    assert "no images" in str(ChannelsLast().why_not(words))


@pytest.mark.slow
def test_a_compiled_network_answers_as_before_for_any_shape() -> None:
    if reason := Compiled().why_not(network()):
        pytest.skip(reason)
    base = Network(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), Inputs((torch.randn(2, 4),)))
    changed = Compiled().apply(base.twin())
    for rows in (2, 3):
        x = torch.randn(rows, 4)
        assert difference([base(x)], [changed(x)]) < 1e-5
    assert changed.workload().attributes["engine"] == "compile"
    assert {p.device.type for p in changed.module.parameters()} == {"meta"}
    assert "an engine runs it already" in str(Bf16Network().why_not(changed))


@pytest.mark.parametrize("method", [m for m in NETWORK_METHODS if isinstance(m, OnnxRuntime | OpenVino)], ids=titles)
def test_engines_answer_as_the_module_does(method: Method) -> None:
    base = network()
    needed = [getattr(method, "package", ""), *(["onnxruntime", "onnx"] if "int8" in method.title else [])]
    if any(importlib.util.find_spec(package) is None for package in needed):
        assert "run pip install" in str(method.why_not(base))
        with pytest.raises(HastenError, match="does not apply"):
            method.apply(base)
        pytest.skip(f"{' and '.join(needed)} are not all installed")
    changed = method.apply(base.twin())
    within = 0.05 if "int8" in method.title else 0.03 if "bf16" in method.title else 1e-4
    assert difference(base.answers(), changed.answers()) < within
    answer = changed(*base.inputs.args, **base.inputs.kwargs)
    assert answer["kind"] == "two"
    assert outline(changed.workload()) == outline(method.rewrite(base.workload()))
    with pytest.raises(HastenError, match="tune it for float32 3x3x12x12 too"):
        changed(torch.randn(3, 3, 12, 12), scale=2.0)
