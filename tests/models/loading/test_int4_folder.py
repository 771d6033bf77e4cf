"""Folders with int4 weights: the values that each method's own packing means, unpacked and packed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hasten.errors import HastenError
from hasten.models import load_network, load_packed
from hasten.nn import PackedGatedExperts
from hasten.nn.packed import PackedLinear

from ..conftest import logits, random_network, tiny

GROUP = 32
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)


def words(values: torch.Tensor, axis: int, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """Whole numbers of 0 to 15 in int32, eight along an axis; nibble i holds number order[i]."""
    moved = values.to(torch.int64).movedim(axis, -1).unflatten(-1, (-1, 8))
    found = sum(moved[..., place] << 4 * i for i, place in enumerate(order))
    assert isinstance(found, torch.Tensor)
    return (found - ((found >> 31) << 32)).to(torch.int32).movedim(-1, axis).contiguous()


def stored(method: str, q: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> dict[str, torch.Tensor]:
    """A weight (out, in) with groups (out, in / 32), as the method writes it."""
    if method == "compressed-tensors":
        return {
            "weight_packed": words(q, 1),
            "weight_scale": scales.to(torch.bfloat16),
            "weight_zero_point": words(zeros, 0),
            "weight_shape": torch.tensor(q.shape),
        }
    if method == "awq":
        return {
            "qweight": words(q.t(), 1, AWQ_COLUMNS),
            "qzeros": words(zeros.t(), 1, AWQ_COLUMNS),
            "scales": scales.t().contiguous().half(),
        }
    return {
        "qweight": words(q.t(), 0),
        "qzeros": words((zeros.t() - 1) & 15, 1),
        "scales": scales.t().contiguous().half(),
        "g_idx": (torch.arange(q.shape[1]) // GROUP).to(torch.int32),
    }


SAID: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": GROUP}, "targets": ["Linear"]}},
    },
}


def quantized(folder: Path, method: str, network: Any = None) -> dict[str, torch.Tensor]:
    """Writes a folder with the layers' matrices packed; returns what they mean."""
    (tiny("llama") if network is None else network).save_pretrained(folder)
    generator = torch.Generator().manual_seed(1)
    meant, tensors = {}, {}
    for name, tensor in one_by_one(load_file(folder / "model.safetensors")).items():
        if "_proj.weight" not in name and ".experts." not in name:
            tensors[name] = tensor
            continue
        q = torch.randint(0, 16, tensor.shape, generator=generator)
        groups = (tensor.shape[0], tensor.shape[1] // GROUP)
        scales = (torch.rand(groups, generator=generator) * 0.02 + 0.01).to(torch.bfloat16).float()
        zeros = torch.randint(0, 16, groups, generator=generator)
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.{part}": t for part, t in stored(method, q, scales, zeros).items()}
        meant[name] = ((q.unflatten(1, (-1, GROUP)) - zeros[..., None]) * scales[..., None]).flatten(1)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    say(folder, SAID[method])
    return meant


def one_by_one(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With a tensor for each matrix of an expert, as folders had them that were quantized; those that are so stay."""
    found = {}
    for name, tensor in tensors.items():
        layer, experts, part = name.partition(".experts.")
        if not experts or tensor.dim() != 3:
            found[name] = tensor
            continue
        for number, matrix in enumerate(tensor):
            parts = ("gate_proj", "up_proj") if part == "gate_up_proj" else (part,)
            for one, rows in zip(parts, matrix.chunk(len(parts)), strict=True):
                found[f"{layer}.experts.{number}.{one}.weight"] = rows.contiguous()
    return found


def say(folder: Path, quantization: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))


@pytest.mark.parametrize("method", SAID)
def test_weights_are_what_the_method_means(tmp_path: Path, ids: torch.Tensor, method: str) -> None:
    meant = quantized(tmp_path, method)
    plain = load_network(tmp_path).network
    for name, weight in meant.items():
        assert torch.equal(plain.get_parameter(name), weight), name
    packed = load_packed(tmp_path).network
    layers = {f"{n}.weight": m for n, m in packed.named_modules() if isinstance(m, PackedLinear)}
    assert layers.keys() == meant.keys()
    for name, layer in layers.items():
        assert (layer.bits, layer.group) == (4, GROUP)
        # A zero point times a scale is rounded to fp16.
        torch.testing.assert_close(layer.dequantize(), meant[name], rtol=0, atol=15 * 0.03 * 2**-11)
    torch.testing.assert_close(logits(packed, ids), logits(plain, ids), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 3}, "of 3 bits"),
        ({"quant_method": "hqq"}, r"holds quantized weights \(hqq\); hasten reads int4 of gptq"),
        ({"quant_method": "awq", "version": "gemv"}, "in the version gemv"),
        ({"quant_method": "compressed-tensors"}, r"\(compressed-tensors\), but has none"),
    ],
)
def test_what_has_no_counterpart_is_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    quantized(tmp_path, "gptq")
    say(tmp_path, {**SAID["gptq"], **changes})
    for load in (load_network, load_packed):
        with pytest.raises(HastenError, match=message) as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)


def test_columns_in_another_order_are_refused(tmp_path: Path) -> None:
    quantized(tmp_path, "gptq")
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.g_idx"
    tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(HastenError, match="act-order"):
        load_packed(tmp_path)


MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gptq": ("Qwen3MoeConfig", {"num_experts": 3, "moe_intermediate_size": 64, "num_experts_per_tok": 2}),
    "awq": ("MixtralConfig", {"num_local_experts": 3}),
    "compressed-tensors": (
        "Qwen2MoeConfig",
        {
            "num_experts": 3,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 96,
            "num_experts_per_tok": 2,
        },
    ),
}


@pytest.mark.parametrize("method", SAID)
def test_experts_stay_packed(tmp_path: Path, ids: torch.Tensor, method: str) -> None:
    kind, sizes = MIXTURES[method]
    meant = quantized(tmp_path, method, random_network(kind, **sizes))
    assert sum(".experts.1." in name for name in meant) == 2 * 3
    plain, packed = load_network(tmp_path).network, load_packed(tmp_path, int8=True).network
    for index, layer in enumerate(packed.model.layers):
        experts = layer.mlp.experts
        assert isinstance(experts, PackedGatedExperts)
        assert experts.int8
        known = plain.model.layers[index].mlp.experts
        for name, stack in experts.stacks().items():
            assert (stack.bits, stack.group) == (4, GROUP)
            torch.testing.assert_close(stack.dequantize(), getattr(known, name), rtol=0, atol=15 * 0.03 * 2**-11)
    exact = load_packed(tmp_path).network
    torch.testing.assert_close(logits(exact, ids), logits(plain, ids), rtol=0, atol=0.02)


def test_experts_that_the_config_does_not_ask_for_are_one_line(tmp_path: Path) -> None:
    kind, sizes = MIXTURES["gptq"]
    quantized(tmp_path, "gptq", random_network(kind, **sizes))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "moe_intermediate_size": 96}))
    with pytest.raises(HastenError, match="have other shapes than its config asks for") as caught:
        load_packed(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_expert_without_one_of_its_matrices_is_one_line(tmp_path: Path) -> None:
    kind, sizes = MIXTURES["gptq"]
    quantized(tmp_path, "gptq", random_network(kind, **sizes))
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    save_file({k: t for k, t in whole.items() if ".experts.1.up_proj." not in k}, file)
    with pytest.raises(HastenError, match="lacks matrices of some of its 3 experts"):
        load_packed(tmp_path)
