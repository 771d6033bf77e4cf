"""The small model that is trained when it is first asked for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hasten.train import character_model as module
from hasten.train.character_model import CharacterRecipe, character_model

SMALL = CharacterRecipe(steps=4, batch=2, length=16, characters=20_000)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path))


def test_it_is_trained_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[str] = []
    before = torch.random.get_rng_state()
    model, folder = character_model(SMALL, progress=told.append)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert told
    assert "step 0 of 4" in told[0]
    assert not list(folder.parent.glob(".*"))  # nothing half written is left
    ids = torch.randint(0, 96, (1, 9))
    with torch.no_grad():
        wanted = model(ids)

    def never(*args: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "_trained", never)
    again, same = character_model(SMALL, progress=told.append)
    assert same == folder
    with torch.no_grad():
        assert torch.equal(again(ids), wanted)
    with pytest.raises(AssertionError, match="trained again"):
        character_model(CharacterRecipe(steps=5, batch=2, length=16, characters=20_000))


@pytest.mark.parametrize("damage", ["cut", "changed", "no record"])
def test_a_damaged_copy_is_trained_anew(damage: str) -> None:
    model, folder = character_model(SMALL, progress=lambda message: None)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(content[:100])
    elif damage == "changed":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        (folder / "recipe.json").unlink()
    told: list[str] = []
    again, _ = character_model(SMALL, progress=told.append)
    assert told
    for mine, other in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=2e-3, rtol=2e-3)


@pytest.mark.slow
def test_it_learns_and_goes_on_with_a_text() -> None:
    from hasten.data.text import characters

    model, folder = character_model(CharacterRecipe(steps=60, batch=8, length=64, characters=200_000))
    assert (folder / "model.safetensors").stat().st_size <= 8 << 20
    record = json.loads((folder / "recipe.json").read_text("utf-8"))
    assert record["held_out_loss"] < math.log(96) - 1  # nats; of one who knows nothing log 96
    ids, alphabet = characters("The function returns the ")
    text = "".join(alphabet[i] for i in model.generate(ids[None], 40)[0].tolist())
    assert text.startswith("The function returns the ")
    assert len(text) == 65
