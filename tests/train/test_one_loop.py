"""There is one training loop: nobody else moves an optimizer."""

from __future__ import annotations

import re
from pathlib import Path

import hasten

# Meta-learning has a loop of its own, and lies below `train`; a least-squares fit at construction uses a solver.
ALLOWED = {"train/loop.py", "cost/latency/predictor.py", "nn/rational.py"}


def test_only_the_loop_moves_an_optimizer() -> None:
    root = Path(hasten.__file__).parent
    # Whatever an optimizer or a schedule of one is called here; environments and simulators step too.
    wanted = re.compile(r"\w*(optim|solver|schedule|descent)\w*\.step\(")
    files = [path for path in root.rglob("*.py") if wanted.search(path.read_text("utf-8"))]
    assert {path.relative_to(root).as_posix() for path in files} == ALLOWED
