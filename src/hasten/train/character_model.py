"""A small SmallThinker model that hasten trains itself when it is first asked for, and keeps in its cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from hasten.data.text import characters, sources
from hasten.errors import HastenError
from hasten.files import cache_folder, parse_json, read_text, write_aside
from hasten.models.language.smallthinker import SmallThinkerConfig, SmallThinkerLM, hybrid
from hasten.models.loading.checkpoint import WEIGHTS
from hasten.nn.moe import balance_loss
from hasten.train.fitting import fit, windows

__all__ = ["CharacterRecipe", "character_model"]

# Raised whenever the same settings would give another model.
_VERSION = 1
_RECORD = "recipe.json"


@dataclass(frozen=True)
class CharacterRecipe:
    """How the model is trained; another recipe is another model, kept beside the first.

    Args:
        steps: of AdamW.
        batch, length: texts a step, and characters of each.
        characters: of documentation carried by Python and installed packages, the last tenth held out.
        peak: the highest learning rate.
        balance: weight of the loss that balances experts.
        seed: of weights and batches.
    """

    steps: int = 2500
    batch: int = 12
    length: int = 128
    characters: int = 1_500_000
    peak: float = 3e-3
    balance: float = 1e-3
    seed: int = 0

    @property
    def digest(self) -> str:
        """The same for the same recipe and version."""
        text = json.dumps({"version": _VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _line(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def character_model(
    recipe: CharacterRecipe | None = None, *, progress: Callable[[str], None] = _line
) -> tuple[SmallThinkerLM, Path]:
    """The model of a recipe, trained now or before: 4 layers of 8 experts, which predict 96 ASCII characters.

    A copy whose weights are not those that were written is trained anew.

    Args:
        recipe: the default one takes 2,500 steps, some minutes.
        progress: told what is happening; stderr unless given.

    Returns:
        the model, and the folder that holds it in the released models' layout, with its recipe and held-out loss.

    Raises:
        HastenError: the cache folder cannot be written.
    """
    recipe = recipe or CharacterRecipe()
    folder = cache_folder() / "trained" / f"smallthinker-chars-{recipe.digest}"
    if not _whole(folder):
        _train_into(folder, recipe, progress)
    return SmallThinkerLM.load(folder), folder


def _whole(folder: Path) -> bool:
    try:
        record = parse_json(read_text(folder / _RECORD))
        return bool(record["weights"] == _sha256(folder / WEIGHTS))
    except (HastenError, OSError, ValueError, KeyError, TypeError):
        return False


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _train_into(folder: Path, recipe: CharacterRecipe, progress: Callable[[str], None]) -> None:
    model, loss = _trained(recipe, progress)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        model.half().save(aside)
        record = {**asdict(recipe), "version": _VERSION, "held_out_loss": loss, "weights": _sha256(aside / WEIGHTS)}
        write_aside(aside / _RECORD, json.dumps(record, indent=2) + "\n", "the recipe")
        shutil.rmtree(folder, ignore_errors=True)
        try:
            aside.replace(folder)
        except OSError as error:
            # Another process may have put its own there meanwhile, which is the same.
            if not _whole(folder):
                raise HastenError(f"cannot write {folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _trained(recipe: CharacterRecipe, progress: Callable[[str], None]) -> tuple[SmallThinkerLM, float]:
    """The model, and its loss in nats a character on what it was not trained on."""
    ids, alphabet = characters(sources(recipe.characters))
    training, held = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]
    rotary, windowed = hybrid(4)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = SmallThinkerLM(
            SmallThinkerConfig(
                width=128, layers=4, heads=4, kv_heads=2, head_dim=32, vocabulary=len(alphabet), experts=8, used=2,
                inner=96, rotary=rotary, windowed=windowed, window=64,
            )
        ).train()  # fmt: skip
        batches = windows(training, recipe.length, recipe.batch, recipe.seed)
        begun = time.perf_counter()

        def loss(step: int) -> torch.Tensor:
            window = next(batches)
            logits, routings = model(window[:, :-1], return_routing=True)
            value = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
            if step % 100 == 0:
                seconds = time.perf_counter() - begun
                progress(f"training smallthinker-chars: step {step} of {recipe.steps}, {seconds:.0f} s")
            return value + recipe.balance * torch.stack([balance_loss(r.logits, 2) for r in routings]).mean()

        fit(model, loss, steps=recipe.steps, peak=recipe.peak)
    model.eval()
    with torch.inference_mode():
        window = next(windows(held, recipe.length, 64, recipe.seed + 1))
        logits = model(window[:, :-1])
        return model, float(F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten()))
