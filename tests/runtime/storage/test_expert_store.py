"""Experts on storage: the same logits whatever is cached or prefetched, within the budget, and clear errors."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch

from hasten.errors import HastenError
from hasten.models.language.smallthinker import HeadPredictor, SmallThinkerConfig, SmallThinkerLM, hybrid
from hasten.runtime.storage.expert_store import ExpertCache, ExpertEngine, ExpertFile, write_experts

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


def test_the_budget_is_hard(model: SmallThinkerLM, path: Path) -> None:
    """No more bundles are in memory at any time than the budget holds, those under way and in use included."""

    class Watched(ExpertFile):
        most = 0

        def read(self, key: tuple[int, int]) -> torch.Tensor:
            self.alive = getattr(self, "alive", weakref.WeakSet())
            # One buffer for each read, counted while anything still looks at it.
            Watched.most = max(Watched.most, len(self.alive) + 1)
            bundle = super().read(key)
            self.alive.add(bundle.untyped_storage())
            return bundle

    for capacity in (2, 3):
        for prefetch in (True, False):
            Watched.most = 0
            file = Watched(path, drop=False)
            cache = ExpertCache(file, capacity * file.bundle_bytes, readers=1)
            decode(ExpertEngine(model, cache, prefetch=prefetch), model)
            assert Watched.most <= capacity


def test_reads_come_from_storage(path: Path) -> None:
    def stored() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))

    if not Path("/proc/self/io").exists():
        pytest.skip("this system does not count what is read")
    file = ExpertFile(path)
    before = stored()
    for _ in range(3):
        file.read((0, 0))
    if stored() == before:
        pytest.skip("the folder of tests is not on a storage device")
    assert stored() - before >= 3 * file.bundle_bytes


def test_a_read_that_failed_is_tried_again(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    file = ExpertFile(path)
    cache = ExpertCache(file, 4 * file.bundle_bytes)
    with path.open("r+b") as open_file:
        open_file.truncate(4000)
    for _ in range(2):
        with pytest.raises(HastenError, match="is damaged"):
            cache.get((3, 5))
    with path.open("r+b") as open_file:
        open_file.write(whole)
    assert torch.isfinite(cache.get((3, 5))).all()


def test_the_head_predictor_can_be_switched_on(model: SmallThinkerLM, path: Path) -> None:
    file = ExpertFile(path)
    predictor = HeadPredictor(32, 96, rank=16, rows=20)
    engines = [
        ExpertEngine(model, ExpertCache(file, 24 * file.bundle_bytes), predictor=p)
        for p in (None, predictor, HeadPredictor(32, 96, rows=96))
    ]
    exact, some, all_rows = (decode(e, model) for e in engines)
    assert torch.equal(some[:, :8], exact[:, :8]), "prompts are computed whole"
    seen = torch.isfinite(some[0, 8:])
    assert (seen.sum(-1) == 20).all()
    torch.testing.assert_close(some[0, 8:][seen], exact[0, 8:][seen], atol=1e-5, rtol=0)
    torch.testing.assert_close(all_rows, exact, atol=1e-5, rtol=0)


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


@pytest.mark.parametrize("softmax", [False, True])
def test_replaying_the_router_s_own_routes_changes_nothing(tmp_path: Path, softmax: bool) -> None:
    torch.manual_seed(0)
    config = SmallThinkerConfig(
        width=64, layers=2, heads=2, kv_heads=1, head_dim=32, vocabulary=64, experts=8, used=2, inner=32,
        softmax=softmax,
    )  # fmt: skip
    model = SmallThinkerLM(config).eval()
    write_experts(model, tmp_path / "e.safetensors")
    file = ExpertFile(tmp_path / "e.safetensors")
    ids = torch.arange(7)[None]
    found = [
        ExpertEngine(model, ExpertCache(file, 16 * file.bundle_bytes), replay=replay)(ids)
        for replay in (None, lambda layer, chosen: chosen)
    ]
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-5)
