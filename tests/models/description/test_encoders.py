"""What runs once, and encoder-decoders: as many FLOPs as the real modules count, all weights, both caches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from hasten.cost import estimate
from hasten.errors import HastenError
from hasten.hardware import load_device
from hasten.models.description import describe
from hasten.models.description.architecture import Way, class_of, way_of
from hasten.models.loading.config import config_of
from hasten.runtime.subject import read_subject

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 96}
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None, "max_position_embeddings": 128,
}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 96, "pad_token_id": 0}
WHISPER = {**BART, "max_source_positions": 50, "max_target_positions": 64, "num_mel_bins": 80}

ONCE: dict[str, dict[str, Any]] = {
    "bert": {**SMALL, "architectures": ["BertForMaskedLM"], "pad_token_id": 0, "max_position_embeddings": 64},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 96, "pad_token_id": 0},
    "modernbert": {
        **SMALL,
        "pad_token_id": 0,
        "cls_token_id": 1,
        "sep_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "vit": {**SMALL, "architectures": ["ViTForImageClassification"], "image_size": 32, "patch_size": 8},
    "dinov2": {**SMALL, "image_size": 28, "patch_size": 14},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]},
    "qwen3": {
        **SMALL,
        "num_key_value_heads": 2,
        "architectures": ["Qwen3ForSequenceClassification"],
        "head_dim": 8,
        "pad_token_id": 0,
    },
    "audio-spectrogram-transformer": {**SMALL, "max_length": 64, "num_mel_bins": 32},
}
BOTH: dict[str, dict[str, Any]] = {
    "bart": BART,
    "marian": {**BART, "architectures": ["MarianMTModel"]},
    "t5": {**T5, "architectures": ["T5ForConditionalGeneration"]},
    "whisper": {**WHISPER, "architectures": ["WhisperForConditionalGeneration"]},
}


def config(kind: str, **settings: Any) -> Any:
    return config_of({"model_type": kind, **settings}, Path("config.json"))


def real(kind: str, settings: dict[str, Any]) -> Any:
    made = config(kind, **settings)
    return class_of(made)._from_config(made, attn_implementation="eager").eval()


def counted(call: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", ONCE)
def test_what_runs_once_is_one_pass_of_the_real_module(kind: str) -> None:
    work = describe(config(kind, **ONCE[kind]), prompt=24, new_tokens=4, batch=2)
    model = real(kind, ONCE[kind])
    assert way_of(model.config, type(model)) is Way.ENCODER
    assert [(p.name, p.repeats) for p in work.phases] == [("forward", 1)]
    shape = {t.name: t.shape for t in work.phases[0].cascade.tensors.values() if t.role == "input"}
    inputs = {n: torch.zeros(s, dtype=torch.int64 if n == "input_ids" else torch.float32) for n, s in shape.items()}
    assert set(inputs) == {model.main_input_name}
    assert work.flops == counted(lambda: model(**inputs))
    named = dict(model.named_parameters())
    assert sum(size for n, size in work.weights.items() if n in named) == 4 * sum(p.numel() for p in named.values())
    assert any("no tokens are made" in note for note in work.notes)


@pytest.mark.parametrize("kind", BOTH)
def test_both_halves_of_an_encoder_decoder(kind: str) -> None:
    """An encoder once, then a decoder with a cache of its own tokens and one of the source."""
    heard = kind == "whisper"
    prompt, made = 6, 4
    work = describe(config(kind, **BOTH[kind]), prompt=prompt, new_tokens=made, batch=2)
    model = real(kind, BOTH[kind])
    assert way_of(model.config, type(model)) is Way.ENCODER_DECODER
    assert [(p.name, p.repeats) for p in work.phases] == [("encode", 1), ("prefill", 1), ("decode", made)]
    source = torch.zeros(2, 80, 100) if heard else torch.zeros(2, prompt, dtype=torch.int64)
    first = prompt if heard else 1
    with torch.no_grad():
        hidden = model.get_encoder()(source)
    assert work.phase("encode").cascade.flops == counted(lambda: model.get_encoder()(source))
    ids = torch.zeros(2, first + made // 2, dtype=torch.int64)
    begun = counted(lambda: model(encoder_outputs=hidden, decoder_input_ids=ids[:, :first]))
    assert work.phase("prefill").cascade.flops == begun
    with torch.no_grad():
        kept = model(encoder_outputs=hidden, decoder_input_ids=ids, use_cache=True).past_key_values
    step = counted(
        lambda: model(encoder_outputs=hidden, decoder_input_ids=ids[:, :1], past_key_values=kept, use_cache=True)
    )
    assert work.phase("decode").cascade.flops == step
    layers, width = (2, 32) if "d_kv" in BOTH[kind] else (3, 32)
    length = 50 if heard else prompt
    assert work.state_bytes == 4 * 2 * 2 * layers * width * (length + first + made)
    named = dict(model.named_parameters())
    assert sum(size for n, size in work.weights.items() if n in named) == 4 * sum(p.numel() for p in named.values())
    cost = estimate(work, load_device("h100"))
    assert [p.name for p in cost.phases] == ["encode", "prefill", "decode"]


def test_types_hold_for_encoders_too() -> None:
    plain = describe(config("bert", **ONCE["bert"]), prompt=24, new_tokens=4)
    half = describe(config("bert", **ONCE["bert"], torch_dtype="float16"), prompt=24, new_tokens=4)
    packed = describe(config("t5", **T5), prompt=24, new_tokens=4, dtype="int8")
    assert half.weight_bytes < 0.6 * plain.weight_bytes
    assert any(name.endswith(".packed") for name in packed.weights)
    assert packed.weight_bytes < describe(config("t5", **T5), prompt=24, new_tokens=4, dtype="bf16").weight_bytes


@pytest.mark.parametrize(
    ("kind", "settings", "prompt", "words"),
    [
        ("bert", ONCE["bert"], 65, "more than the model's 64 positions"),
        ("whisper", BOTH["whisper"], 61, "more than the model's 64 positions"),
        ("bart", BART, 200, "more than the model's 128 positions"),
        ("sam_vision_model", {}, 8, ""),
    ],
)
def test_what_cannot_be_is_one_line(kind: str, settings: dict[str, Any], prompt: int, words: str) -> None:
    if not words:
        assert describe(config(kind, **settings), prompt=prompt, new_tokens=4).flops
        return
    with pytest.raises(HastenError, match=words) as error:
        describe(config(kind, **settings), prompt=prompt, new_tokens=4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"_class_name": "UNet2DConditionModel", "sample_size": 64}, "of diffusers"),
        ({"architecture": "resnet50", "pretrained_cfg": {}}, "of timm"),
        ({"hello": 1}, "names the model type 'None'"),
        ({"model_type": "of-my-own"}, "does not know"),
        ({"model_type": ["llama"]}, "does not know"),
        ([1, 2], "not a JSON object"),
    ],
)
def test_a_configuration_of_something_else_is_one_line(tmp_path: Path, text: Any, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(text))
    with pytest.raises(HastenError, match=words) as error:
        read_subject(str(path)).workload()
    assert "\n" not in str(error.value)


def test_an_old_configuration_is_known_by_its_class(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**ONCE["bert"]}))
    assert [p.name for p in read_subject(str(path), 16).workload().phases] == ["forward"]


@pytest.mark.parametrize(
    ("settings", "name", "way"),
    [
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel", Way.DECODER),
        ({"model_type": "bloom", "architectures": ["BloomModel"]}, "BloomForCausalLM", Way.DECODER),
        ({"model_type": "mpt", "architectures": ["MPTForCausalLM"]}, "MptForCausalLM", Way.DECODER),
        ({"model_type": "bert"}, "BertForMaskedLM", Way.ENCODER),
        ({"model_type": "t5", "architectures": ["T5EncoderModel"]}, "T5EncoderModel", Way.ENCODER),
        ({"model_type": "whisper"}, "WhisperForConditionalGeneration", Way.ENCODER_DECODER),
        ({"model_type": "llava"}, "LlavaForConditionalGeneration", Way.VISION_LANGUAGE),
        ({"model_type": "llama", "architectures": ["OfMyOwn"]}, "LlamaForCausalLM", Way.DECODER),
        ({"model_type": "llama", "architectures": ["BertForMaskedLM"]}, "LlamaForCausalLM", Way.DECODER),
    ],
)
def test_the_class_is_the_one_that_a_configuration_names(settings: dict[str, Any], name: str, way: Way) -> None:
    made = config_of(settings, Path("config.json"))
    found = class_of(made)
    assert found is getattr(transformers, name)
    assert way_of(made, found) is way
