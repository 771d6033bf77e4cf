"""The bytes of weights follow from a configuration's words: held to sizes of published files, and counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
from gguf.constants import GGML_QUANT_SIZES

from hasten import dtypes
from hasten.errors import HastenError
from hasten.models.loading.ggml_types import FILE_TYPES, ggml_format
from hasten.models.loading.parameter_kinds import Kind, Modules, kind_of
from hasten.models.loading.weight_types import weight_types

UP = ("model.layers.0.mlp.up_proj.weight", (256, 512))
EXPERTS = ("model.layers.0.mlp.experts.gate_up_proj", (4, 256, 512))
COUNT = 256 * 512


def _llama(hidden: int, inner: int, layers: int, vocabulary: int, kv: int, tied: bool) -> dict[str, tuple[int, ...]]:
    """Parameters of a Llama, by hand."""
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    if not tied:
        found["lm_head.weight"] = (vocabulary, hidden)
    for layer in range(layers):
        path = f"model.layers.{layer}"
        for name, rows in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden)):
            found[f"{path}.self_attn.{name}_proj.weight"] = (rows, hidden)
        found |= {f"{path}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        found[f"{path}.mlp.down_proj.weight"] = (hidden, inner)
        found |= {f"{path}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    return found


def _total(config: dict[str, Any], dtype: str | None, shapes: dict[str, tuple[int, ...]]) -> int:
    types = weight_types(config, dtype)
    return sum(types.of(name, shape).nbytes(shape) for name, shape in shapes.items())


SEVEN = (
    {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32},
    (4096, 11008, 32, 32000, 4096, False),
)
EIGHT = (
    {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
    (4096, 14336, 32, 128256, 1024, False),
)
SEVENTY = (
    {"num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8},
    (8192, 28672, 80, 32000, 1024, False),
)


# Sizes as their publishers list them: the Llama 2 files in decimal GB to two digits, a vocabulary of a few MB within.
@pytest.mark.parametrize(
    ("model", "dtype", "published"),
    [
        (SEVEN, "q3_k_s", 2.95), (SEVEN, "q3_k_m", 3.30), (SEVEN, "q3_k_l", 3.60), (SEVEN, "q4_0", 3.83),
        (SEVEN, "q4_k_s", 3.86), (SEVEN, "q4_k_m", 4.08), (SEVEN, "q5_0", 4.65), (SEVEN, "q5_k_s", 4.65),
        (SEVEN, "q5_k_m", 4.78), (SEVEN, "q6_k", 5.53), (SEVEN, "q8_0", 7.16), (SEVEN, "f16", 13.48),
        (SEVENTY, "q4_k_m", 41.42), (EIGHT, "q4_k_m", 4.92), (EIGHT, "q8_0", 8.54),
    ],
)  # fmt: skip
def test_a_file_type_costs_what_published_files_weigh(model: Any, dtype: str, published: float) -> None:
    config, sizes = model
    assert _total(config, dtype, _llama(*sizes)) / 1e9 == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize("name", sorted(k.name for k in GGML_QUANT_SIZES))
def test_every_ggml_format_takes_the_bytes_of_its_blocks(name: str) -> None:
    block, size = next(v for k, v in GGML_QUANT_SIZES.items() if k.name == name)
    assert ggml_format(name).nbytes((3, 4 * block)) == 12 * size
    assert ggml_format(name).dtype in dtypes.BITS


@pytest.mark.parametrize("name", FILE_TYPES)
def test_every_file_type_has_a_format_for_every_width(name: str) -> None:
    for width in (512, 96, 50):
        assert _total({"num_hidden_layers": 2}, name, {UP[0]: (7, width)}) > 0


def _said(**quantization: Any) -> dict[str, Any]:
    return {"torch_dtype": "bfloat16", "quantization_config": quantization}


GROUPS = {
    "config_groups": {
        "group_0": {
            "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True},
            "targets": ["Linear"],
        }
    }
}
BY_TOKEN = {
    "config_groups": {
        "group_0": {
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
            "input_activations": {"num_bits": 8, "type": "float", "dynamic": True},
            "targets": ["Linear"],
        }
    }
}


# (what is said, bytes of one matrix of 256 x 512, the format that it is multiplied in)
@pytest.mark.parametrize(
    ("said", "expected", "product"),
    [
        (_said(quant_method="fp8", activation_scheme="dynamic", weight_block_size=[128, 128]), COUNT + 32, "fp8"),
        (_said(quant_method="fbgemm_fp8"), COUNT + 256 * 4, "fp8"),
        (_said(quant_method="gptq", bits=4, group_size=128), COUNT // 2 + 1024 * 2 + 1024 // 2 + 512 * 4, ""),
        (_said(quant_method="gptq", bits=8, group_size=-1), COUNT + 256 * 2 + 256 + 512 * 4, ""),
        (_said(quant_method="awq", bits=4, group_size=128), COUNT // 2 + 1024 * 2 + 1024 // 2, ""),
        (_said(quant_method="auto-round", bits=2, group_size=32), COUNT // 4 + 4096 * 2 + 1024, ""),
        (_said(quant_method="bitsandbytes", load_in_4bit=True), COUNT // 2 + COUNT // 64 * 4, ""),
        (_said(load_in_4bit=True, bnb_4bit_use_double_quant=True), COUNT // 2 + COUNT // 64 + COUNT // 4096, ""),
        (_said(quant_method="bitsandbytes", load_in_8bit=True), COUNT + 256 * 4, "int8"),
        (_said(quant_method="compressed-tensors", **GROUPS), COUNT // 2 + 1024 * 2, ""),
        (_said(quant_method="compressed-tensors", **BY_TOKEN), COUNT + 256 * 2, "fp8"),
        (_said(quant_method="modelopt", quant_algo="NVFP4"), COUNT // 2 + COUNT // 16 + 8, "fp4"),
        (_said(quant_method="eetq"), COUNT + 256 * 2, ""),
        (_said(quant_method="hqq", quant_config={"weight_quant_params": {"nbits": 4, "group_size": 64}}),
         COUNT // 2 + COUNT // 64 * 4, ""),
        (_said(quant_method="torchao", quant_type="int8_weight_only"), COUNT + 256 * 2, ""),
        (_said(quant_method="quanto", weights="int8"), COUNT + 256 * 2, ""),
        (_said(quant_method="bitnet"), COUNT // 4 + 2, "int8"),
        ({"torch_dtype": "bfloat16", "quantization": {"bits": 4, "group_size": 64}}, COUNT // 2 + COUNT // 64 * 4, ""),
    ],
)  # fmt: skip
def test_a_quantization_keeps_codes_scales_and_zeros(said: dict[str, Any], expected: int, product: str) -> None:
    types = weight_types(said)
    kept = types.of(*UP)
    assert kept.nbytes(UP[1]) == expected
    assert kept.product == product
    norm = types.of("model.norm.weight", (64,))
    assert (norm.plain, norm.dtype) == (True, "bf16")
    if "quantization" not in said:
        for name in ("lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.gate.weight"):
            assert types.of(name, (256, 512)).plain, name


def test_only_experts_are_mxfp4() -> None:
    types = weight_types({"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}})
    assert types.activations == "bf16"
    assert types.of(*EXPERTS).nbytes(EXPERTS[1]) == 4 * COUNT // 2 + 4 * COUNT // 32
    assert types.of(*UP).plain


def test_what_is_left_out_stays_as_it_was() -> None:
    types = weight_types(
        _said(quant_method="fp8", weight_block_size=[128, 128], modules_to_not_convert=["visual", "model.layers.0.mlp"])
    )
    assert types.of(*UP).plain
    assert types.of("model.visual.blocks.3.attn.qkv.weight", (96, 32)).plain
    assert types.of("model.language_model.layers.0.mlp.up_proj.weight", (96, 32)).plain
    assert not types.of("model.language_model.layers.1.mlp.up_proj.weight", (96, 32)).plain


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        ("lm_head", "lm_head", True),
        ("re:.*lm_head", "model.lm_head", True),
        ("re:visual.*", "model.layers.0.mlp", False),
        ("model.layers.1", "model.layers.11.mlp", False),
        ("layers.*.self_attn", "model.layers.3.self_attn.q_proj", True),
        ("gate", "model.layers.3.mlp.gate_proj", False),
        ("[", "model.layers.3", False),
    ],
)  # fmt: skip
def test_modules_are_named_from_point_to_point(pattern: str, name: str, found: bool) -> None:
    assert (name in Modules([pattern])) is found


@pytest.mark.parametrize(
    ("config", "expected", "words"),
    [
        ({}, "fp32", "names no type"),
        ({"torch_dtype": "bfloat16"}, "bf16", "as the configuration says"),
        ({"dtype": "float16"}, "fp16", "as the configuration says"),
        ({"text_config": {"torch_dtype": "bfloat16"}}, "bf16", "as the configuration says"),
        ({"vision_config": {"dtype": "float16"}}, "fp16", "as the configuration says"),
    ],
)  # fmt: skip
def test_a_plain_type_is_read_where_it_is(config: dict[str, Any], expected: str, words: str) -> None:
    types = weight_types(config)
    assert types.of(*UP).dtype == types.activations == expected
    assert words in types.assumed


@pytest.mark.parametrize(
    ("dtype", "bits"), [("bf16", 16), ("float32", 32), ("fp8", 8), ("int4", 4), ("nf4", 4), ("Q8_0", 8)]
)
def test_what_is_asked_for_holds_over_what_a_configuration_says(dtype: str, bits: int) -> None:
    said = _said(quant_method="gptq", bits=2, group_size=64)
    types = weight_types(said, dtype)
    assert dtypes.BITS[types.of(*UP).dtype] == bits
    assert "as asked" in types.assumed


@pytest.mark.parametrize(
    "config",
    [
        _said(quant_method="of-my-own"),
        _said(quant_method="gptq", bits=7),
        _said(quant_method="gptq", bits=4, group_size="many"),
        {"torch_dtype": "posit16"},
    ],
)  # fmt: skip
def test_what_is_not_known_is_one_line(config: dict[str, Any]) -> None:
    with pytest.raises(HastenError) as error:
        weight_types(config)
    assert "\n" not in str(error.value)


def test_an_unknown_format_lists_the_known_ones() -> None:
    with pytest.raises(HastenError, match="q4_k_m"):
        weight_types({}, "int5000")


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("bert.encoder.layer.0.output.dense.weight", (4, 4), Kind.MATRIX),
        ("bert.embeddings.position_embeddings.weight", (4, 4), Kind.EMBEDDING),
        ("cls.predictions.decoder.weight", (4, 4), Kind.HEAD),
        ("transformer.wte.weight", (4, 4), Kind.EMBEDDING),
        ("shared.weight", (4, 4), Kind.EMBEDDING),
        ("model.layers.0.block_sparse_moe.gate.weight", (4, 4), Kind.ROUTER),
        ("model.layers.0.feed_forward.experts.down_proj", (4, 4, 4), Kind.EXPERTS),
        ("model.layers.0.mlp.experts.gate_up_proj_bias", (4, 4), Kind.REST),
        ("visual.patch_embed.proj.weight", (4, 3, 2, 2, 2), Kind.REST),
        ("backbone.layers.0.mixer.A_log", (4, 4), Kind.REST),
    ],
)  # fmt: skip
def test_a_parameter_is_known_by_its_name(name: str, shape: tuple[int, ...], kind: Kind) -> None:
    assert kind_of(name, shape) is kind


def test_weights_of_fp8_have_activations_of_more_bits() -> None:
    types = weight_types({"torch_dtype": "float8_e4m3fn"})
    assert (types.activations, types.of(*UP).dtype) == ("bf16", "fp8")
    assert types.of("model.norm.weight", (64,)).dtype == "bf16"
