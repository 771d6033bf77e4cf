"""Loading real and tiny models: the same logits as what was written, and one line for what cannot be."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hasten.data import assets
from hasten.errors import HastenError
from hasten.kernels.packed_linear import dequantize_reference
from hasten.models import load_network, load_packed
from hasten.models.loading.config import build, read_config
from hasten.models.loading.gguf import GGUFFile
from hasten.models.loading.gguf_config import gguf_config

from ..conftest import FAMILIES, logits, tiny, vocabulary, write_gguf, write_random

Kind = gguf.GGMLQuantizationType


def as_stored(network: Any, kind: Kind) -> Any:
    """``network`` with its matrices rounded as ``kind`` rounds them."""
    for parameter in network.parameters():
        if parameter.ndim == 2:
            weight = parameter.detach().numpy()
            parameter.data = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind))
    return network


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.Q8_0, Kind.Q4_1, Kind.Q4_0])
@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_gives_back_the_network_that_was_written(
    tmp_path: Path, ids: torch.Tensor, family: str, kind: Kind
) -> None:
    network = tiny(family)
    loaded = load_network(write_gguf(network, tmp_path / "m.gguf", family, kind))
    assert type(loaded.network) is type(network)
    assert not loaded.network.training
    expected = {n: p.detach() for n, p in as_stored(network, kind).named_parameters()}
    found = dict(loaded.network.named_parameters())
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
    torch.testing.assert_close(logits(loaded.network, ids), logits(network, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_agrees_with_llama_cpp(tmp_path: Path, ids: torch.Tensor, family: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    path = write_gguf(tiny(family), tmp_path / "m.gguf", family)
    # llama.cpp's llama has no window, so what is compared stays inside it.
    tokens = ids[0, : 8 if family == "mistral" else 24].tolist()
    peer = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False, type_k=0, type_v=0, n_threads=2)
    peer.eval(tokens)
    expected = torch.from_numpy(np.array(peer.scores[: len(tokens)]))
    found = logits(load_network(path).network, torch.tensor([tokens]))[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, "linear"),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 32,
            },
            "yarn",
        ),
    ],
)
def test_scaled_rotary_positions_agree_with_llama_cpp(
    tmp_path: Path, ids: torch.Tensor, scaling: dict[str, Any], expected: str
) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    path = write_gguf(tiny("qwen2"), tmp_path / "m.gguf", "qwen2", metadata=scaling)
    loaded = load_network(path)
    assert loaded.network.config.rope_parameters["rope_type"] == expected
    peer = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False, type_k=0, type_v=0, n_threads=2)
    peer.eval(ids[0].tolist())
    seen = torch.from_numpy(np.array(peer.scores[: ids.shape[1]]))
    torch.testing.assert_close(logits(loaded.network, ids)[0], seen, rtol=0, atol=2e-3)


def test_llama3_frequencies_are_recognized(tmp_path: Path, ids: torch.Tensor) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    network = tiny("llama", rope_parameters=rope, hidden_size=256)
    plain = tiny("llama", rope_parameters={"rope_type": "default", "rope_theta": 5e5}, hidden_size=256)
    divisors = plain.model.rotary_emb.inv_freq / network.model.rotary_emb.inv_freq
    assert divisors.max() == pytest.approx(8, rel=1e-4)
    path = write_gguf(network, tmp_path / "m.gguf", "llama", tensors={"rope_freqs.weight": divisors.numpy()})
    found = load_network(path).network
    assert found.config.rope_parameters == rope
    torch.testing.assert_close(logits(found, ids), logits(network, ids), rtol=0, atol=1e-5)


def test_packed_weights_are_in_the_networks_order(tmp_path: Path) -> None:
    path = write_gguf(tiny("llama with biases"), tmp_path / "m.gguf", "llama with biases", Kind.Q4_1)
    loaded = load_network(path)
    for name, parameter in [*loaded.network.named_parameters(), ("lm_head.weight", loaded.network.lm_head.weight)]:
        found = loaded.packed(name)
        if parameter.ndim == 1:
            assert found is None
            continue
        assert found is not None
        values = dequantize_reference(found.packed, found.scales, found.mins, found.bits, 32)
        assert torch.equal(values, parameter), name
    assert loaded.packed("model.nothing") is None


def test_tied_weights_stay_one(tmp_path: Path) -> None:
    for family, tied in (("qwen2", True), ("qwen3", False)):
        network = load_network(write_gguf(tiny(family), tmp_path / "m.gguf", family)).network
        assert (network.lm_head.weight is network.model.embed_tokens.weight) is tied


def test_weights_take_the_type_asked_for(tmp_path: Path, ids: torch.Tensor) -> None:
    path = write_gguf(tiny("llama"), tmp_path / "m.gguf", "llama")
    network = load_network(path, dtype=torch.bfloat16).network
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(logits(network, ids).float(), logits(load_network(path).network, ids), atol=0.3, rtol=0)


def test_the_fingerprint_follows_the_weights_not_the_name(tmp_path: Path) -> None:
    first = write_gguf(tiny("llama"), tmp_path / "a.gguf", "llama")
    same = shutil.copy(first, tmp_path / "b.gguf")
    other = write_gguf(tiny("llama", rms_norm_eps=2e-5), tmp_path / "c.gguf", "llama")
    assert load_network(first).fingerprint == load_network(same).fingerprint
    assert load_network(first).fingerprint != load_network(other).fingerprint


def test_a_model_without_bos_ends_at_its_eos(tmp_path: Path) -> None:
    loaded = load_network(write_gguf(tiny("llama"), tmp_path / "m.gguf", "llama"))
    assert loaded.network.generation_config.eos_token_id == 2
    assert loaded.network.generation_config.pad_token_id == 0
    assert loaded.tokenizer.eos_token == "<|im_end|>"


def test_numbers_for_none_load(tmp_path: Path, ids: torch.Tensor) -> None:
    network = tiny("llama")
    path = write_gguf(network, tmp_path / "m.gguf", "llama", metadata={"attention.sliding_window": 0})
    none = GGUFFile(path)
    none.metadata |= {"tokenizer.ggml.padding_token_id": (1 << 32) - 1, "tokenizer.ggml.bos_token_id": 100_000}
    config = gguf_config(none)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (None, None, 2)
    assert config.model_type == "llama"
    torch.testing.assert_close(logits(load_network(path).network, ids), logits(network, ids), rtol=0, atol=1e-5)


def test_a_split_model_loads_and_is_copied_whole(tmp_path: Path, ids: torch.Tensor) -> None:
    whole = write_gguf(tiny("llama"), tmp_path / "m.gguf", "llama", Kind.Q4_0)
    file = GGUFFile(whole)
    names = sorted(file.tensors)
    for number, part in enumerate((names[:5], names[5:])):
        writer = gguf.GGUFWriter(tmp_path / f"s-0000{number + 1}-of-00002.gguf", "llama")
        if number == 0:
            for key, value in file.metadata.items():
                if key.startswith("llama.") and isinstance(value, float):
                    writer.add_float32(key, value)
                elif key.startswith("llama."):
                    writer.add_uint32(key, value)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        for name in part:
            stored = Kind(file.tensors[name].kind)
            values = file.dequantize(name) if stored is Kind.F32 else file.raw(name)
            writer.add_tensor(name, values.numpy(), raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    for load in (load_network, load_packed):
        found = load(tmp_path / "s-00002-of-00002.gguf")
        assert torch.equal(logits(found.network, ids), logits(load(whole).network, ids))
    (tmp_path / "copy").mkdir()
    assert load_network(found.copy_to(tmp_path / "copy")).fingerprint == found.fingerprint


IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "attention.head_count is 0": {"attention.head_count": 0},
    "rope.freq_base is nan": {"rope.freq_base": float("nan")},
    "attention.layer_norm_rms_epsilon is inf": {"attention.layer_norm_rms_epsilon": float("inf")},
    "attention.layer_norm_rms_epsilon is -1": {"attention.layer_norm_rms_epsilon": -1.0},
    "embedding_length is 4294967295": {"embedding_length": (1 << 32) - 1},
    "block_count is cat": {"block_count": "cat"},
    "its config says 90000000": {"block_count": 90_000_000},
    "its config says 1:": {"block_count": 1},
    "its config asks for": {"feed_forward_length": 1 << 26},
    "for 3 KV heads": {"attention.head_count_kv": 3},
    "rope.dimension_count differs": {"rope.dimension_count": 16},
    "lacks llama.expert_used_count": {"expert_count": 8},
    "sets llama.logit_scale": {"logit_scale": 2.0},
    "scales its rotary positions": {"rope.scaling.type": "longrope"},
    "not a multiple of the number of attention heads": {
        "attention.head_count": 256,
        "attention.head_count_kv": 256,
        "attention.key_length": 2,
        "attention.value_length": 2,
        "rope.dimension_count": 2,
    },
}


@pytest.mark.parametrize("message", IMPOSSIBLE)
def test_impossible_metadata_is_one_line(tmp_path: Path, message: str) -> None:
    path = write_gguf(tiny("llama"), tmp_path / "m.gguf", "llama", metadata=IMPOSSIBLE[message])
    with pytest.raises(HastenError) as caught:
        load_network(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tensors_that_do_not_fit_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny("llama")
    extra = {"blk.0.attn_q_norm.weight": np.ones(32, np.float32)}
    with pytest.raises(HastenError, match="a llama network does not have"):
        load_network(write_gguf(network, tmp_path / "a.gguf", "llama", tensors=extra))
    with pytest.raises(HastenError, match=r"'blk\.0\.ssm_a', which hasten does not know"):
        load_network(write_gguf(network, tmp_path / "b.gguf", "llama", tensors={"blk.0.ssm_a": np.ones(3, np.float32)}))
    monkeypatch.setitem(FAMILIES, "llama as qwen3", ("LlamaConfig", "qwen3", {}))
    path = write_gguf(tiny("llama as qwen3", num_hidden_layers=1), tmp_path / "c.gguf", "llama as qwen3")
    with pytest.raises(HastenError, match=r"lacks 2 tensors \(first: 'model.layers.0.self_attn.k_norm.weight'\)"):
        load_network(path)
    network.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("nan")
    with pytest.raises(HastenError, match="not finite"):
        load_network(write_gguf(network, tmp_path / "d.gguf", "llama"))


def test_an_unknown_architecture_is_one_line(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.add_tensor("w", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(HastenError, match="is a 'mamba' model; hasten loads llama, qwen2, qwen3"):
        load_network(tmp_path / "m.gguf")


# Folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny("qwen3").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("family", FAMILIES)
def test_folders_give_back_the_network(tmp_path: Path, ids: torch.Tensor, family: str) -> None:
    network = tiny(family)
    network.save_pretrained(tmp_path / "model", max_shard_size="200KB")
    assert (tmp_path / "model" / "model.safetensors.index.json").is_file()
    loaded = load_network(tmp_path / "model")
    assert type(loaded.network) is type(network)
    assert torch.equal(logits(loaded.network, ids), logits(network, ids))
    tied = loaded.network.lm_head.weight is loaded.network.model.embed_tokens.weight
    assert tied is bool(network.config.tie_word_embeddings)


def test_a_folders_own_tokenizer_and_generation_settings_are_read(tmp_path: Path, folder: Path) -> None:
    source = load_network(write_gguf(tiny("qwen3"), tmp_path / "m.gguf", "qwen3"))
    source.tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0], "temperature": 0.5}))
    loaded = load_network(folder)
    assert loaded.network.generation_config.eos_token_id == [2, 0]
    text = "the king 12 <|im_end|>"
    assert loaded.tokenizer(text).input_ids == source.tokenizer(text).input_ids
    assert loaded.packed("lm_head.weight") is None


def test_a_folder_without_a_tokenizer_says_so_when_it_is_asked_for(folder: Path) -> None:
    loaded = load_network(folder)
    with pytest.raises(HastenError, match="model has no readable tokenizer"):
        _ = loaded.tokenizer


def test_code_that_a_folder_brings_is_never_run(tmp_path: Path, folder: Path) -> None:
    load_network(write_gguf(tiny("qwen3"), tmp_path / "m.gguf", "qwen3")).tokenizer.save_pretrained(folder)
    mark = folder / "it-ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Model: ...\nclass Config: ...\nclass Tok: ...\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    change(folder / "tokenizer_config.json", tokenizer_class="Tok", auto_map={"AutoTokenizer": ["evil.Tok", None]})
    loaded = load_network(folder)
    assert type(loaded.network).__name__ == "Qwen3ForCausalLM"
    with contextlib.suppress(HastenError):
        assert type(loaded.tokenizer).__name__ != "Tok"
    assert not mark.exists()


def change(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in {**data, **changes}.items() if v != "gone"}))


def rewrite(path: Path, **changes: torch.Tensor | None) -> None:
    weights = {k: v for k, v in {**load_file(path), **changes}.items() if v is not None}
    save_file(weights, path, metadata={"format": "pt"})


def break_folder(folder: Path, case: str) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    name = "model.layers.0.mlp.up_proj.weight"
    index = folder / "model.safetensors.index.json"
    if "index" in case or case == "missing shard":
        weights = weights.rename(folder / "model-00001-of-00001.safetensors")
    match case:
        case "no config":
            config.unlink()
        case "config is not JSON":
            config.write_text("{")
        case "config is a list":
            config.write_text("[1]")
        case "config is nested without end":
            config.write_text("[" * 100_000)
        case "unknown architecture":
            change(config, model_type="nonesuch")
        case "another family":
            change(config, model_type="gpt2")
        case "no architecture":
            change(config, model_type="gone", architectures="gone")
        case "size is a word":
            change(config, hidden_size="cat")
        case "size is negative":
            change(config, hidden_size=-64)
        case "too many layers":
            change(config, num_hidden_layers=100_000_000, layer_types="gone")
        case "heads do not divide":
            change(config, num_key_value_heads=3)
        case "quantized":
            change(config, quantization_config={"quant_method": "gptq", "bits": 4})
        case "no weights":
            weights.unlink()
        case "pickled weights":
            weights.rename(folder / "pytorch_model.bin")
        case "truncated weights":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "empty weights":
            weights.write_bytes(b"")
        case "absurd header":
            weights.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
        case "not safetensors":
            weights.write_bytes(b"\x80\x02" * 500)
        case "missing tensor":
            rewrite(weights, **{name: None})
        case "extra tensor":
            rewrite(weights, **{"model.layers.0.mlp.extra.weight": torch.ones(2)})
        case "wrong shape":
            rewrite(weights, **{name: torch.ones(3, 4)})
        case "whole numbers":
            rewrite(weights, **{name: torch.ones(160, 128, dtype=torch.int8)})
        case "not finite":
            rewrite(weights, **{name: torch.full((160, 128), float("inf"))})
        case "index is not JSON":
            index.write_text("nope")
        case "index without a map":
            index.write_text("{}")
        case "index of nothing":
            index.write_text('{"weight_map": {}}')
        case "index points outside":
            index.write_text(json.dumps({"weight_map": {name: "../model.safetensors"}}))
        case "missing shard":
            index.write_text(json.dumps({"weight_map": {name: "model-00001-of-00002.safetensors"}}))
        case "index and shard disagree":
            index.write_text(json.dumps({"weight_map": {name: weights.name}}))
        case _:
            raise AssertionError(case)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no config", "cannot read"),
        ("config is not JSON", "is not JSON"),
        ("config is a list", "not a JSON object"),
        ("config is nested without end", "is not JSON"),
        ("unknown architecture", "names the model type 'nonesuch'"),
        ("another family", "is a 'gpt2' model; hasten loads gemma, gemma2, gemma3_text, gpt_oss, granite, llama"),
        ("no architecture", "names the model type 'None'"),
        ("size is a word", ""),
        ("size is negative", ""),
        ("too many layers", ""),
        ("heads do not divide", ""),
        ("quantized", "quantized weights"),
        ("no weights", "no model.safetensors"),
        ("pickled weights", "pickled weights (.bin), which can run code"),
        ("truncated weights", "truncated or corrupted"),
        ("empty weights", "truncated or corrupted"),
        ("absurd header", "truncated or corrupted"),
        ("not safetensors", "truncated or corrupted"),
        ("missing tensor", "lacks 1 tensors (first: 'model.layers.0.mlp.up_proj.weight')"),
        ("extra tensor", "does not have (first: 'model.layers.0.mlp.extra.weight')"),
        ("wrong shape", "has shape (3, 4), its config asks for (160, 128)"),
        ("whole numbers", "torch.int8"),
        ("not finite", "not finite"),
        ("index is not JSON", "not a readable index"),
        ("index without a map", "not a readable index"),
        ("index of nothing", "names no files"),
        ("index points outside", "outside its folder"),
        ("missing shard", "lacks model-00001-of-00002.safetensors"),
        ("index and shard disagree", "the index disagree"),
    ],
)
def test_a_broken_folder_is_one_line(folder: Path, case: str, message: str) -> None:
    break_folder(folder, case)
    with pytest.raises(HastenError) as caught:
        load_network(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "traceback" not in str(caught.value).lower()


def stored_otherwise(folder: Path, case: str) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    held = load_file(weights)
    names = dict.fromkeys(held, "model-00001-of-00001.safetensors")
    match case:
        case "a stale index":
            index = dict.fromkeys(held, "model-00001-of-00002.safetensors")
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        case "frequencies that the index lacks":
            frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
            save_file({**held, **frequencies}, folder / "model-00001-of-00001.safetensors", {"format": "pt"})
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
            weights.unlink()
        case "the head alone":
            held["lm_head.weight"] = held.pop("model.embed_tokens.weight")
            save_file(held, weights, {"format": "pt"})
        case "both, the same":
            rewrite(weights, **{"lm_head.weight": held["model.embed_tokens.weight"].clone()})
        case "no quantization":
            data = json.loads(config.read_text())
            config.write_text(json.dumps({**data, "quantization_config": None}))


@pytest.mark.parametrize(
    "case",
    [
        "a stale index",
        "frequencies that the index lacks",
        "the head alone",
        "both, the same",
        "no quantization",
    ],
)
def test_a_folder_loads_as_transformers_loads_it(tmp_path: Path, ids: torch.Tensor, case: str) -> None:
    network = tiny("qwen2")
    network.save_pretrained(tmp_path)
    stored_otherwise(tmp_path, case)
    found = load_network(tmp_path).network
    torch.testing.assert_close(logits(found, ids), logits(network, ids), rtol=0, atol=1e-5)
    assert found.lm_head.weight is found.model.embed_tokens.weight


def test_two_matrices_that_are_said_to_be_one_stay_two(tmp_path: Path, ids: torch.Tensor) -> None:
    tiny("qwen2").save_pretrained(tmp_path)
    rewrite(tmp_path / "model.safetensors", **{"lm_head.weight": torch.randn(len(vocabulary()), 128)})
    with pytest.warns(RuntimeWarning, match="holds two that differ: both are used"):
        found = load_network(tmp_path).network
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(found, ids), logits(expected, ids), rtol=0, atol=1e-5)


# Names


def test_names_that_lead_nowhere_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name in ("nonesuch", "no/such-model", "a/b/c", "m.gguf", "", "brown"):
        with pytest.raises(HastenError) as caught:
            load_network(name)
        assert "\n" not in str(caught.value)


def test_a_cached_hub_model_loads_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    repository = tmp_path / "models--someone--tiny"
    tiny("qwen2").save_pretrained(repository / "snapshots" / "0123456789abcdef")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123456789abcdef")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    loaded = load_network("someone/tiny")
    assert (loaded.name, loaded.source) == ("someone/tiny", "someone/tiny")


def test_one_file_of_a_folder_is_refused_with_advice(folder: Path) -> None:
    with pytest.raises(HastenError, match="give its folder"):
        load_network(folder / "model.safetensors")


def test_a_config_alone_builds_a_network_without_memory(folder: Path) -> None:
    network = build(read_config(folder / "config.json"))
    assert {p.device.type for p in network.parameters()} == {"meta"}


# The real thing


@pytest.mark.asset
def test_smollm_agrees_with_llama_cpp(smollm: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    loaded = load_network(smollm)
    chat = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    prompt = loaded.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    peer = llama_cpp.Llama(str(smollm), n_ctx=256, logits_all=True, verbose=False, n_threads=2)
    tokens = prompt["input_ids"][0].tolist()
    assert peer.tokenize(loaded.tokenizer.decode(tokens).encode(), add_bos=False, special=True) == tokens
    peer.eval(tokens)
    seen = torch.from_numpy(np.array(peer.scores[: len(tokens)]))
    found = logits(loaded.network, prompt["input_ids"])[0]
    # llama.cpp rounds activations to 8 bits in its products; the tiny models agree without that.
    alike = torch.nn.functional.cosine_similarity(found, seen)
    assert alike.mean() > 0.999
    assert alike.min() > 0.99
    made = loaded.network.generate(**prompt, max_new_tokens=24, do_sample=False)[0, len(tokens) :].tolist()
    # Greedy, and stopped by the model's own end of turn.
    assert "Paris" in loaded.tokenizer.decode(made)
    assert made[-1] == loaded.tokenizer.eos_token_id
    peer.reset()
    answer = peer.create_chat_completion(messages=chat, max_tokens=24, temperature=0)  # type: ignore[arg-type]
    text = answer["choices"][0]["message"]["content"]  # type: ignore[index]
    assert loaded.tokenizer.decode(made, skip_special_tokens=True).strip() == str(text).strip()


@pytest.mark.asset
def test_smollm_loads_by_its_name(smollm: Path) -> None:
    loaded = load_network("smollm2-135m-instruct")
    assert (loaded.name, loaded.source) == ("smollm2-135m-instruct", "smollm2-135m-instruct")
    assert loaded.fingerprint == load_network(smollm).fingerprint
    assert loaded.network.lm_head.weight is loaded.network.model.embed_tokens.weight
    assert sum(p.numel() for p in loaded.network.parameters()) == 134_515_008
    assert assets.cached("smollm2-135m-instruct") == smollm
    assert len(vocabulary()) < loaded.network.config.vocab_size == len(loaded.tokenizer)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.Q8_0, Kind.Q4_1, Kind.Q4_0])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_packed_weights_are_the_files_own(tmp_path: Path, ids: torch.Tensor, family: str, kind: Kind) -> None:
    path = write_gguf(tiny(family), tmp_path / "m.gguf", family, kind)
    plain, packed = load_network(path), load_packed(path)
    torch.testing.assert_close(logits(packed.network, ids), logits(plain.network, ids), rtol=0, atol=1e-3)
    modules = dict(packed.network.named_modules())
    for name, parameter in plain.network.named_parameters():
        if parameter.ndim == 2 and "lm_head" not in name:
            layer = modules[name.removesuffix(".weight")]
            torch.testing.assert_close(layer.dequantize(), parameter.detach(), rtol=0, atol=1e-6)
    assert packed.fingerprint == plain.fingerprint
    assert not any(p.device.type == "meta" for p in packed.network.parameters())


def test_packed_loading_takes_gguf_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(HastenError, match="not a GGUF file"):
        load_packed(tmp_path)
    (tmp_path / "short.gguf").write_bytes(b"GGUF")
    with pytest.raises(HastenError, match="truncated"):
        load_packed(tmp_path / "short.gguf")


# hidden, layers, heads, heads of keys, FFN, vocabulary
SMALL = (256, 2, 4, 2, 512, 300)


@pytest.mark.parametrize(
    "kind", ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_S", "Q6_K", "IQ4_XS", "IQ4_NL", "MXFP4", "Q5_1", "F32"]
)
def test_files_of_every_type_stay_packed(tmp_path: Path, ids: torch.Tensor, kind: str) -> None:
    path = tmp_path / "m.gguf"
    write_random(path, SMALL, kind)
    plain, packed = load_network(path).network, load_packed(path).network
    torch.testing.assert_close(logits(packed, ids), logits(plain, ids), rtol=0, atol=1e-4)
    held = {t.data_ptr(): t.nbytes for t in [*packed.parameters(), *packed.buffers()]}
    stored = sum(info.size for info in GGUFFile(path).tensors.values())
    rotary = sum(b.nbytes for b in packed.model.rotary_emb.buffers())
    assert sum(held.values()) - rotary == stored
    rounded = load_packed(path, int8=True).network
    assert (logits(rounded, ids) - logits(plain, ids)).abs().max() < 0.05


def test_packed_weights_that_are_not_finite_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_random(path, SMALL, "Q4_K_S")
    where = GGUFFile(path).tensors["blk.1.attn_q.weight"].begin
    with path.open("r+b") as file:
        file.seek(where)
        file.write(np.array([np.inf], np.float16).tobytes())
    for load in (load_network, load_packed):
        with pytest.raises(HastenError, match=r"layers.1.self_attn.q_proj.weight holds values that are not finite"):
            load(path)


_MEASURE = """
import resource, sys
from hasten.models import load_packed
def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
load_packed(sys.argv[1])
before = most()
kept = load_packed(sys.argv[2])
print(most() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_loading_holds_the_file_and_a_layer(tmp_path: Path) -> None:
    small, large = tmp_path / "small.gguf", tmp_path / "large.gguf"
    write_random(small, SMALL, "Q4_K_M")
    write_random(large, (1024, 8, 8, 8, 4096, 2048), "Q4_K_M")
    size = large.stat().st_size
    measured = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(small), str(large)], capture_output=True, text=True, check=True
    )
    layer = size / 8
    assert int(measured.stdout) <= 1.1 * size + layer


@pytest.mark.slow
def test_the_real_model_packed_is_no_larger_than_its_file() -> None:
    from hasten.runtime import LanguageModel

    path = assets.get("smollm2-135m-instruct")
    loaded = load_packed("smollm2-135m-instruct", int8=True)
    model = LanguageModel(loaded.network, loaded.tokenizer)
    assert model.weight_bytes <= 1.15 * path.stat().st_size
    assert model.why_not_compiled is None
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert "Paris" in loaded.tokenizer.decode(model.generate(ids, max_new_tokens=4, do_sample=False)[0])
