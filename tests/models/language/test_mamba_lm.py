"""MambaLM: published sizes, the published layout, the same numbers as transformers, generation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hasten.errors import HastenError
from hasten.models import MambaConfig, MambaLM, named
from hasten.models.language.mamba_lm import small_mamba

SMALL = MambaConfig(d_model=32, n_layer=2, vocab_size=61)


def small() -> MambaLM:
    torch.manual_seed(0)
    return MambaLM(SMALL).eval()


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mamba-130m", 129_135_360),
        ("mamba-370m", 371_516_416),
        ("mamba-790m", 793_204_224),
        ("mamba-1.4b", 1_372_178_432),
        ("mamba-2.8b", 2_768_345_600),
    ],
)
def test_published_parameter_counts(name: str, count: int) -> None:
    assert sum(p.numel() for p in named.build(name).parameters()) == count


def test_logits_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    model = small()
    config = transformers.MambaConfig(
        vocab_size=64, hidden_size=32, state_size=16, num_hidden_layers=2, intermediate_size=64, time_step_rank=2
    )
    other = transformers.MambaForCausalLM(config).eval()
    tensors = model.state_dict()
    tensors["backbone.embeddings.weight"] = tensors.pop("backbone.embedding.weight")
    other.load_state_dict(tensors)
    ids = torch.randint(0, 61, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), other(ids).logits, rtol=1e-4, atol=1e-5)


def test_round_trip_in_the_published_layout(tmp_path: Path) -> None:
    model = small()
    model.save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["backbone.layers.1.mixer.x_proj.weight"].shape == (2 + 32, 64)
    assert tensors["backbone.layers.0.mixer.conv1d.weight"].shape == (64, 1, 4)
    names = {n.split("mixer.")[1] for n in tensors if "layers.0.mixer" in n}
    assert names == {
        "A_log", "D", "conv1d.bias", "conv1d.weight", "dt_proj.bias", "dt_proj.weight", "in_proj.weight",
        "out_proj.weight", "x_proj.weight",
    }  # fmt: skip
    assert {"backbone.embedding.weight", "backbone.norm_f.weight", "lm_head.weight"} <= set(tensors)
    again = MambaLM.load(tmp_path)
    assert again.config == SMALL
    for (name, one), (_, other) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(one, other), name
    assert again.lm_head.weight is again.backbone.embedding.weight
    assert all(p.requires_grad for p in again.parameters())


def test_a_published_config_is_read(tmp_path: Path) -> None:
    published = {
        "d_model": 32, "n_layer": 2, "vocab_size": 61, "ssm_cfg": {}, "rms_norm": True, "residual_in_fp32": True,
        "fused_add_norm": True, "pad_vocab_size_multiple": 8,
    }  # fmt: skip
    small().save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(published))
    assert MambaLM.load(tmp_path).config == SMALL


def test_broken_folders_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(HastenError, match=r"cannot read .*config.json"):
        MambaLM.load(tmp_path)
    model = small()
    model.save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    weights = tmp_path / "model.safetensors"
    save_file({n: t for n, t in tensors.items() if "norm_f" not in n}, weights)
    with pytest.raises(HastenError, match=r"no tensor backbone\.norm_f\.weight"):
        MambaLM.load(tmp_path)
    save_file(tensors | {"backbone.norm_f.weight": torch.ones(3)}, weights)
    with pytest.raises(HastenError, match="do not belong together"):
        MambaLM.load(tmp_path)
    save_file(tensors | {"extra": torch.ones(3)}, weights)
    with pytest.raises(HastenError, match="lacks"):
        MambaLM.load(tmp_path)
    weights.write_bytes(b"\x80\x04pickle")
    with pytest.raises(HastenError, match="not a whole safetensors file"):
        MambaLM.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(HastenError, match="not JSON"):
        MambaLM.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layer": 0}, "positive"),
        ({"rms_norm": False}, "LayerNorm"),
        ({"attn_layer_idx": [1]}, "attention"),
        ({"ssm_cfg": {"layer": "Mamba2"}}, "another generation"),
        ({"ssm_cfg": {"wings": 2}}, "wings"),
    ],
)
def test_configs_of_other_kinds_are_refused(change: dict, message: str) -> None:
    with pytest.raises(HastenError, match=message):
        MambaConfig.from_dict({"d_model": 32, "n_layer": 2, "vocab_size": 61} | change)


def test_generation_is_the_whole_forward_token_by_token() -> None:
    model = small()
    ids = torch.randint(0, 61, (3, 7), generator=torch.Generator().manual_seed(2))
    made = model.generate(ids, 9)
    with torch.no_grad():
        for step in range(7, 16):
            expected = model(made[:, :step])[:, -1, :61].argmax(-1)
            assert torch.equal(made[:, step], expected)


def test_drawing_follows_its_seed_and_its_bounds() -> None:
    model, ids = small(), torch.zeros(1, 1, dtype=torch.int64)
    one, same = (model.generate(ids, 20, temperature=1.0, seed=5) for _ in range(2))
    assert torch.equal(one, same)
    assert not torch.equal(one, model.generate(ids, 20, temperature=1.0, seed=6))
    assert torch.equal(model.generate(ids, 20, temperature=1.0, top_k=1), model.generate(ids, 20))
    assert int(model.generate(ids, 50, temperature=50.0).max()) < 61
    with pytest.raises(HastenError, match="empty"):
        model.generate(torch.zeros(1, 0, dtype=torch.int64), 1)
    with pytest.raises(HastenError, match="outside the vocabulary"):
        model.generate(torch.full((1, 1), 61), 1)


def test_workload_has_constant_decode_state() -> None:
    model = small()
    short, long = (model.workload(prompt, 8) for prompt in (16, 256))
    assert short.state_bytes == long.state_bytes == 4 * 2 * 64 * (4 + 16)
    assert [p.name for p in short.phases] == ["prefill", "decode"]
    assert not short.unknown
    decode = [w.phases[1].cascade.flops for w in (short, long)]
    assert decode[0] == decode[1]
    assert long.phases[0].cascade.flops > 15 * short.phases[0].cascade.flops


def test_a_small_one_is_selective_as_asked() -> None:
    torch.manual_seed(0)
    model = small_mamba(10, width=32, layers=3, states=4, selective=("B",), tied=True)
    assert len(model.backbone.layers) == 3
    assert model.lm_head.weight is model.backbone.embedding.weight
    assert abs(float(model.backbone.embedding.weight.detach().std()) - 1) < 0.1
    full = small_mamba(10, width=32, layers=3, states=4)
    assert sum(p.numel() for p in model.parameters()) != sum(p.numel() for p in full.parameters())
    assert model(torch.zeros(2, 5, dtype=torch.int64)).shape[:2] == (2, 5)
