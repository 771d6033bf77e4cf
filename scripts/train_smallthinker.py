"""Trains the small SmallThinker model of tests and examples into hasten's cache folder, or says where it is.

python scripts/train_smallthinker.py [--steps 2500]
"""

from __future__ import annotations

import argparse
import json

from hasten.train.character_model import CharacterRecipe, character_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=CharacterRecipe().steps)
    _, folder = character_model(CharacterRecipe(steps=parser.parse_args().steps))
    loss = json.loads((folder / "recipe.json").read_text("utf-8"))["held_out_loss"]
    print(f"{folder}: held-out loss {loss:.3f} nats a character")


if __name__ == "__main__":
    main()
