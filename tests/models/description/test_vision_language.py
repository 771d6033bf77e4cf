"""Models of language and vision: the tower once an image, as the real module counts, its tokens before the prompt's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hasten.errors import HastenError
from hasten.models.description import describe
from hasten.models.description.architecture import Way, class_of, way_of
from hasten.models.loading.config import config_of
from hasten.runtime.subject import read_subject

TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "max_position_embeddings": 512,
}  # fmt: skip
TOWER = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
SEEING: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {
        "text_config": {**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        "vision_config": {
            "depth": 3, "hidden_size": 32, "num_heads": 2, "intermediate_size": 40, "out_hidden_size": 32,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
            "fullatt_block_indexes": [1],
        },
        "image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8,
    },
    "llava": {
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": {**TOWER, "model_type": "clip_vision_model", "image_size": 28, "patch_size": 7},
        "image_token_index": 5,
    },
    "gemma3": {
        "text_config": {**TEXT, "head_dim": 8, "sliding_window": 512},
        "vision_config": {**TOWER, "model_type": "siglip_vision_model", "image_size": 32, "patch_size": 4},
        "mm_tokens_per_image": 16, "image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7,
    },
    "llama4": {
        "text_config": {
            **TEXT, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 4, "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 1, "attention_chunk_size": 64,
        },
        "vision_config": {
            **TOWER, "intermediate_size": 96, "image_size": 32, "patch_size": 4, "projector_input_dim": 20,
            "projector_output_dim": 20, "vision_output_dim": 20, "pixel_shuffle_ratio": 0.5,
        },
        "image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7,
    },
    "smolvlm": {
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": {**TOWER, "model_type": "smolvlm_vision", "image_size": 32, "patch_size": 4},
        "scale_factor": 2, "image_token_id": 5,
    },
}  # fmt: skip
# An image of 112 x 56 is 8 x 4 patches in the first, merged by four; in the others the configuration fixes it.
TOKENS = {"qwen2_5_vl": 8, "llava": 16, "gemma3": 16, "llama4": 16, "smolvlm": 16}


def config(kind: str, **settings: Any) -> Any:
    return config_of({"model_type": kind, **SEEING[kind], **settings}, Path("config.json"))


@pytest.mark.parametrize("kind", SEEING)
def test_an_image_is_seen_once_and_its_tokens_stand_before_the_prompt(kind: str) -> None:
    made = config(kind)
    model = class_of(made)._from_config(config(kind), attn_implementation="eager").eval()
    assert way_of(made, type(model)) is Way.VISION_LANGUAGE
    work = describe(made, prompt=6, new_tokens=4, image=(112, 56))
    assert [(p.name, p.repeats) for p in work.phases] == [("vision", 1), ("prefill", 1), ("decode", 4)]
    assert work.attributes["image_tokens"] == TOKENS[kind]
    assert any(f"{TOKENS[kind]} tokens before the 6 of the prompt" in note for note in work.notes)
    shape = next(t.shape for t in work.phases[0].cascade.tensors.values() if t.role == "input")
    fixed = {"image_grid_thw": torch.tensor([[1, 8, 4]])} if kind == "qwen2_5_vl" else {}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.get_image_features(torch.ones(shape), **fixed)
    assert work.phase("vision").cascade.flops == counter.get_total_flops()
    named = dict(model.named_parameters())
    assert sum(size for n, size in work.weights.items() if n in named) == 4 * sum(p.numel() for p in named.values())
    if kind == "llama4":  # transformers runs every expert for every token
        return
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, 6 + TOKENS[kind], dtype=torch.int64), logits_to_keep=1)
    assert work.phase("prefill").cascade.flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_a_larger_image_is_more_tokens() -> None:
    small, large = (describe(config("qwen2_5_vl"), prompt=6, new_tokens=4, image=i) for i in ((56, 56), (112, 112)))
    assert (small.attributes["image_tokens"], large.attributes["image_tokens"]) == (4, 16)
    two = describe(config("qwen2_5_vl"), prompt=6, new_tokens=4, image=(56, 56), batch=2)
    assert two.attributes["image_tokens"] == 4
    assert two.phase("vision").cascade.flops == 2 * small.phase("vision").cascade.flops


def test_a_fixed_size_is_said() -> None:
    work = describe(config("llava"), prompt=6, new_tokens=4, image=(100, 50))
    assert any("28 x 28" in note and "100 x 50 is resized" in note for note in work.notes)


def test_types_hold_for_towers_too() -> None:
    said = {"quant_method": "fp8", "modules_to_not_convert": ["lm_head", "visual"]}
    work = describe(config("qwen2_5_vl", torch_dtype="bfloat16", quantization_config=said), prompt=6, new_tokens=4)
    packed = [name for name in work.weights if name.endswith(".packed")]
    assert packed
    assert not any("visual" in name for name in packed)


def test_a_configuration_without_a_tower_is_the_language_model_alone() -> None:
    work = describe(config("llama4", vision_config=None), prompt=6, new_tokens=4)
    assert [p.name for p in work.phases] == ["prefill", "decode"]
    assert any("no vision_config" in note for note in work.notes)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("mllama", "takes images in a way of its own"),
        ("qwen2_audio", "takes sound beside text"),
        ("bark", "makes tokens in a way of its own"),
        ("musicgen", "no description of"),
        ("encodec", "no description of"),
        ("decision_transformer", "takes states"),
    ],
)
def test_what_is_not_described_is_one_line(kind: str, words: str) -> None:
    with pytest.raises(HastenError, match=words) as error:
        describe(config_of({"model_type": kind}, Path("config.json")), prompt=6, new_tokens=4)
    assert "\n" not in str(error.value)


def test_a_description_leaves_the_configuration_as_it_was(tmp_path: Path) -> None:
    made = config("llava")
    before = json.dumps(made.to_dict(), default=str)
    describe(made, prompt=6, new_tokens=4)
    assert json.dumps(made.to_dict(), default=str) == before


def test_the_size_of_an_image_is_read_from_the_command(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "qwen2_5_vl", **SEEING["qwen2_5_vl"]}))
    assert read_subject(str(path), 6, 4, image="56x112").workload().attributes["image_tokens"] == 8
