"""Folders of mixtures of experts: one tensor a matrix, and gpt-oss's MXFP4."""

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

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
}
KINDS: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 3, "intermediate_size": 96},
    "Qwen3Moe": {"num_experts": 3, "moe_intermediate_size": 32, "intermediate_size": 64, "num_experts_per_tok": 2,
                 "mlp_only_layers": [0]},
    "Qwen2Moe": {"num_experts": 3, "moe_intermediate_size": 32, "intermediate_size": 64, "num_experts_per_tok": 2,
                 "shared_expert_intermediate_size": 96},
    "GptOss": {"num_local_experts": 3, "intermediate_size": 96, "head_dim": 32, "num_experts_per_tok": 2},
}  # fmt: skip
_VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def network_of(kind: str) -> Any:
    import transformers

    torch.manual_seed(2)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **KINDS[kind])
    network = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_as_transformers_writes_it(kind: str, tmp_path: Path) -> None:
    network = network_of(kind)
    network.save_pretrained(tmp_path)
    loaded = load_network(tmp_path).network
    ids = torch.arange(7)[None]
    assert torch.equal(loaded(ids).logits, network(ids).logits)


def mxfp4_folder(folder: Path) -> Any:
    """A gpt-oss folder with packed experts as they are published; the network with the numbers that those stand for."""
    network = network_of("GptOss")
    network.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    for name, parameter in network.named_parameters():
        if not name.endswith(("gate_up_proj", "down_proj")):
            continue
        experts, columns, rows = parameter.shape
        codes = torch.randint(0, 16, (experts, rows, columns // 32, 32), dtype=torch.uint8)
        scales = torch.randint(122, 126, (experts, rows, columns // 32), dtype=torch.uint8)
        signs = 1 - 2 * (codes >> 3).float()
        values = _VALUES[(codes & 7).long()] * signs * torch.exp2(scales.float() - 127)[..., None]
        parameter.data = values.flatten(2).transpose(1, 2).contiguous()
        del weights[name]
        weights[f"{name}_blocks"] = codes[..., ::2] | codes[..., 1::2] << 4
        weights[f"{name}_scales"] = scales
    save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    (folder / "config.json").write_text(json.dumps(config))
    return network


def test_mxfp4_stays_as_it_is_in_the_folder(tmp_path: Path) -> None:
    network = mxfp4_folder(tmp_path)
    ids = torch.arange(9)[None]
    wanted = network(ids).logits
    torch.testing.assert_close(load_network(tmp_path).network(ids).logits, wanted)
    packed = load_packed(tmp_path).network
    torch.testing.assert_close(packed(ids).logits, wanted, rtol=1e-4, atol=1e-4)
    experts = packed.model.layers[1].mlp.experts
    assert isinstance(experts, PackedGatedExperts)
    held = sum(t.nbytes for name, t in experts.named_buffers())
    assert held == 3 * (2 * 96 * 64 + 64 * 96) // 32 * 17, "17 bytes for 32 weights"


def test_what_is_missing_or_bent_is_one_line(tmp_path: Path) -> None:
    mxfp4_folder(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    blocks = next(k for k in whole if k.endswith("down_proj_blocks"))
    scales = blocks.replace("_blocks", "_scales")
    bent = [
        ({**whole, scales: whole[scales][:, :-1].contiguous()}, "no MXFP4 weight"),
        ({**whole, scales: torch.full_like(whole[scales], 255)}, "not finite"),
        ({k: t for k, t in whole.items() if k != scales}, "no MXFP4 weight"),
        ({**whole, blocks: whole[blocks][:2].contiguous(), scales: whole[scales][:2].contiguous()}, "asks for other"),
        ({k: t for k, t in whole.items() if "_blocks" not in k and "_scales" not in k}, "has none"),
    ]
    for tensors, said in bent:
        save_file(tensors, file)
        with pytest.raises(HastenError, match=said) as told:
            load_packed(tmp_path)
        assert "\n" not in str(told.value)


def test_an_expert_that_lacks_a_matrix_is_one_line(tmp_path: Path) -> None:
    network_of("Mixtral").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    one = next((k for k in whole if "experts.1." in k), None)
    if one is None:
        pytest.skip("this transformers writes stacked experts")
    save_file({k: t for k, t in whole.items() if k != one}, file)
    with pytest.raises(HastenError, match="lacks matrices of some of its 3 experts") as told:
        load_network(tmp_path)
    assert "\n" not in str(told.value)
