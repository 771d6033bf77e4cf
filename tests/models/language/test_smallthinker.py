"""SmallThinker: published sizes, the mixed cache, its layout on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hasten.errors import HastenError
from hasten.models import named
from hasten.models.language.smallthinker import SmallThinkerConfig, SmallThinkerLM, hybrid

MIXED = SmallThinkerConfig(rotary=hybrid(4)[0], windowed=hybrid(4)[1], window=7)


@pytest.mark.slow_except("smallthinker-4b-*")
@pytest.mark.parametrize(
    ("name", "total", "expert", "attention"),
    [("smallthinker-4b", 4035085824, 3538944, 5505024), ("smallthinker-21b", 21506562560, 5898240, 20971520)],
)
def test_published_sizes(name: str, total: int, expert: int, attention: int) -> None:
    model = named.build(name)
    assert isinstance(model, SmallThinkerLM)
    assert sum(p.numel() for p in model.parameters()) == total
    block = model.blocks[0]
    assert sum(p.numel() for p in block.block_sparse_moe.experts[0].parameters()) == expert
    assert sum(p.numel() for p in block.self_attn.parameters()) == attention
    # Q4_0 takes 18 bytes for 32 values: below the published memory at run time, within 7 %.
    gib, published = total * 18 / 32 / 2**30, {"smallthinker-4b": 2.24, "smallthinker-21b": 11.47}[name]
    assert 0.93 * published < gib < published
    # The released cache settings, in bundles and in GB of Q4_0.
    bundles, gigabytes = {"smallthinker-4b": (256, 0.51), "smallthinker-21b": (2048, 6.79)}[name]
    assert bundles * expert * 18 / 32 / 1e9 == pytest.approx(gigabytes, abs=0.005)
    assert bool(model.config.windowed) == (name == "smallthinker-21b"), "the 4B has no hybrid attention"


@pytest.mark.parametrize("config", [MIXED, SmallThinkerConfig(), SmallThinkerConfig(early=False, activation="silu")])
def test_the_cache_changes_nothing(config: SmallThinkerConfig) -> None:
    torch.manual_seed(0)
    model = SmallThinkerLM(config).eval()
    ids = torch.randint(0, 96, (2, 30))
    with torch.inference_mode():
        whole, state = model(ids), model.new_state(2)
        parts = [model(ids[:, :10], state), *(model(ids[:, i : i + 1], state) for i in range(10, 30))]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=0)
    if config.windowed:
        assert [c.keys.shape[2] for c in state] == [30, 6, 6, 6]


def test_plain_layouts_are_a_plain_decoder() -> None:
    torch.manual_seed(0)
    one = SmallThinkerLM(SmallThinkerConfig()).eval()
    other = SmallThinkerLM(SmallThinkerConfig(rotary=(1,) * 4, windowed=(0,) * 4)).eval()
    other.load_state_dict(one.state_dict())
    ids = torch.randint(0, 96, (1, 12))
    assert torch.equal(one(ids), other(ids))


def test_round_trip_in_the_released_layout(tmp_path: Path) -> None:
    model = SmallThinkerLM(MIXED).eval()
    model.save(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    assert data["moe_num_active_primary_experts"] == 2
    assert data["rope_layout"] == [0, 1, 1, 1]
    again = SmallThinkerLM.load(tmp_path)
    assert again.config == MIXED
    assert "model.layers.0.block_sparse_moe.experts.3.down.weight" in model.state_dict()
    ids = torch.randint(0, 96, (1, 12))
    torch.testing.assert_close(again(ids), model(ids), atol=1e-3, rtol=0)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(HastenError, match="SmallThinker"):
        SmallThinkerLM.load(tmp_path)


def test_wrong_sizes() -> None:
    for wrong in ({"heads": 3}, {"rotary": (1, 0)}, {"windowed": (2,) * 4}, {"used": 9}, {"window": 0}):
        with pytest.raises(HastenError):
            SmallThinkerConfig(**wrong)  # type: ignore[arg-type]
