"""Trains the small SmallThinker model that ships with hasten, and writes its card.

    python scripts/train_smallthinker.py [--steps 2500] [--out src/hasten/models/trained/smallthinker-chars]

Text: the documentation that Python and installed packages carry (`hasten.data.text.sources`), as ASCII characters.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from hasten.data.text import characters, sources
from hasten.models import SmallThinkerConfig, SmallThinkerLM
from hasten.models.language.smallthinker import hybrid
from hasten.nn.reglu_experts import balance_loss
from hasten.train.fitting import fit, windows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--out", type=Path, default=Path("src/hasten/models/trained/smallthinker-chars"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    ids, alphabet = characters(sources(1_500_000))
    training, held = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]
    rotary, windowed = hybrid(4)
    config = SmallThinkerConfig(
        width=128, layers=4, heads=4, kv_heads=2, head_dim=32, vocabulary=len(alphabet), experts=8, used=2, inner=96,
        rotary=rotary, windowed=windowed, window=64,
    )  # fmt: skip
    model = SmallThinkerLM(config).train()
    moes = [layer.block_sparse_moe for layer in model.blocks]
    batches = windows(training, 128, 12, 0)
    begun = time.perf_counter()

    def loss(step: int) -> torch.Tensor:
        window = next(batches)
        value = torch.nn.functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        if step % 100 == 0:
            print(f"step {step}: {value.item():.3f}, {time.perf_counter() - begun:.0f} s", flush=True)
        return value + 1e-3 * sum(balance_loss(moe.logits, 2) for moe in moes) / len(moes)

    fit(model, loss, steps=arguments.steps, peak=3e-3)
    opened = sum(moe.open_share for moe in moes) / len(moes)
    model.eval()
    with torch.inference_mode():
        window = next(windows(held, 128, 64, 1))
        logits = model(window[:, :-1])
        value = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten()))
    model.half().save(arguments.out)
    parameters = sum(p.numel() for p in model.parameters())
    (arguments.out / "CARD.md").write_text(
        f"""# smallthinker-chars

A SmallThinker model (arXiv 2507.20984) that the project trained itself, for tests and examples: {parameters:,}
parameters, 4 layers, 8 experts of which a token uses 2, every fourth layer with full attention and no positions, the
others with rotary positions and a window of 64. It predicts ASCII characters.

- Made by `python scripts/train_smallthinker.py --steps {arguments.steps}` (seed 0, batch 12 x 128 characters).
- Text: 1.5 million characters of documentation carried by Python and installed packages, the last tenth held out. What
it
  writes resembles that text; it knows nothing.
- Held-out loss {value:.3f} nats a character; {1 - opened:.0%} of used experts' gates closed.
- Stored in fp16 as safetensors in the released models' layout; MIT, as the project.
"""
    )
    print(f"held-out loss {value:.3f}")


if __name__ == "__main__":
    main()
