"""Experts in Q4_0: GGUF's own codes, its bytes in file and memory, products as of the numbers that they stand for."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from torch import Tensor

from hasten.errors import HastenError
from hasten.models.language.smallthinker import SmallThinkerConfig, SmallThinkerLM
from hasten.nn.reglu_experts import Expert
from hasten.runtime.storage.expert_forms import FORMS, expert_form
from hasten.runtime.storage.expert_store import ExpertCache, ExpertEngine, ExpertFile, write_experts

Q4 = GGMLQuantizationType.Q4_0
SHAPE = (3, 24, 64)


def as_read(weights: Tensor) -> Tensor:
    """The numbers that GGUF's codes of weights stand for."""
    return torch.from_numpy(dequantize(quantize(weights.numpy(), Q4), Q4).copy())


def held(weights: Tensor, form: str = "q4_0") -> Tensor:
    kept = expert_form(form)
    return kept.held(bytearray(kept.encode(weights).numpy().tobytes()), tuple(weights.shape))


def rounded(model: SmallThinkerLM) -> SmallThinkerLM:
    """The model whose experts are what their Q4_0 codes stand for: down is rounded along its rows as stored."""
    model = copy.deepcopy(model)
    for layer in model.blocks:
        for expert in layer.block_sparse_moe.experts:
            assert isinstance(expert, Expert)
            for linear, turned in ((expert.gate, False), (expert.up, False), (expert.down, True)):
                w = linear.weight.detach()
                w = as_read(w.t().contiguous()).t() if turned else as_read(w)
                linear.weight = torch.nn.Parameter(w.contiguous())
    return model


def test_a_bundle_has_gguf_s_codes_and_bytes() -> None:
    torch.manual_seed(0)
    weights = torch.randn(SHAPE)
    bundle = expert_form("q4_0").encode(weights)
    blocks = quantize(weights.numpy(), Q4).reshape(-1, 18)
    assert bundle.nbytes == blocks.nbytes == 3 * 24 * 64 * 18 // 32 == expert_form("q4_0").nbytes(SHAPE)
    assert bundle.numpy().tobytes() == blocks[:, :2].tobytes() + blocks[:, 2:].tobytes()
    assert expert_form("fp32").nbytes(SHAPE) == 4 * 3 * 24 * 64
    assert expert_form("q4_0").shape(expert_form("q4_0").stored(SHAPE)) == SHAPE


@pytest.mark.parametrize("value", [1e6, float("nan"), float("-inf")])
def test_weights_that_no_scale_reaches_are_refused(value: float) -> None:
    weights = torch.randn(SHAPE)
    weights[1, 3, 4] = value
    with pytest.raises(HastenError, match="a weight is"):
        expert_form("q4_0").encode(weights)
    weights[1, 3, 4] = 65504  # -8 times the scale is the minimum, which fp16 still holds
    assert expert_form("q4_0").tokens(held(weights), SHAPE, torch.rand(2, 64)).isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_products_are_those_of_the_numbers(form: str) -> None:
    torch.manual_seed(1)
    weights, kept = torch.randn(SHAPE) / 8, expert_form(form)
    gate, up, down = as_read(weights) if form == "q4_0" else weights
    bundle = held(weights, form)
    for count in (1, 2, 40):
        h = torch.randn(count, 64)
        expected = (torch.relu(h @ gate.t()) * (h @ up.t())) @ down
        torch.testing.assert_close(kept.tokens(bundle, SHAPE, h), expected, atol=1e-5, rtol=1e-4)
        rows = torch.stack([kept.one_token(bundle, SHAPE, row) for row in h])
        torch.testing.assert_close(rows, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_token_that_opens_no_gate_gets_nothing(form: str) -> None:
    weights = torch.randn(SHAPE)
    weights[0] = -weights[0].abs()
    found = expert_form(form).one_token(held(weights, form), SHAPE, torch.ones(64))
    assert torch.equal(found, torch.zeros(64))


def test_of_closed_gates_neither_up_nor_down_are_read() -> None:
    """Neurons whose gate is closed may hold anything: their scales are made NaN."""
    weights = torch.randn(SHAPE)
    weights[0] = torch.where(torch.arange(24)[:, None] < 20, -weights[0].abs(), weights[0].abs())
    kept, whole = expert_form("q4_0"), held(weights)
    poisoned = whole.clone()
    scales = poisoned[: 3 * 24 * 2 * 2].view(torch.float16).view(3, 24, 2)
    scales[1:, :20] = torch.nan
    found = kept.one_token(poisoned, SHAPE, torch.ones(64))
    assert torch.equal(found, kept.one_token(whole, SHAPE, torch.ones(64)))


@pytest.mark.parametrize("prefetch", [True, False])
def test_the_engine_gives_the_rounded_model_s_logits(tmp_path: Path, prefetch: bool) -> None:
    torch.manual_seed(2)
    model = SmallThinkerLM(
        SmallThinkerConfig(width=64, layers=3, heads=4, kv_heads=2, head_dim=16, inner=40, experts=6, used=2)
    ).eval()
    write_experts(model, tmp_path / "q4", "q4_0")
    file, whole = ExpertFile(tmp_path / "q4"), rounded(model)
    ids = torch.randint(0, 96, (1, 24))
    found = []
    for capacity in (2, 18):
        cache = ExpertCache(file, capacity * file.bundle_bytes)
        state = model.new_state(1)
        engine = ExpertEngine(model, cache, prefetch=prefetch)
        parts = [engine(ids[:, :18], state), *(engine(ids[:, i : i + 1], state) for i in range(18, 24))]
        found.append(torch.cat(parts, 1))
    assert torch.equal(*found), "whatever is kept"
    with torch.inference_mode():
        expected = whole(ids)
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-4)
    with torch.inference_mode():
        assert not torch.allclose(found[0], model(ids), atol=1e-3), "the plain model's are others"


