"""Weights in the formats they are kept in: bytes of codes and of what is beside them, products priced by format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hasten import dtypes
from hasten.cost import estimate
from hasten.errors import HastenError
from hasten.hardware import load_device
from hasten.models.description import describe
from hasten.models.loading.config import config_of
from hasten.runtime.subject import read_subject
from hasten.workload import Op, Workload

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": 256,
    "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 320, "tie_word_embeddings": False, "max_position_embeddings": 512,
}  # fmt: skip
MATRICES = 2 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 256 * 512)
REST = 2 * 320 * 256 + 5 * 256
EXPERTS = {
    **LLAMA, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "moe_intermediate_size": 128,
    "num_experts": 8, "num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": [], "head_dim": 64,
}  # fmt: skip
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def described(config: dict[str, Any], dtype: str | None = None) -> Workload:
    return describe(config_of(config, Path("config.json")), prompt=32, new_tokens=4, dtype=dtype)


def buffers(work: Workload) -> int:
    return sum(size for name, size in work.weights.items() if "inv_freq" in name)


@pytest.mark.parametrize(("dtype", "size"), [(None, 2), ("fp16", 2), ("fp32", 4)])
def test_plain_weights_take_the_bytes_of_their_type(dtype: str | None, size: int) -> None:
    work = described(LLAMA, dtype)
    assert work.weight_bytes - buffers(work) == size * (MATRICES + REST)


@pytest.mark.parametrize(
    ("dtype", "matrices"),
    [
        ("fp8", MATRICES + MATRICES // 128**2 * 4),
        ("int8", MATRICES + 2 * 2 * (256 + 128 + 128 + 256 + 512 + 512 + 256)),
        ("int4", MATRICES // 2 + MATRICES // 128 * 2 + MATRICES // 128 // 2),
        ("nf4", MATRICES // 2 + MATRICES // 64 * 4),
    ],
)
def test_packed_weights_take_the_bytes_of_codes_and_scales(dtype: str, matrices: int) -> None:
    work = described(LLAMA, dtype)
    assert work.weight_bytes - buffers(work) == matrices + 2 * REST
    assert any("as asked" in note for note in work.notes)


def test_a_step_reads_what_is_kept() -> None:
    """Codes, scales and zero points go over main memory's port, and nothing of the unpacked weight."""
    plain, packed = described(LLAMA), described(LLAMA, "int4")
    for work in (plain, packed):
        cascade = work.phase("decode").cascade
        read: dict[str, int] = {}
        for e in cascade.einsums:
            for a in e.inputs:
                if a.tensor in work.weights and "embed_tokens" not in a.tensor:
                    read[a.tensor] = max(read.get(a.tensor, 0), cascade.access_bytes(e, a))
        unread = {n for n in work.weights if n not in read and "embed_tokens" not in n and "inv_freq" not in n}
        assert not unread
        assert all(read[n] == work.weights[n] for n in read)
    share = packed.weight_bytes / plain.weight_bytes
    assert share < 0.5


@pytest.mark.parametrize("config", [LLAMA, EXPERTS])
def test_products_are_computed_in_the_format_that_activations_are_rounded_to(config: dict[str, Any]) -> None:
    work = described({**config, "quantization_config": FP8})
    cascade = work.phase("prefill").cascade
    products = [
        e for e in cascade.einsums
        if e.op is Op.MATMUL and any(cascade.tensors[a.tensor].dtype == "fp8" for a in e.inputs)
    ]  # fmt: skip
    assert len(products) == (14 if config is LLAMA else 2 * (4 + 2))
    assert {e.map for e in products} == {"mul-fp8"}
    fast = estimate(work, load_device("h100"))
    slow = estimate(described({**config}), load_device("h100"))
    busy = {c.module: c for c in fast.phase("prefill").einsums}
    assert not any("fp8 contractions run as" in note for note in fast.notes)
    assert busy
    assert fast.peak_memory < slow.peak_memory
    assert any("fp8 contractions run as" in note for note in estimate(work, load_device("a100")).notes)


def test_a_share_of_the_experts_is_read_with_their_scales() -> None:
    work = described({**EXPERTS, "quantization_config": FP8})
    cascade = work.phase("decode").cascade
    reads = {
        a.tensor: cascade.access_bytes(e, a) for e in cascade.einsums for a in e.inputs if ".0.mlp.experts." in a.tensor
    }
    assert reads["model.layers.0.mlp.experts.gate_up_proj.packed"] == 2 * 256 * 256
    assert reads["model.layers.0.mlp.experts.gate_up_proj.scales"] == 2 * 2 * 2 * 4


def test_the_type_is_what_a_table_shows(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**LLAMA, "quantization_config": FP8}))
    found = estimate(read_subject(str(path), 32, 4).workload(), load_device("h100"))
    assert any("fp8 in blocks of 128 x 128" in note and "configuration" in note for note in found.notes)


def test_llama_3_2_1b_weighs_what_is_published(tmp_path: Path) -> None:
    """1,235,814,400 parameters in bf16: 2.47 GB, and a prompt of 8192 runs on tensor cores."""
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(
            {
                **LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64,
                "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
                "tie_word_embeddings": True, "max_position_embeddings": 131072,
            }
        )
    )  # fmt: skip
    work = read_subject(str(path), 8192, 128).workload()
    assert work.weight_bytes - buffers(work) == 2 * 1_235_814_400
    cost = estimate(work, load_device("h100"), schedule="fused")
    assert cost.phase("prefill").latency < 0.1  # in fp32, on CUDA cores, it was 0.39
    assert not any("CUDA" in c.bound for c in cost.phase("prefill").einsums if c.flops > 1e11)


@pytest.mark.parametrize("dtype", ["int5000", "fp3"])
def test_an_unknown_type_is_one_line(dtype: str) -> None:
    with pytest.raises(HastenError, match="no format of weights") as error:
        described(LLAMA, dtype)
    assert "\n" not in str(error.value)
    assert dtype not in dtypes.BITS


def test_the_command_takes_a_format(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    small, large = (read_subject(str(path), 32, 4, dtype=d).workload().weight_bytes for d in ("q4_0", "bf16"))
    assert small < large
    with pytest.raises(HastenError, match="--dtype goes with"):
        read_subject("mamba-130m", dtype="int4")
    with pytest.raises(HastenError, match="HEIGHTxWIDTH"):
        read_subject(str(path), image="448")
