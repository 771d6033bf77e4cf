"""Experts on storage: the same logits whatever is cached or prefetched, within the budget, and clear errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hasten.errors import HastenError
from hasten.models.smallthinker import SmallThinkerConfig, SmallThinkerLM, hybrid
from hasten.runtime.expert_store import ExpertCache, ExpertEngine, ExpertFile, predicted_step, write_experts

CONFIG = SmallThinkerConfig(
    width=32, layers=4, head_dim=8, inner=24, experts=6, used=2, rotary=hybrid(4)[0], windowed=hybrid(4)[1], window=9
)
IDS = torch.randint(0, 96, (1, 20), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def model() -> SmallThinkerLM:
    torch.manual_seed(1)
    return SmallThinkerLM(CONFIG).eval()


@pytest.fixture
def path(model: SmallThinkerLM, tmp_path: Path) -> Path:
    write_experts(model, tmp_path / "experts.safetensors")
    return tmp_path / "experts.safetensors"


def decode(engine: ExpertEngine | SmallThinkerLM, model: SmallThinkerLM) -> torch.Tensor:
    state = model.new_state(1)
    with torch.inference_mode():
        parts = [engine(IDS[:, :8], state)]
        parts += [engine(IDS[:, i : i + 1], state) for i in range(8, 20)]
    return torch.cat(parts, 1)


def test_any_cache_gives_the_models_logits(model: SmallThinkerLM, path: Path) -> None:
    file = ExpertFile(path)
    expected = decode(model, model)
    seen = []
    for capacity in (2, 3, 8, 24):
        for prefetch in (True, False):
            cache = ExpertCache(file, capacity * file.bundle_bytes)
            seen.append(decode(ExpertEngine(model, cache, prefetch=prefetch), model))
            assert cache.most_held <= capacity
            assert cache.counts.asked > 0
            assert capacity < 24 or cache.counts.read <= 24
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=0)
    assert all(torch.equal(s, seen[0]) for s in seen)


def test_replayed_routes(model: SmallThinkerLM, path: Path) -> None:
    file = ExpertFile(path)
    cache = ExpertCache(file, 8 * file.bundle_bytes)
    engine = ExpertEngine(model, cache, replay=lambda layer, chosen: torch.zeros_like(chosen) + torch.arange(2))
    decode(engine, model)
    assert cache.counts.read == 8
    assert cache.counts.resident == cache.counts.asked - 8


def test_budgets_too_small(model: SmallThinkerLM, path: Path) -> None:
    file = ExpertFile(path)
    with pytest.raises(HastenError, match="holds no expert"):
        ExpertCache(file, file.bundle_bytes - 1)
    with pytest.raises(HastenError, match="uses in one layer"):
        ExpertEngine(model, ExpertCache(file, file.bundle_bytes))


def test_a_damaged_expert(model: SmallThinkerLM, path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 0x10
    path.write_bytes(data)
    file = ExpertFile(path)
    engine = ExpertEngine(model, ExpertCache(file, 24 * file.bundle_bytes))
    with pytest.raises(HastenError, match="is damaged"):
        decode_all_experts(engine)


def decode_all_experts(engine: ExpertEngine) -> None:
    for layer in range(4):
        for expert in range(6):
            engine.cache.get((layer, expert))


def test_files_that_are_no_experts(model: SmallThinkerLM, path: Path, tmp_path: Path) -> None:
    for name, data in {"short": path.read_bytes()[:-100], "text": b"hello world, this is text", "empty": b""}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(HastenError, match="not a whole file of experts"):
            ExpertFile(tmp_path / name)
    with pytest.raises(HastenError, match="cannot read"):
        ExpertFile(tmp_path / "missing")
    other = SmallThinkerLM(SmallThinkerConfig(width=32, layers=2, head_dim=8, inner=16))
    file = ExpertFile(path)
    with pytest.raises(HastenError, match="another model"):
        ExpertEngine(other, ExpertCache(file, 24 * file.bundle_bytes))


def test_storage_that_fails_while_running(model: SmallThinkerLM, path: Path) -> None:
    file = ExpertFile(path)
    engine = ExpertEngine(model, ExpertCache(file, 4 * file.bundle_bytes))
    with path.open("r+b") as open_file:
        open_file.truncate(4000)
    with pytest.raises(HastenError, match="is damaged"):
        decode(engine, model)


def test_late_routers_cannot_prefetch(path: Path) -> None:
    late = SmallThinkerLM(SmallThinkerConfig(**{**vars(CONFIG), "early": False}))
    file = ExpertFile(path)
    with pytest.raises(HastenError, match="routes after attention"):
        ExpertEngine(late, ExpertCache(file, 24 * file.bundle_bytes))


def test_the_timeline() -> None:
    assert predicted_step(2.0, 3.0, 1.0, prefetch=True) == 4.0
    assert predicted_step(2.0, 3.0, 1.0, prefetch=False) == 6.0