def test_a_budget_holds_seven_times_the_experts(tmp_path: Path) -> None:
    """Bundles are as small in memory as in the file: 4.5 bits a value."""
    model = SmallThinkerLM(SmallThinkerConfig(width=64, layers=2, head_dim=16, inner=32))
    held_now, sizes = {}, {}
    for form in FORMS:
        write_experts(model, tmp_path / form, form)
        file = ExpertFile(tmp_path / form)
        sizes[form] = (tmp_path / form).stat().st_size
        assert (file.shape, len(file), file.form.name) == ((3, 32, 64), 16, form)
        assert len(list(file)) == 16
        bundle = file.read((1, 3))
        assert bundle.untyped_storage().nbytes() == file.bundle_bytes
        held_now[form] = ExpertCache(file, 4 * 4 * 3 * 32 * 64).capacity
    assert held_now == {"fp32": 4, "q4_0": 28}
    assert sizes["fp32"] > 6.5 * sizes["q4_0"]


def read_all(file: ExpertFile) -> None:
    for key in file:
        file.read(key)


def test_damage_and_what_is_no_such_form(tmp_path: Path) -> None:
    model = SmallThinkerLM(SmallThinkerConfig(width=64, layers=1, head_dim=16, inner=32))
    path = tmp_path / "q4"
    write_experts(model, path, "q4_0")
    data = bytearray(path.read_bytes())
    whole = bytes(data)
    data[-3] ^= 4
    path.write_bytes(data)
    with pytest.raises(HastenError, match="is damaged"):
        read_all(ExpertFile(path))
    path.write_bytes(whole.replace(b'"q4_0"', b'"q5_0"'))
    with pytest.raises(HastenError, match="not a whole file of experts"):
        ExpertFile(path)
    path.write_bytes(whole.replace(b'"q4_0"', b'"fp32"'))
    with pytest.raises(HastenError, match="not a whole file of experts"):
        ExpertFile(path)
    with pytest.raises(HastenError, match="unknown form"):
        write_experts(model, path, "q3_k")
    narrow = SmallThinkerLM(SmallThinkerConfig(width=48, layers=1, head_dim=16, inner=32))
    with pytest.raises(HastenError, match="multiple of 32"):
        write_experts(narrow, path, "q4_0")


def test_a_file_of_before_is_plain(tmp_path: Path) -> None:
    """Without a form among its metadata."""
    from zlib import crc32

    from safetensors.numpy import save

    bundle = np.arange(3 * 4 * 8, dtype=np.float32).reshape(3, 4, 8)
    (tmp_path / "old").write_bytes(save({"0.0": bundle}, metadata={"0.0": str(crc32(bundle.tobytes()))}))
    file = ExpertFile(tmp_path / "old")
    assert file.form.name == "fp32"
    assert torch.equal(file.read((0, 0)), torch.from_numpy(bundle))
