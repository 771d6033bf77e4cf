"""GGUF files of every family: the network that was converted, and llama.cpp's own logits from the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from hasten.errors import HastenError
from hasten.models import load_network, load_packed
from hasten.models.loading.gguf import GGUFFile
from hasten.models.loading.gguf_architectures import ARCHITECTURES, NOT_WEIGHTS
from hasten.models.loading.gguf_config import gguf_config
from hasten.models.loading.gguf_network import set_ends
from hasten.models.loading.network import read_stored
from hasten.runtime.subject import read_subject

from ..conftest import logits, random_gguf, write_file
from ..converted import CONVERTED, convert, tiny_network

Kind = gguf.GGMLQuantizationType


@pytest.mark.parametrize("family", CONVERTED)
def test_a_converted_network_comes_back(tmp_path: Path, ids: torch.Tensor, family: str) -> None:
    network = tiny_network(family)
    path = convert(network, tmp_path / "m.gguf", family)
    found = load_network(path).network
    assert type(found) is type(network)
    expected = {n: p.detach() for n, p in network.named_parameters()}
    held = dict(found.named_parameters())
    assert held.keys() == expected.keys()
    for name, value in held.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=2e-7 if "norm" in name else 0)
    wanted = logits(network, ids)
    torch.testing.assert_close(logits(found, ids), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(load_packed(path).network, ids), wanted, rtol=0, atol=1e-4)


# What the files cannot say: llama.cpp rounds the bounds of yarn's ramp, gpt-oss does not.
_ASIDE: dict[str, dict[str, Any]] = {"gpt-oss": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}}


@pytest.mark.parametrize("family", CONVERTED)
def test_a_converted_network_agrees_with_llama_cpp(tmp_path: Path, ids: torch.Tensor, family: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    path = convert(tiny_network(family, **_ASIDE.get(family, {})), tmp_path / "m.gguf", family)
    peer = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False, type_k=0, type_v=0, n_threads=2)
    peer.eval(ids[0].tolist())
    seen = torch.from_numpy(np.array(peer.scores[: ids.shape[1]]))
    # llama.cpp looks Gemma's GELU up in a table of fp16.
    atol = 3e-3 if family.startswith("gemma") else 1e-4
    torch.testing.assert_close(logits(load_network(path).network, ids)[0], seen, rtol=0, atol=atol)


@pytest.mark.slow_except(every=3)
@pytest.mark.parametrize("family", CONVERTED)
def test_every_family_is_described_by_its_header(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = convert(tiny_network(family), tmp_path / "m.gguf", family, Kind.Q8_0)
    tensors = GGUFFile(path).tensors
    held = sum(info.size for name, info in tensors.items() if name not in NOT_WEIGHTS)
    monkeypatch.setattr(GGUFFile, "raw", lambda *a: pytest.fail("a weight was read"))
    # Divisors of frequencies are settings, which the description needs.
    monkeypatch.setattr(GGUFFile, "dequantize", lambda self, name: torch.ones(tensors[name].shape))
    work = read_subject(str(path), 16, 4).workload()
    buffers = ("inv_freq", "embed_scale")
    assert sum(size for name, size in work.weights.items() if not name.endswith(buffers)) == held


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("qwen3moe", Kind.Q8_0),
        ("gpt-oss", Kind.MXFP4),
        ("mixtral", Kind.Q4_1),
        ("qwen2moe", Kind.BF16),
        ("gemma2", Kind.Q8_0),
    ],
)
def test_packed_files_hold_what_they_say(tmp_path: Path, ids: torch.Tensor, family: str, kind: Kind) -> None:
    path = convert(tiny_network(family), tmp_path / "m.gguf", family, kind)
    plain, packed = load_network(path).network, load_packed(path).network
    tensors = [t for m in packed.modules() for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
    held = sum({t.data_ptr(): t.nbytes for t in tensors}.values())  # an embedding that is the head too counts once
    size = sum(info.size for info in GGUFFile(path).tensors.values())
    assert held < 1.05 * size + 4096
    expected = logits(plain, ids)
    torch.testing.assert_close(logits(packed, ids), expected, rtol=0, atol=1e-3)
    rounded = logits(load_packed(path, int8=True).network, ids)
    assert float((rounded - expected).std()) < 0.05 * float(expected.std())


@pytest.mark.parametrize("name", random_gguf.NAMES)
def test_a_random_file_of_every_architecture_loads(tmp_path: Path, ids: torch.Tensor, name: str) -> None:
    routed = name in random_gguf.ROUTED
    sizes = (256, 2, 4, 2, 256, 300, *((4, 2) if routed else (0, 0)))
    random_gguf.write(tmp_path / "m.gguf", sizes, "Q4_K_M", context=512, architecture=name)
    found = load_packed(tmp_path / "m.gguf").network
    assert bool(torch.isfinite(logits(found, ids.clamp(max=299))).all())


def test_all_architectures_are_tried() -> None:
    assert {family.architecture for family in CONVERTED.values()} >= set(ARCHITECTURES) - {"qwen2", "qwen3", "qwen2vl"}


@pytest.mark.parametrize(
    ("control", "ends"),
    [
        (("<eos>", "<end_of_turn>", "<|end|>"), [0, 1, 2]),
        (("<|return|>", "<|call|>", "<|end|>"), [0, 1]),
        (("<eos>", "a", "b"), 0),
    ],
)
def test_a_turn_ends_where_llama_cpp_ends_it(tmp_path: Path, control: tuple[str, ...], ends: int | list[int]) -> None:
    path = convert(tiny_network("gemma2"), tmp_path / "m.gguf", "gemma2")
    file = GGUFFile(path)
    tokens = file.metadata["tokenizer.ggml.tokens"]
    file.metadata |= {
        "tokenizer.ggml.tokens": [*control, *tokens[len(control) :]],
        "tokenizer.ggml.token_type": [3] * len(control) + [1] * (len(tokens) - len(control)),
        "tokenizer.ggml.eos_token_id": 0,
    }
    network, config = tiny_network("gemma2"), gguf_config(file)
    network.generation_config.eos_token_id = config.eos_token_id
    set_ends(network, config, file)
    assert network.generation_config.eos_token_id == ends


BAD: dict[str, tuple[str, dict[str, Any], dict[str, np.ndarray | None]]] = {
    "lacks gemma3.feed_forward_length": ("gemma3", {"feed_forward_length": None}, {}),
    "lacks granite.logit_scale": ("granite", {"logit_scale": None}, {}),
    "lacks stablelm.attention.layer_norm_epsilon": ("stablelm", {"attention.layer_norm_epsilon": None}, {}),
    "lacks qwen3moe.expert_used_count": ("qwen3moe", {"expert_used_count": None}, {}),
    "sets gemma2.expert_count": ("gemma2", {"expert_count": 4}, {}),
    "sets gemma2.rope.freq_base_swa": ("gemma2", {"rope.freq_base_swa": 3e4}, {}),
    "says for 3 of 4 layers": ("olmo3", {"attention.sliding_window_pattern": [True, True, False]}, {}),
    "sliding_window_pattern is cat": ("gemma3", {"attention.sliding_window_pattern": "cat"}, {}),
    "rope.dimension_count differs from the 32": ("granite", {"rope.dimension_count": 16}, {}),
    "its config asks for (8, 128, 128)": ("qwen3moe", {"expert_count": 8}, {}),
    "its config asks for (4, 192, 128)": ("qwen3moe", {"expert_feed_forward_length": 96}, {}),
    "lacks blk.1.ffn_up_exps.weight": ("mixtral", {}, {"blk.1.ffn_up_exps.weight": None}),
    "which makes no model.layers.0.mlp.experts.gate_up_proj": (
        "gpt-oss", {}, {"blk.0.ffn_up_exps.weight": np.ones((4, 96, 128), np.float32)},
    ),
    "blk.0.ffn_gate_exps.weight has shape (4, 128)": (
        "qwen2moe", {}, {f"blk.0.ffn_{part}_exps.weight": np.ones((4, 128), np.float32) for part in ("gate", "up")},
    ),
    "lacks 1 tensors (first: 'model.layers.1.self_attn.sinks')": ("gpt-oss", {}, {"blk.1.attn_sinks.weight": None}),
    "lacks 1 tensors (first: 'model.layers.0.post_feedforward_layernorm.weight')": (
        "olmo2", {}, {"blk.0.post_ffw_norm.weight": None},
    ),
    "self_attn.q_layernorm.norms.4.weight": (
        "stablelm in parallel", {}, {"blk.0.attn_q_norm.weight": np.ones((5, 32), np.float32)},
    ),
    "rope_factors_long.weight are no rotary frequencies": (
        "phi4-mini", {}, {"rope_factors_long.weight": np.ones(16, np.float32)},
    ),
    "'blk.0.attn_q.weight', which hasten does not know": (
        "phi3", {}, {"blk.0.attn_q.weight": np.ones((128, 128), np.float32)},
    ),
    "holds values that are not finite": (
        "gpt-oss", {}, {"blk.1.attn_sinks.weight": np.full(4, np.nan, np.float32)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_a_file_that_does_not_fit_is_one_line(tmp_path: Path, message: str) -> None:
    family, changes, others = BAD[message]
    path = convert(tiny_network(family), tmp_path / "m.gguf", family, changes=changes, others=others)
    readers = [load_network, load_packed] if "finite" in message else [load_network, load_packed, read_stored]
    for read in readers:
        with pytest.raises(HastenError) as caught:
            read(path)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


STRANGE = (-1, 0, 3, 1 << 20, 1 << 31, float("nan"), float("inf"), 1e30, True, "x", [], [1], ["a"], {})
OTHERS = ("attention.sliding_window_pattern", "rope.freq_base_swa", "rope.dimension_count", "rope.scaling.type",
          "rope.scaling.factor", "expert_count", "attention.scale", "logit_scale")  # fmt: skip


@pytest.mark.parametrize("family", ["gemma3", "phi4-mini", "olmo3", "qwen2moe"])
def test_strange_metadata_are_a_configuration_or_one_line(tmp_path: Path, family: str) -> None:
    file = GGUFFile(convert(tiny_network(family), tmp_path / "m.gguf", family))
    whole = dict(file.metadata)
    own = whole["general.architecture"]
    refused: list[str] = []
    for key in dict.fromkeys([*(k for k in whole if k.startswith(own)), *(f"{own}.{key}" for key in OTHERS)]):
        for value in STRANGE:
            file.metadata = {**whole, key: value}
            try:
                gguf_config(file)
            except HastenError as error:
                refused.append(str(error))
    assert len(refused) > 100
    assert not any("\n" in line for line in refused)


def test_an_unknown_architecture_lists_the_known(tmp_path: Path) -> None:
    path = write_file(tmp_path / "m.gguf", "mamba", {}, {"w": np.ones(4, np.float32)})
    with pytest.raises(HastenError, match=f"hasten loads {', '.join(ARCHITECTURES)}"):
        load_network(path)
